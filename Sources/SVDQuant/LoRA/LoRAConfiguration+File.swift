internal import Foundation
internal import SparseKernels

// Configurations that come with an adapter's file: in its metadata, or as `adapter_config.json` beside it.

extension LoRAConfiguration {
    /// The entry in which diffusers keeps the configurations of a file, as JSON.
    private static let metadataKey = "lora_adapter_metadata"

    /// What the metadata say about the layers of a component; nil when they say nothing.
    ///
    /// Keys are those of `adapter_config.json`, alone or behind the name of a component and a dot, `transformer.lora_alpha`, either in the
    /// JSON object `lora_adapter_metadata` or as entries of their own.
    ///
    /// - Parameters:
    ///   - file: the adapter's file.
    ///   - layer: the layer's name in it, whose first part may name the component.
    /// - Throws: `.malformedFile` as `init(json:named:)`, or when the metadata are about several components and the layer is of none.
    static func inMetadata(of file: SafetensorsFile, layer: String) throws(SparseKernelsError) -> LoRAConfiguration? {
        var parts: [String: LoRAConfiguration] = [:]
        func apply(_ key: String, _ value: JSONText, source: String, defaultAlpha: Float?) throws(SparseKernelsError) {
            let (component, name) = split(key)
            guard keys.contains(name) else { return }
            var part = parts[component] ?? LoRAConfiguration(alpha: defaultAlpha)
            part.source = "\(file.name), metadata \(quoted(source))"
            try part.apply(name, value)
            parts[component] = part
        }
        // Entries of their own first, so that the JSON object goes before them.
        for (key, text) in file.metadata.sorted(by: { $0.key < $1.key }) where key != metadataKey {
            if keys.contains(split(key).name) { try apply(key, plainValue(text), source: key, defaultAlpha: nil) }
        }
        if let text = file.metadata[metadataKey] {
            guard let members = JSONText(text)?.members else {
                throw SparseKernelsError(
                    .malformedFile, "\(file.name), metadata \(quoted(metadataKey))",
                    expected: "a JSON object, as diffusers writes it", actual: quoted(text))
            }
            for member in members {
                if !keys.contains(split(member.key).name), let inner = member.value.members {
                    for entry in inner {
                        try apply("\(member.key).\(entry.key)", entry.value, source: metadataKey, defaultAlpha: defaultAlpha)
                    }
                } else {
                    try apply(member.key, member.value, source: metadataKey, defaultAlpha: defaultAlpha)
                }
            }
        }
        if parts.isEmpty { return nil }
        if let part = parts[String(layer.prefix { $0 != "." })] { return part }
        let names = components(ofLayer: layer)
        if let component = names.first(where: { parts[$0] != nil }) { return parts[component] }
        if let whole = parts[""] { return whole }
        if parts.count == 1, names.isEmpty { return parts.first?.value }
        if names.isEmpty {
            throw SparseKernelsError(
                .malformedFile, "\(file.name), metadata", expected: "about the component of layer \(quoted(layer))",
                actual: "about \(parts.keys.sorted().map { quoted($0) }.joined(separator: ", "))")
        }
        return nil
    }

    /// `adapter_config.json` in the folder of a file that was opened by its path; nil without one.
    static func beside(_ file: SafetensorsFile) throws(SparseKernelsError) -> LoRAConfiguration? {
        let manager = FileManager.default
        guard manager.fileExists(atPath: file.name) else { return nil }
        let folder = URL(fileURLWithPath: file.name).deletingLastPathComponent()
        let path = folder.appendingPathComponent("adapter_config.json").path
        return manager.fileExists(atPath: path) ? try LoRAConfiguration(path: path) : nil
    }

    /// The part before the last dot, and the key behind it.
    private static func split(_ key: String) -> (component: String, name: String) {
        guard let dot = key.lastIndex(of: ".") else { return ("", key) }
        return (String(key[..<dot]), String(key[key.index(after: dot)...]))
    }

    /// Which components a layer may be of, by its name.
    private static func components(ofLayer layer: String) -> [String] {
        for known in ["transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"] {
            if layer.hasPrefix(known + ".") { return [known] }
        }
        if layer.hasPrefix("lora_unet_") || layer.hasPrefix("lora_transformer_") { return ["unet", "transformer"] }
        if layer.hasPrefix("lora_te_") || layer.hasPrefix("lora_te1_") { return ["text_encoder"] }
        if layer.hasPrefix("lora_te2_") { return ["text_encoder_2"] }
        return []
    }

    /// Text of an entry of its own: JSON, or a word as Python prints it.
    private static func plainValue(_ text: String) -> JSONText {
        switch text {
        case "True": .bool(true)
        case "False": .bool(false)
        case "None": .null
        default: JSONText(text) ?? .string(text)
        }
    }
}

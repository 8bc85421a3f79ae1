internal import Foundation
internal import SparseKernels

// Configurations in the metadata of an adapter's file, or in `adapter_config.json` beside it.

extension LoRAConfiguration {
    /// The metadata entry in which diffusers keeps the configurations of a file, as JSON.
    private static let metadataKey = "lora_adapter_metadata"

    /// Reads the metadata about the layers of a component; nil without any.
    ///
    /// Keys are those of `adapter_config.json`, alone or after a component's name and a dot (`transformer.lora_alpha`), either
    /// in the JSON object `lora_adapter_metadata` or as separate entries.
    ///
    /// - Parameters:
    ///   - file: the adapter's file.
    ///   - layer: the layer's name in the file, whose first part may name the component.
    /// - Throws: `.malformedFile` as `init(json:named:)`, or for metadata about several components, none of them the layer's.
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
        // Separate entries come first, so that the JSON object overrides them.
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

    /// Reads `adapter_config.json` in the folder of a file that was opened by its path; nil if there is none.
    static func beside(_ file: SafetensorsFile) throws(SparseKernelsError) -> LoRAConfiguration? {
        let manager = FileManager.default
        guard manager.fileExists(atPath: file.name) else { return nil }
        let folder = URL(fileURLWithPath: file.name).deletingLastPathComponent()
        let path = folder.appendingPathComponent("adapter_config.json").path
        return manager.fileExists(atPath: path) ? try LoRAConfiguration(path: path) : nil
    }

    /// Splits a key at the last dot into component and name.
    private static func split(_ key: String) -> (component: String, name: String) {
        guard let dot = key.lastIndex(of: ".") else { return ("", key) }
        return (String(key[..<dot]), String(key[key.index(after: dot)...]))
    }

    /// The components to which a layer may belong according to its name.
    private static func components(ofLayer layer: String) -> [String] {
        for known in ["transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"] {
            if layer.hasPrefix(known + ".") { return [known] }
        }
        if layer.hasPrefix("lora_unet_") || layer.hasPrefix("lora_transformer_") { return ["unet", "transformer"] }
        if layer.hasPrefix("lora_te_") || layer.hasPrefix("lora_te1_") { return ["text_encoder"] }
        if layer.hasPrefix("lora_te2_") { return ["text_encoder_2"] }
        return []
    }

    /// Parses the text of a separate entry: JSON, or a word as printed by Python.
    private static func plainValue(_ text: String) -> JSONText {
        switch text {
        case "True": .bool(true)
        case "False": .bool(false)
        case "None": .null
        default: JSONText(text) ?? .string(text)
        }
    }
}

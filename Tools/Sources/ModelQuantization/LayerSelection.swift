internal import Foundation
public import SparseKernels

/// Which tensors of a model are quantised.
public struct LayerSelection: Sendable {
    /// Patterns of layer names as in a shell, where `*` also matches dots. A layer has to match one of them…
    public var include: [String]
    /// …and none of these.
    public var exclude: [String]
    /// Layers with fewer input or output features stay as they are.
    public var minimumFeatures: Int

    /// Embeddings are looked up and not multiplied; norms are vectors; the output projection decides on close calls.
    public static let defaultExclusions = ["*embed*", "*norm*", "*lm_head*"]

    public init(include: [String] = ["*"], exclude: [String] = Self.defaultExclusions, minimumFeatures: Int = 64) {
        self.include = include
        self.exclude = exclude
        self.minimumFeatures = minimumFeatures
    }

    /// Why a tensor is not quantised; nil: it is.
    func reasonToCopy(_ entry: SafetensorsEntry, rank: Int) -> String? {
        guard let layer = Self.layerName(ofWeight: entry.name), entry.shape.count == 2 else {
            return "not the weight of a linear layer"
        }
        guard [.float32, .float16, .bfloat16].contains(entry.elementType) else {
            return "element type \(entry.elementType.rawValue)"
        }
        if let pattern = exclude.first(where: { Self.matches(layer, $0) }) { return "excluded by \(pattern)" }
        if !include.contains(where: { Self.matches(layer, $0) }) { return "not included" }
        let smallest = entry.shape.min()!
        if smallest < minimumFeatures { return "fewer than \(minimumFeatures) features" }
        if smallest <= rank { return "no more features than the rank of \(rank)" }
        return nil
    }

    /// "a.b.weight" is the weight of layer "a.b".
    static func layerName(ofWeight name: String) -> String? {
        let suffix = ".weight"
        return name.hasSuffix(suffix) && name.count > suffix.count ? String(name.dropLast(suffix.count)) : nil
    }

    private static func matches(_ name: String, _ pattern: String) -> Bool { fnmatch(pattern, name, 0) == 0 }
}

/// What becomes of the tensors of a model.
public struct ModelPlan: Sendable {
    public struct Layer: Hashable, Sendable {
        /// The name of the weight without ".weight".
        public let name: String
        public let outFeatures: Int
        public let inFeatures: Int
        public let elementType: ElementType
        public let hasBias: Bool

        public var weightName: String { name + ".weight" }
        public var biasName: String? { hasBias ? name + ".bias" : nil }
        /// Multiply-adds per token, by which the progress line estimates the time.
        public var size: Int { outFeatures * inFeatures }
    }

    /// In natural order of their names: layers.2 before layers.10.
    public let layers: [Layer]
    /// Tensors that go to the output as they are, with the reason.
    public let copied: [(entry: SafetensorsEntry, reason: String)]

    /// - Throws: `.notFound` when no tensor is selected; `.invalidShape` for a bias that is not one of its layer.
    public init(_ file: SafetensorsFile, selection: LayerSelection, rank: Int) throws(SparseKernelsError) {
        var layers: [Layer] = []
        var copied: [(entry: SafetensorsEntry, reason: String)] = []
        for entry in file.tensors {
            if let reason = selection.reasonToCopy(entry, rank: rank) {
                copied.append((entry, reason))
                continue
            }
            let name = LayerSelection.layerName(ofWeight: entry.name)!
            let bias = file[name + ".bias"]
            if let bias, bias.shape != [entry.shape[0]] {
                throw SparseKernelsError(
                    .invalidShape, "\(file.name), tensor \"\(printable(bias.name))\"",
                    expected: "[\(entry.shape[0])], as the weight has rows",
                    actual: "\(bias.shape)")
            }
            layers.append(
                Layer(
                    name: name, outFeatures: entry.shape[0], inFeatures: entry.shape[1], elementType: entry.elementType,
                    hasBias: bias != nil))
        }
        guard !layers.isEmpty else {
            throw SparseKernelsError(
                .notFound, file.name, expected: "a file with a layer to quantise",
                actual: "\(file.tensors.count) tensors, none of them selected: see --include, --exclude and --min-features")
        }
        let biases = Set(layers.compactMap(\.biasName))
        self.layers = layers.sorted { isBefore($0.name, $1.name) }
        self.copied = copied.filter { !biases.contains($0.entry.name) }
    }
}

extension ModelPlan {
    /// What would be done: a line per layer, and a line per reason with the number of tensors that are copied for it.
    public var lines: [String] {
        let reasons = Dictionary(grouping: copied, by: \.reason).map { (reason: $0.key, entries: $0.value.map(\.entry)) }
        return layers.map {
            "quantise  \(printable($0.name))  \($0.outFeatures) × \($0.inFeatures) \($0.elementType.rawValue)\($0.hasBias ? ", bias" : "")"
        }
            + reasons.sorted { $0.reason < $1.reason }.map { reason, entries in
                let names = entries.prefix(3).map { printable($0.name) }.joined(separator: ", ")
                let bytes = entries.reduce(0) { $0 + $1.byteRange.count }
                return
                    "copy      \(entries.count) tensors, \(bytes) bytes: \(reason) (\(names)\(entries.count > 3 ? ", …" : ""))"
            }
    }
}

internal import Foundation
public import SparseKernels

/// The choice of the tensors of a model that are quantised.
public struct LayerSelection: Sendable {
    /// Patterns of layer names as in a shell, where `*` also matches dots. A layer must match at least one of them.
    public var include: [String]
    /// Patterns that a layer must not match.
    public var exclude: [String]
    /// Layers with fewer input or output features are not quantised.
    public var minimumFeatures: Int

    /// Embeddings are looked up and not multiplied, norms are vectors, and the output projection decides close calls.
    public static let defaultExclusions = ["*embed*", "*norm*", "*lm_head*"]

    public init(include: [String] = ["*"], exclude: [String] = Self.defaultExclusions, minimumFeatures: Int = 64) {
        self.include = include
        self.exclude = exclude
        self.minimumFeatures = minimumFeatures
    }

    /// The reason why a tensor is not quantised; nil if it is.
    func reasonToCopy(_ entry: SafetensorsEntry, rank: Int) -> String? {
        guard let layer = Self.layerName(ofWeight: entry.name) else { return "its name does not end in .weight" }
        if entry.shape.count != 2 { return "rank \(entry.shape.count), and the weight of a linear layer has 2" }
        if !Self.isFloat(entry.elementType) { return "element type \(entry.elementType.rawValue), not F32, F16 or BF16" }
        if let pattern = exclude.first(where: { Self.matches(layer, $0) }) { return "excluded by \(pattern)" }
        if !include.contains(where: { Self.matches(layer, $0) }) { return "matches no pattern to include" }
        let smallest = entry.shape.min()!
        if smallest < minimumFeatures { return "fewer than \(minimumFeatures) features" }
        if smallest <= rank { return "no more features than the rank of \(rank)" }
        return nil
    }

    /// Whether a tensor of such elements can be read as `Float`.
    static func isFloat(_ type: ElementType) -> Bool { [.float32, .float16, .bfloat16].contains(type) }

    /// "a.b.weight" is the weight of layer "a.b".
    static func layerName(ofWeight name: String) -> String? {
        let suffix = ".weight"
        return name.hasSuffix(suffix) && name.count > suffix.count ? String(name.dropLast(suffix.count)) : nil
    }

    private static func matches(_ name: String, _ pattern: String) -> Bool { fnmatch(pattern, name, 0) == 0 }
}

/// The plan for the tensors of a model.
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
        /// Multiply-adds per token, from which the progress line estimates the time.
        public var size: Int { outFeatures * inFeatures }
    }

    /// The layers in natural order of their names: layers.2 before layers.10.
    public let layers: [Layer]
    /// The tensors that are copied to the output, with the reasons.
    public let copied: [(entry: SafetensorsEntry, reason: String)]

    /// Makes a plan. If nothing is selected, it has no layers and a reason for each tensor.
    /// - Throws: `.invalidShape` and `.invalidElementType` for a bias that does not fit its layer.
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
            if let bias {
                let place = "\(file.name), tensor \"\(printable(bias.name))\""
                guard bias.shape == [entry.shape[0]] else {
                    throw SparseKernelsError(
                        .invalidShape, place, expected: "[\(entry.shape[0])], as the weight has rows",
                        actual: shapeText(bias.shape))
                }
                guard LayerSelection.isFloat(bias.elementType) else {
                    throw SparseKernelsError(
                        .invalidElementType, place, expected: "F32, F16 or BF16, as the bias of a layer that is quantised",
                        actual: bias.elementType.rawValue)
                }
            }
            layers.append(
                Layer(
                    name: name, outFeatures: entry.shape[0], inFeatures: entry.shape[1], elementType: entry.elementType,
                    hasBias: bias != nil))
        }
        let biases = Set(layers.compactMap(\.biasName))
        self.layers = layers.sorted { isBefore($0.name, $1.name) }
        self.copied = copied.filter { !biases.contains($0.entry.name) }
    }
}

extension ModelPlan {
    /// A description of the plan: a line per layer, a line with the reason per copied tensor, and the totals.
    public var lines: [String] {
        let copies = copied.sorted { isBefore($0.entry.name, $1.entry.name) }
        let bytes = copies.reduce(0) { $0 + $1.entry.byteRange.count }
        return layers.map {
            "quantise  \(printable($0.name))  \($0.outFeatures) × \($0.inFeatures) \($0.elementType.rawValue)\($0.hasBias ? ", bias" : "")"
        }
            + copies.map { "copy      \(printable($0.entry.name))  \(description($0.entry)): \($0.reason)" }
            + ["\(counted(layers.count, "layer")) to quantise, \(counted(copies.count, "tensor")) of \(bytes) bytes to copy"]
    }

    private func description(_ entry: SafetensorsEntry) -> String {
        "\(shapeText(entry.shape)) \(entry.elementType.rawValue), \(entry.byteRange.count) bytes"
    }

    /// Throws when nothing is selected. `lines` has the reasons.
    /// - Throws: `.notFound` naming the file.
    public func requireLayers(of file: SafetensorsFile) throws(SparseKernelsError) {
        guard layers.isEmpty else { return }
        throw SparseKernelsError(
            .notFound, file.name, expected: "a file with a layer to quantise",
            actual: "\(file.tensors.count) tensors, none of them selected: see --include, --exclude, --min-features and --rank")
    }

    // MARK: - The output

    /// The names of a quantised layer's tensors in the output.
    private func tensors(of layer: Layer, _ options: QuantizationOptions) -> [String] {
        var parts = ["codes", "scales"]
        if options.smoothing != .none { parts.append("smooth") }
        if options.rank > 0 { parts += ["down", "up"] }
        if layer.hasBias { parts.append("bias") }
        return parts.map { "\(layer.name).\($0)" }
    }

    /// Checks that no tensor of a quantised layer has the name of a copied one.
    /// - Throws: `.invalidArgument` naming the model's tensor.
    func checkNames(in file: SafetensorsFile, _ options: QuantizationOptions) throws(SparseKernelsError) {
        let copied = Set(copied.map(\.entry.name))
        for layer in layers {
            for name in tensors(of: layer, options) where copied.contains(name) {
                let layer = printable(layer.name)
                throw SparseKernelsError(
                    .invalidArgument, "\(file.name), tensor \"\(printable(name))\"",
                    expected:
                        "named otherwise than the tensors that layer \"\(layer)\" gets in the output, or the layer left out",
                    actual: "the same name (--exclude '\(layer)' leaves it out)")
            }
        }
    }

    /// The approximate size of the first finished layers: codes of 4 bits; scales, factors and bias of 16.
    func bytes(ofLayers count: Int, _ options: QuantizationOptions) -> Int {
        layers.prefix(count).reduce(0) { sum, layer in
            let (n, k) = (layer.outFeatures, layer.inFeatures)
            return sum + n * k / 2 + n * (k / 64) * 2 + 2 * options.rank * (n + k)
        }
    }
}

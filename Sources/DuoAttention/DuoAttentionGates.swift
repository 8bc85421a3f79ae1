public import SparseKernels

/// The trained gates of a model: one α in 0…1 per layer and key/value head. Heads with a large α need the whole context
/// (retrieval heads); the others need only the first and last tokens (streaming heads).
///
/// Source: DuoAttention (Xiao et al., 2024, arXiv 2410.10819), section 2.2; `duo_attn/utils.py`, `load_attn_pattern` and
/// `sparsify_attention_heads`.
public struct DuoAttentionGates: Hashable, Sendable {
    public let layers: Int
    public let kvHeads: Int
    /// The gates, row-major `[layers, kvHeads]`, clipped to 0…1.
    public let values: [Double]

    /// - Parameters:
    ///   - layers: number of layers of the model.
    ///   - kvHeads: key/value heads of a layer.
    ///   - values: row-major `[layers, kvHeads]`; clipped to 0…1.
    /// - Throws: `.invalidShape` for an extent below 1 or a wrong number of values, `.invalidArgument` for non-finite values.
    public init(layers: Int, kvHeads: Int, values: [Double]) throws(SparseKernelsError) {
        for (name, extent) in [("layers", layers), ("kvHeads", kvHeads)] where extent < 1 {
            throw SparseKernelsError(.invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        let (count, overflow) = layers.multipliedReportingOverflow(by: kvHeads)
        try require(
            !overflow && count == values.count, .invalidShape, "values",
            expected: "layers · kvHeads = \(layers) · \(kvHeads) values", actual: "\(values.count)")
        for (index, value) in values.enumerated() where !value.isFinite {
            throw SparseKernelsError(.invalidArgument, "values[\(index)]", expected: "finite", actual: "\(value)")
        }
        self.layers = layers
        self.kvHeads = kvHeads
        self.values = values.map { min(1, max(0, $0)) }
    }

    /// Reads the contents of `full_attention_heads.tsv`: a line per layer, with values separated by tabs. Empty lines and the
    /// text after a `#` are ignored, as in numpy's `loadtxt`.
    /// - Throws: `.malformedFile` naming the line, and the value if one is at fault, for anything that is not a finite decimal
    ///   number, lines of different lengths, and a text without values.
    public init(tsv text: String) throws(SparseKernelsError) {
        var values: [Double] = []
        var layers = 0
        var kvHeads = 0
        for (index, line) in text.utf8.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated() {
            let content = Self.trimmed(line.prefix { $0 != UInt8(ascii: "#") })
            if content.isEmpty { continue }
            let fields = content.split(separator: UInt8(ascii: "\t"), omittingEmptySubsequences: false)
            if layers == 0 { kvHeads = fields.count }
            try require(
                fields.count == kvHeads, .malformedFile, "tsv, line \(index + 1)",
                expected: "\(kvHeads) values, as the lines before", actual: "\(fields.count)")
            for (position, field) in fields.enumerated() {
                guard let value = Self.number(field) else {
                    throw SparseKernelsError(
                        .malformedFile, "tsv, line \(index + 1), value \(position + 1)", expected: "a finite decimal number",
                        actual: "\"\(String(decoding: field.prefix(40), as: UTF8.self))\"")
                }
                values.append(value)
            }
            layers += 1
        }
        try require(layers > 0, .malformedFile, "tsv", expected: "a line of values per layer", actual: "no values")
        try self.init(layers: layers, kvHeads: kvHeads, values: values)
    }

    /// Removes spaces, tabs and carriage returns, which foreign line ends have, at both ends.
    private static func trimmed(_ text: Substring.UTF8View) -> Substring.UTF8View {
        func isBlank(_ byte: UInt8) -> Bool { byte == 32 || byte == 9 || byte == 13 }
        var text = text
        while let last = text.last, isBlank(last) { text.removeLast() }
        return text.drop(while: isBlank)
    }

    /// A decimal number, or nil. `Double.init` also accepts hexadecimal numbers, "nan" and "inf", which are not.
    private static func number(_ field: Substring.UTF8View) -> Double? {
        let field = trimmed(field)
        let isDecimal = field.allSatisfy { byte in
            (48...57).contains(byte) || [43, 45, 46, 69, 101].contains(byte)  // digits, + - . E e
        }
        guard isDecimal, let value = Double(String(decoding: field, as: UTF8.self)), value.isFinite else { return nil }
        return value
    }

    /// The gate of a head.
    public subscript(layer: Int, kvHead: Int) -> Double {
        precondition(
            layer >= 0 && layer < layers && kvHead >= 0 && kvHead < kvHeads,
            "gate (\(layer), \(kvHead)) outside \(layers) layers × \(kvHeads) heads")
        return values[layer * kvHeads + kvHead]
    }

    // MARK: - Binarisation

    /// The heads for a threshold: those with a gate of at least `threshold` attend to everything.
    /// - Throws: `.invalidArgument` for NaN.
    public func heads(threshold: Double) throws(SparseKernelsError) -> DuoAttentionHeads {
        try require(!threshold.isNaN, .invalidArgument, "threshold", expected: "a number", actual: "\(threshold)")
        return try DuoAttentionHeads(layers: layers, kvHeads: kvHeads, isFull: values.map { $0 >= threshold })
    }

    /// The heads for a sparsity: all but about that fraction, those at or above the `sparsity` quantile of all gates, are full.
    ///
    /// With n gates, ⌈sparsity·(n − 1)⌉ heads stream, as with a linearly interpolated quantile of distinct gates. Among equal
    /// gates the later ones stream first. The released code adds random noise instead; see `heads(sparsity:noise:)`.
    /// - Throws: `.invalidArgument` for a sparsity outside 0…1.
    public func heads(sparsity: Double) throws(SparseKernelsError) -> DuoAttentionHeads {
        try Self.check(sparsity)
        let streaming = sparsity == 1 ? values.count : Int((sparsity * Double(values.count - 1)).rounded(.up))
        let order = values.indices.sorted { (values[$0], $1) < (values[$1], $0) }
        var isFull = [Bool](repeating: true, count: values.count)
        for index in order.prefix(streaming) { isFull[index] = false }
        return try DuoAttentionHeads(layers: layers, kvHeads: kvHeads, isFull: isFull)
    }

    /// The heads for a sparsity as released: noise in [0, 10⁻⁶) is added to every gate, and heads at or above the linearly
    /// interpolated quantile of the sums are full. The released noise comes from numpy's global generator, which has no seed
    /// unless the caller sets one.
    /// - Throws: `.invalidArgument` for a sparsity outside 0…1.
    public func heads(
        sparsity: Double, noise: inout some RandomNumberGenerator
    ) throws(SparseKernelsError) -> DuoAttentionHeads {
        try Self.check(sparsity)
        var noisy = values
        for index in noisy.indices { noisy[index] += Double.random(in: 0..<1e-6, using: &noise) }
        let threshold = sparsity == 1 ? 2 : sparsity == 0 ? -1 : Self.quantile(noisy, sparsity)
        return try DuoAttentionHeads(layers: layers, kvHeads: kvHeads, isFull: noisy.map { $0 >= threshold })
    }

    private static func check(_ sparsity: Double) throws(SparseKernelsError) {
        try require(
            sparsity >= 0 && sparsity <= 1, .invalidArgument, "sparsity", expected: "within 0...1", actual: "\(sparsity)")
    }

    /// numpy's `quantile` with linear interpolation, which starts from the nearer end.
    static func quantile(_ values: [Double], _ fraction: Double) -> Double {
        let sorted = values.sorted()
        let position = fraction * Double(sorted.count - 1)
        let lower = min(sorted.count - 1, Int(position))
        let (a, b) = (sorted[lower], sorted[min(sorted.count - 1, lower + 1)])
        let t = position - Double(lower)
        return t < 0.5 ? a + (b - a) * t : b - (b - a) * (1 - t)
    }
}

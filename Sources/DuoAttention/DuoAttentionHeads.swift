public import SparseKernels

/// The key/value heads of a model that attend to everything. The others attend to the first and last tokens only.
public struct DuoAttentionHeads: Hashable, Sendable {
    public let layers: Int
    public let kvHeads: Int
    /// Whether each head is full, row-major `[layers, kvHeads]`.
    public let isFull: [Bool]

    /// - Throws: `.invalidShape` for an extent below 1 or a wrong number of values.
    public init(layers: Int, kvHeads: Int, isFull: [Bool]) throws(SparseKernelsError) {
        for (name, extent) in [("layers", layers), ("kvHeads", kvHeads)] where extent < 1 {
            throw SparseKernelsError(.invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        let (count, overflow) = layers.multipliedReportingOverflow(by: kvHeads)
        try require(
            !overflow && count == isFull.count, .invalidShape, "isFull",
            expected: "layers · kvHeads = \(layers) · \(kvHeads) values", actual: "\(isFull.count)")
        self.layers = layers
        self.kvHeads = kvHeads
        self.isFull = isFull
    }

    /// The heads of one layer.
    public subscript(layer: Int) -> ArraySlice<Bool> {
        precondition(layer >= 0 && layer < layers, "layer \(layer) outside \(layers)")
        return isFull[layer * kvHeads..<(layer + 1) * kvHeads]
    }

    /// Fraction of the heads of all layers that stream.
    public var sparsity: Double { Double(isFull.count { !$0 }) / Double(isFull.count) }
}

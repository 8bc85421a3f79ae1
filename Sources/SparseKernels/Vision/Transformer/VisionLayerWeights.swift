/// The weights of a layer of a vision transformer, as a checkpoint has them.
public struct VisionLayerWeights: Sendable {
    /// The matrix of a linear layer, `[outFeatures, inFeatures]`, or the factors of a norm, `[channels]`, and what is added.
    public struct Affine: Sendable {
        public var weight: Tensor<Float>
        /// nil means 0.
        public var bias: Tensor<Float>?

        public init(weight: Tensor<Float>, bias: Tensor<Float>? = nil) {
            self.weight = weight
            self.bias = bias
        }
    }

    /// `[width]`, the LayerNorm before attention.
    public var attentionNorm: Affine
    /// `[3 · heads · headDim, width]`: the rows of the queries, head by head, then those of the keys and of the values.
    public var queryKeyValue: Affine
    /// `[headDim]`, the LayerNorm of every head's queries; nil means none.
    public var queryNorm: Affine?
    /// `[headDim]`, the LayerNorm of every head's keys; nil means none.
    public var keyNorm: Affine?
    /// `[width, heads · headDim]`, the linear layer after attention.
    public var projection: Affine
    /// `[width]`, the LayerNorm before the MLP.
    public var mlpNorm: Affine
    /// `[hidden, width]`, the first linear layer of the MLP.
    public var up: Affine
    /// `[width, hidden]`, the second one.
    public var down: Affine

    public init(
        attentionNorm: Affine, queryKeyValue: Affine, queryNorm: Affine? = nil, keyNorm: Affine? = nil, projection: Affine,
        mlpNorm: Affine, up: Affine, down: Affine
    ) {
        self.attentionNorm = attentionNorm
        self.queryKeyValue = queryKeyValue
        self.queryNorm = queryNorm
        self.keyNorm = keyNorm
        self.projection = projection
        self.mlpNorm = mlpNorm
        self.up = up
        self.down = down
    }
}

extension VisionLayerWeights.Affine {
    /// Linear layers over one input, such as query, key and value, as one whose outputs lie side by side.
    ///
    /// A part without a bias has one of zeros if another part has one.
    /// - Throws: `.invalidShape` for no parts, or parts that are no matrices of equal width or whose biases have other extents.
    public static func stacking(_ parts: [Self]) throws(SparseKernelsError) -> Self {
        try require(!parts.isEmpty, .invalidShape, "parts", expected: "one or more", actual: "none")
        var (rows, weights, biases): (Int, [Float], [Float]) = (0, [], [])
        let hasBias = parts.contains { $0.bias != nil }
        for (index, part) in parts.enumerated() {
            let shape = part.weight.shape
            try require(
                shape.count == 2 && shape[1] == parts[0].weight.shape.last, .invalidShape, "parts[\(index)].weight",
                expected: "[outFeatures, \(parts[0].weight.shape.last ?? 0)]", actual: "\(shape)")
            if let bias = part.bias {
                try require(
                    bias.shape == [shape[0]], .invalidShape, "parts[\(index)].bias", expected: "\([shape[0]])",
                    actual: "\(bias.shape)")
            }
            rows += shape[0]
            weights += part.weight.elements
            if hasBias { biases += part.bias?.elements ?? Array(repeating: 0, count: shape[0]) }
        }
        return Self(
            weight: try Tensor([rows, parts[0].weight.shape[1]], weights), bias: hasBias ? try Tensor([rows], biases) : nil)
    }
}

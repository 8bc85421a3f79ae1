public import SparseKernels

/// The result of one forward pass.
public struct VideoStep: Sendable {
    /// `[videoTokens, patchChannels]`: noise minus video.
    public let velocity: Tensor<Float>
    /// The part of all pairs that attention computed, by layer.
    public let densities: [Double]
    public let seconds: StageSeconds

    /// The mean over the layers.
    public var density: Double { densities.reduce(0, +) / Double(densities.count) }
}

extension VideoTransformer {
    /// The memory of a forward pass, which steps use one after the other, so that they allocate next to nothing.
    public struct Workspace: Sendable {
        /// `[tokens, hiddenSize]`: the residual stream.
        var hidden: Tensor<Float>
        var normalized: Tensor<Float>
        /// `[tokens, 3 · hiddenSize]`.
        var qkv: Tensor<Float>
        /// `[heads, tokens, headDim]` each.
        var heads: (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>)
        var attended: Tensor<Float>
        var update: Tensor<Float>
        /// `[tokens, innerSize]`.
        var inner: Tensor<Float>

        /// - Throws: `.invalidShape` for sizes that overflow.
        public init(_ c: VideoTransformerConfiguration) throws(SparseKernelsError) {
            let rows = [c.tokens, c.hiddenSize]
            hidden = try Tensor(zeros: rows)
            normalized = try Tensor(zeros: rows)
            qkv = try Tensor(zeros: [c.tokens, 3 * c.hiddenSize])
            let head = [c.heads, c.tokens, c.headDim]
            heads = (try Tensor(zeros: head), try Tensor(zeros: head), try Tensor(zeros: head))
            attended = try Tensor(zeros: rows)
            update = try Tensor(zeros: rows)
            inner = try Tensor(zeros: [c.tokens, c.innerSize])
        }
    }
}

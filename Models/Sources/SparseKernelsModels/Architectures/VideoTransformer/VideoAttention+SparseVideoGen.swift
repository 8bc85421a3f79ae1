public import SparseKernels
public import SparseVideoGen

extension VideoTransformerConfiguration {
    /// The tokens of the model. All of its text counts as prompt, because the model attends to padding too.
    /// - Throws: `.invalidShape` for sizes beyond those of `VideoGeometry`.
    public func geometry() throws(SparseKernelsError) -> VideoGeometry {
        try VideoGeometry(frames: frames, height: grid, width: grid, textTokens: textTokens, textPlacement: .before)
    }

    /// Attention of one layer.
    /// - Throws: `.invalidShape` for sizes beyond those of `AttentionShape`.
    public func attentionShape() throws(SparseKernelsError) -> AttentionShape {
        try AttentionShape(queryLength: tokens, keyLength: tokens, queryHeads: heads, kvHeads: heads, headDim: headDim)
    }
}

/// Sparse VideoGen: each head keeps neighbouring frames or one place in all frames, whichever is nearer on sampled rows.
public struct SVGVideoAttention: VideoAttention {
    public let method: SVGAttention

    /// - Throws: the errors of `SVGAttention`.
    public init(
        _ model: VideoTransformerConfiguration, _ configuration: SVGConfiguration = SVGConfiguration()
    ) throws(SparseKernelsError) {
        method = try SVGAttention(model.attentionShape(), geometry: model.geometry(), configuration)
    }

    public func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        let rows = method.sampledRows(call: place.step * place.layers + place.layer)
        let selected = try method.select(query: query, key: key, value: value, sampledRows: rows, on: pool)
        let plan = try method.attention(over: selected)
        try plan.run(query: query, key: key, value: value, output: output, logSumExp: nil, on: pool)
        return plan.density
    }
}

/// SVG2: clusters of queries and keys, and the key clusters with most of the mass for each query cluster. Centroids are carried
/// from step to step, by layer.
public struct SVG2VideoAttention: VideoAttention {
    public let method: SVG2Attention
    public private(set) var state = SVG2State()

    /// - Throws: the errors of `SVG2Attention`.
    public init(
        _ model: VideoTransformerConfiguration, _ configuration: SVG2Configuration = SVG2Configuration()
    ) throws(SparseKernelsError) {
        method = try SVG2Attention(model.attentionShape(), geometry: model.geometry(), configuration)
    }

    public mutating func attend(
        at place: VideoAttentionPlace, query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        let selected = try method.select(
            query: query, key: key, continuing: &state, layer: place.layer, pass: place.pass, on: pool)
        let plan = try method.attention(over: selected)
        try plan.run(query: query, key: key, value: value, output: output, logSumExp: nil, on: pool)
        return plan.density
    }

    public mutating func reset() { state.reset() }
}

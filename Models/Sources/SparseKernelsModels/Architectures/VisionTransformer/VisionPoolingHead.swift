internal import SparseKernels

/// SigLIP's head: one learned query attends to all tokens of a picture, and an MLP follows.
///
///     h = O·softmax(q·kᵀ / √headDim)·v + o        pooled = h + D·f(U·LayerNorm h + u) + d
struct VisionPoolingHead: Sendable {
    struct Weights {
        /// `[1, 1, width]`.
        var probe: Tensor<Float>
        /// `[3 · width, width]`: query, key and value.
        var input: VisionLayerWeights.Affine
        var output: VisionLayerWeights.Affine
        var norm: VisionLayerWeights.Affine
        var up: VisionLayerWeights.Affine
        var down: VisionLayerWeights.Affine
    }

    private let configuration: VisionLayerConfiguration
    /// `[1, width]`: the projected query, which is the same for every picture.
    private let query: Tensor<Float>
    private let keyValue: FloatLinear
    private let output: FloatLinear
    private let norm: LayerNorm
    private let up: FloatLinear
    private let down: FloatLinear

    init(
        _ weights: Weights, _ c: VisionLayerConfiguration, instructionSet: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        configuration = c
        let (width, input) = (c.width, weights.input)
        func rows(_ range: Range<Int>) throws(SparseKernelsError) -> FloatLinear {
            let elements = Array(input.weight.elements[range.lowerBound * width..<range.upperBound * width])
            let bias = try input.bias.map { bias throws(SparseKernelsError) in
                try Tensor<Float>([range.count], Array(bias.elements[range]))
            }
            return try FloatLinear(
                weight: Tensor<Float>([range.count, width], elements), bias: bias, instructionSet: instructionSet, on: pool)
        }
        query = try rows(0..<width)(Tensor<Float>([1, width], weights.probe.elements), on: pool)
        keyValue = try rows(width..<3 * width)
        output = try FloatLinear(
            weight: weights.output.weight, bias: weights.output.bias, instructionSet: instructionSet, on: pool)
        norm = try LayerNorm(
            channels: width, weight: weights.norm.weight, bias: weights.norm.bias, epsilon: c.epsilon,
            instructionSet: instructionSet)
        guard c.activation != .quickGELU else {
            throw SparseKernelsError(
                .invalidArgument, "activation", expected: "gelu or geluTanh for a head that pools", actual: "quickGELU")
        }
        up = try FloatLinear(
            weight: weights.up.weight, bias: weights.up.bias, epilogue: c.activation == .gelu ? .geluErf : .gelu,
            instructionSet: instructionSet, on: pool)
        down = try FloatLinear(
            weight: weights.down.weight, bias: weights.down.bias, instructionSet: instructionSet, on: pool)
    }

    /// The pooled rows of some pictures, `[pictures, width]`, from normalised tokens, `[pictures · tokens, width]`.
    func callAsFunction(
        _ tokens: Tensor<Float>, pictures: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let (c, count) = (configuration, tokens.shape[0] / pictures)
        let shape = try AttentionShape(
            queryLength: 1, keyLength: count, queryHeads: c.heads, kvHeads: c.heads, headDim: c.headDim)
        let attention = try DenseAttention(shape, instructionSet: output.instructionSet)
        let rows = try keyValue(tokens, on: pool)
        var attended = try Tensor<Float>(zeros: [pictures, c.width])
        for picture in 0..<pictures {
            let all = try rows.view(headDim: c.headDim, named: "rows").tokens(picture * count..<(picture + 1) * count)
            let geometry = try TensorGeometry(heads: c.heads, tokens: 1, channels: c.headDim, layout: .nhd)
            let start = picture * c.width
            let target = attended.mutableSpan._consumingExtracting(start...)
            try attention.run(
                query: query.view(headDim: c.headDim, named: "query"), key: all.heads(0..<c.heads),
                value: all.heads(c.heads..<2 * c.heads),
                output: MutableTensorView(target, geometry: geometry, named: "output"), on: pool)
        }
        var pooled = try output(attended, on: pool)
        let update = try down(up(norm(pooled, on: pool), on: pool), on: pool)
        pooled.update { position, element in element += update[flat: position] }
        return pooled
    }
}

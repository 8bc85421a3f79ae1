internal import PS3
internal import SparseKernels

/// `ps3.attention_with_low_res_prefix`: a module of attention over low-resolution tokens, and over other tokens after them; and
/// `PrefixAttention` over the same keys.
///
/// Tolerance, as recorded with the cases: 10⁻⁵ against float64.
func replayPS3Attention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var headDim: Int
        var heads: Int
        var hasNorm: Bool
        var normEpsilon: Float
        var width: Int

        enum CodingKeys: String, CodingKey {
            case headDim = "head_dim"
            case hasNorm = "qk_norm"
            case normEpsilon = "qk_norm_eps"
            case heads, width
        }
    }
    let (file, parameters) = (golden.file, try golden.parameters(Parameters.self))
    let (heads, headDim, width) = (parameters.heads, parameters.headDim, parameters.width)
    func affine(_ name: String) throws(SparseKernelsError) -> VisionLayerWeights.Affine {
        .init(weight: try file.floatTensor("in.param.\(name).weight"), bias: try file.floatTensor("in.param.\(name).bias"))
    }
    let (projection, output) = (try affine("qkv"), try affine("proj"))
    let (queryNorm, keyNorm) = try parameters.hasNorm ? (affine("q_norm"), affine("k_norm")) : (nil, nil)
    let ones = VisionLayerWeights.Affine(weight: try Tensor([width]) { _ in 1 })
    let attention = try VisionAttention(
        VisionLayerConfiguration(
            width: width, heads: heads, headDim: headDim, hidden: 1, headEpsilon: parameters.normEpsilon),
        VisionLayerWeights(
            attentionNorm: ones, queryKeyValue: projection, queryNorm: queryNorm, keyNorm: keyNorm, projection: output,
            mlpNorm: ones, up: ones, down: ones),
        instructionSet: instructionSet, on: pool)
    let (low, high) = (try file.floatTensor("in.low"), try file.floatTensor("in.high"))
    var (lowOutput, highOutput) = (try Tensor<Float>(zeros: low.shape), try Tensor<Float>(zeros: high.shape))
    var (keys, workspace) = (VisionKeys(), VisionWorkspace())
    try attention.run(low, into: &lowOutput, keeping: &keys, workspace: &workspace, on: pool)
    try attention.run(high, into: &highOutput, after: keys, workspace: &workspace, on: pool)

    // The same without a copy of the prefix, which also gives the log-sum-exp.
    let tokens = high.shape[0]
    var projected = try FloatLinear(weight: projection.weight, bias: projection.bias, instructionSet: instructionSet)(
        high, on: pool)
    let geometry = try TensorGeometry(heads: 3 * heads, tokens: tokens, channels: headDim, layout: .nhd)
    for (norm, first) in [(queryNorm, 0), (keyNorm, heads)] {
        guard let norm else { continue }
        try LayerNorm(
            channels: headDim, weight: norm.weight, bias: norm.bias, epsilon: parameters.normEpsilon,
            instructionSet: instructionSet
        ).normalize(
            MutableTensorView(projected.mutableSpan, geometry: geometry).heads(first..<first + heads), on: pool)
    }
    let plan = try PrefixAttention(
        AttentionShape(queryLength: tokens, keyLength: tokens, queryHeads: heads, kvHeads: heads, headDim: headDim),
        prefixLength: low.shape[0], instructionSet: instructionSet)
    var attended = try Tensor<Float>(zeros: [tokens, width])
    var logSumExp = try Tensor<Float>(zeros: [heads, tokens])
    let rows = try TensorView(projected.span, geometry: geometry)
    let (prefixKey, prefixValue) = (try keys.keys.view(), try keys.values.view())
    try plan.run(
        query: rows.heads(0..<heads), prefixKey: prefixKey, prefixValue: prefixValue, key: rows.heads(heads..<2 * heads),
        value: rows.heads(2 * heads..<3 * heads), output: attended.mutableView(headDim: headDim),
        logSumExp: logSumExp.mutableSpan, on: pool)
    let merged = try FloatLinear(weight: output.weight, bias: output.bias, instructionSet: instructionSet)(attended, on: pool)

    var comparison = GoldenComparison()
    for (name, tensor) in [
        ("aux.f64_o_low", lowOutput), ("aux.f64_o_high", highOutput), ("aux.f64_o_high", merged),
        ("aux.f64_lse_high", logSumExp),
    ] {
        let expected = try file.tensor(name, as: Double.self)
        for index in 0..<expected.count {
            comparison.compare(
                "\(name)[\(index)]", actual: Double(tensor[flat: index]), expected: expected[flat: index], bound: 1e-5)
        }
    }
    let cache = try Tensor<Float>([2] + keys.keys.shape, keys.keys.elements + keys.values.elements)
    try comparison.compare(cache, "out.low_kv_cache", in: file, bound: 1e-5)
    return comparison.result(golden)
}

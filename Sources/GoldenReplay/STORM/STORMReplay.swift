internal import STORM
internal import SparseKernels

/// `storm.bidirectional_mamba_layer`: a layer in each recorded combination of the directions, and the last state of the forward scan.
///
/// Tolerance, as recorded with the cases: 2·10⁻⁵ and 10⁻⁵ of the value, against float64.
func replaySTORMLayer(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var convolutionWidth: Int
        var rank: Int
        var expansion: Int
        var epsilon: Float
        var stateSize: Int
        var width: Int
        var variants: [String: String]

        enum CodingKeys: String, CodingKey {
            case convolutionWidth = "conv_width"
            case rank = "dt_rank"
            case expansion = "expand"
            case epsilon = "layernorm_eps"
            case stateSize = "state"
            case width, variants
        }
    }
    let file = golden.file
    let parameters = try golden.parameters(Parameters.self)
    func direction(_ name: String) throws(SparseKernelsError) -> STORMDirectionWeights {
        STORMDirectionWeights(
            convolution: try file.floatTensor("in.\(name).conv_weight"),
            convolutionBias: try file.floatTensor("in.\(name).conv_bias"),
            projection: try file.floatTensor("in.\(name).x_proj"), stepProjection: try file.floatTensor("in.\(name).dt_proj"),
            stepBias: try file.floatTensor("in.\(name).dt_bias"), aLog: try file.floatTensor("in.\(name).A_log"),
            skip: try file.floatTensor("in.\(name).D"))
    }
    let combinations: [String: STORMCombination] = [
        "average": .average, "concat": .concatenation, "forward_only": .forwardOnly, "sum_separate": .sumSeparate,
        "sum_shared": .sumShared,
    ]
    var comparison = GoldenComparison()
    for name in parameters.variants.keys.sorted() {
        guard let combination = combinations[name] else {
            throw SparseKernelsError(
                .malformedFile, "params of \(golden.name), variants",
                expected: combinations.keys.sorted().joined(separator: ", "),
                actual: name)
        }
        let configuration = STORMConfiguration(
            width: parameters.width, stateSize: parameters.stateSize, expansion: parameters.expansion, dtRank: parameters.rank,
            convolutionWidth: parameters.convolutionWidth, combination: combination, epsilon: parameters.epsilon)
        let weights = STORMLayerWeights(
            normWeight: try file.floatTensor("in.ln_weight"), normBias: try file.floatTensor("in.ln_bias"),
            inputProjection: try file.floatTensor("in.in_proj"), forward: try direction("fwd"), backward: try direction("bwd"),
            outputProjection: try file.floatTensor(combination == .concatenation ? "in.out_proj_concat" : "in.out_proj"))
        let encoder = try STORMEncoder([weights], configuration, instructionSet: instructionSet)
        let states = try encoder.makeStates()
        var x = try file.floatTensor("in.x")
        try encoder.run(&x, states: states, on: pool)
        let expected = try file.tensor("aux.\(name).f64_y", as: Double.self)
        for index in 0..<expected.count {
            let value = expected[flat: index]
            comparison.compare(
                "aux.\(name).f64_y[\(index)]", actual: Double(x[flat: index]), expected: value, bound: 2e-5 + 1e-5 * abs(value))
        }
        let last = try file.floatTensor("out.fwd_last_state")
        let state = try states.scanStates(ofLayer: 0).state(of: 0)
        for index in 0..<last.count {
            let (channel, n) = index.quotientAndRemainder(dividingBy: parameters.stateSize)
            let value = Double(last[flat: index])
            comparison.compare(
                "out.fwd_last_state[\(index)], \(name)", actual: Double(state[0, n, channel]), expected: value,
                bound: 2e-5 + 1e-5 * abs(value))
        }
    }
    return comparison.result(golden)
}

/// `storm.token_reduction`: pooling and sampling, alone and one after the other.
///
/// Tolerance, as recorded with the cases: 10⁻⁶, against float64 where it is recorded; indices exact.
func replaySTORMReduction(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var samplingRate: Int
        var spatialPool: [Int]
        var temporalPool: Int

        enum CodingKeys: String, CodingKey {
            case samplingRate = "sampling_rate"
            case spatialPool = "spatial_pool_kernel"
            case temporalPool = "temporal_pool"
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let (k, p, s) = (parameters.temporalPool, parameters.spatialPool[0], parameters.samplingRate)
    let x = try golden.file.floatTensor("in.x")
    var comparison = GoldenComparison()
    for (name, reduction) in [
        ("out.temporal_pool", try STORMTokenReduction(temporalPool: k)), ("out.spatial_pool", try .init(spatialPool: p)),
        ("out.spatial_then_temporal", try .init(temporalPool: k, spatialPool: p)),
        ("out.sampling_only", try .init(samplingRate: s)),
        ("out.temporal_pool_then_sampling", try .init(temporalPool: k, samplingRate: s)),
    ] {
        let (y, expected) = (try reduction(x, on: pool), try golden.file.floatTensor(name))
        guard y.shape == expected.shape else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(y.shape)", actual: "\(expected.shape)")
        }
        for index in 0..<expected.count {
            comparison.compare(
                "\(name)[\(index)]", actual: Double(y[flat: index]), expected: Double(expected[flat: index]), bound: 1e-6)
        }
    }
    for (name, pooled) in [("out.sampled_frames_after_pooling", k), ("out.sampled_frames_without_pooling", 1)] {
        let expected = try golden.file.tensor(name, as: Int32.self).elements.map(Int.init)
        let frames = try STORMTokenReduction(temporalPool: pooled, samplingRate: s).sampledFrames(of: x.shape[0])
        for index in 0..<max(frames.count, expected.count) {
            comparison.compare(
                "\(name)[\(index)]", actual: index < frames.count ? Double(frames[index]) : -1,
                expected: index < expected.count ? Double(expected[index]) : -1, bound: 0)
        }
    }
    return comparison.result(golden)
}

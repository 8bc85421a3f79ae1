internal import SparseKernels
internal import SparseKernelsTraining
internal import SparseLoRA

/// `sparselora.attention_projections`: estimators, scores, channels, and the projections forward and backward with their adapters, as
/// released and as intended; and whole attention modules as released.
///
/// Channels are equal; values agree within 10⁻⁵ of the largest of their tensor against float64, and twice that against the released ones.
/// Gradients of whole modules have twice the tolerance.
func replaySparseAttention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(AttentionParameters.self)
    let item = SparseLoRACase(
        golden: golden, set: instructionSet, pool: pool, batch: parameters.batch, length: parameters.length,
        dense: parameters.from..<parameters.to)
    var comparison = GoldenComparison()
    let x = try item.matrix("in.x")
    let estimator = try AttentionEstimator(
        query: item.matrix("in.w_q"), key: item.matrix("in.w_k"), value: item.matrix("in.w_v"), heads: parameters.heads,
        kvHeads: parameters.kvHeads, rank: parameters.rank, method: .full, on: pool)
    for (name, part) in [("q", estimator.query), ("k", estimator.key), ("v", estimator.value)] {
        try item.compare("out.estimator_\(name)_product", part, &comparison)
    }
    for mode in SparseLoRAConfiguration.Mode.allCases {
        let scores = try estimator.scores(x.matrixView(), mode: mode, instructionSet: instructionSet, on: pool)
        let channels = try estimator.channels(
            x.matrixView(), sparsity: parameters.sparsity, mode: mode, instructionSet: instructionSet, on: pool)
        let prefix = mode == .released ? "out.indices_" : "aux.intended_indices_"
        for (name, subset) in [("q", channels.query), ("k", channels.key), ("v", channels.value)] {
            try item.compare(prefix + name, subset, &comparison)
        }
        if mode == .released {
            for name in ["out.scores_qk", "aux.f64_scores_qk"] { try item.compare(name, scores.queryKey, &comparison) }
            for name in ["out.scores_v", "aux.f64_scores_v"] { try item.compare(name, scores.value, &comparison) }
        } else {
            try item.compare("aux.intended_indices_o", channels.output, &comparison)
            try item.compare("aux.intended_scores_qk", scores.queryKey, &comparison)
        }
        let module = try AttentionModule(item, parameters, channels, mode)
        for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
            let split = try item.split(variant.masks)
            if name.hasSuffix("_full") {
                if mode == .released { try module.compareWhole(x, split, name, &comparison) }
            } else {
                try module.compareProjections(x, split, name, &comparison)
            }
        }
    }
    return comparison.result(golden)
}

struct AttentionParameters: Decodable {
    struct Variant: Decodable {
        var masks: String
    }
    var batch: Int
    var length: Int
    var from: Int
    var to: Int
    var heads: Int
    var kvHeads: Int
    var headDim: Int
    var rank: Int
    var sparsity: Double
    var loraRank: Int
    var loraScaling: Float
    var variants: [String: Variant]

    enum CodingKeys: String, CodingKey {
        case batch = "B"
        case length = "L"
        case from = "dense_from"
        case to = "dense_to"
        case kvHeads = "kv_heads"
        case headDim = "head_dim"
        case loraRank = "lora_rank"
        case loraScaling = "lora_scaling"
        case heads, rank, sparsity, variants
    }
}

/// The projections of a recorded attention module.
private struct AttentionModule {
    let item: SparseLoRACase
    let parameters: AttentionParameters
    let mode: SparseLoRAConfiguration.Mode
    let projections: [String: (projection: SparseProjection, channels: ChannelSubset, factors: LoRAFactors)]

    init(
        _ item: SparseLoRACase, _ parameters: AttentionParameters, _ channels: AttentionChannels,
        _ mode: SparseLoRAConfiguration.Mode
    ) throws(SparseKernelsError) {
        self.item = item
        self.parameters = parameters
        self.mode = mode
        var projections: [String: (projection: SparseProjection, channels: ChannelSubset, factors: LoRAFactors)] = [:]
        for (name, subset) in [
            ("q", channels.query), ("k", channels.key), ("v", channels.value), ("o", channels.output),
        ] {
            projections[name] = (
                try SparseProjection(
                    weight: item.matrix("in.w_\(name)"), picking: name == "o" ? .inputs : .outputs,
                    loraRank: parameters.loraRank, instructionSet: item.set, on: item.pool), subset,
                try item.factors(name, scale: parameters.loraScaling)
            )
        }
        self.projections = projections
    }

    /// One projection forward.
    func run(
        _ name: String, _ x: Tensor<Float>, _ split: TokenSplit?, _ tape: inout SparseProjection.Tape
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let part = projections[name]!
        var y = try Tensor<Float>(zeros: [x.shape[0], part.projection.outFeatures])
        var workspace = SparseLoRAWorkspace()
        try part.projection.run(
            x: x.matrixView(), split: split, channels: part.channels, lora: part.factors, tape: &tape, workspace: &workspace,
            y: y.mutableMatrixView(), on: item.pool)
        return y
    }

    /// One projection backward. The gradient of x is added to `dx`.
    func gradient(
        _ name: String, _ dy: Tensor<Float>, _ x: Tensor<Float>, _ tape: SparseProjection.Tape, addingTo dx: inout Tensor<Float>
    ) throws(SparseKernelsError) -> (a: Tensor<Float>, b: Tensor<Float>) {
        let part = projections[name]!
        var a = try Tensor<Float>(zeros: part.factors.a.shape)
        var b = try Tensor<Float>(zeros: part.factors.b.shape)
        var workspace = SparseLoRAWorkspace()
        try part.projection.gradient(
            dy.matrixView(), x: x.matrixView(), lora: part.factors, aGradient: &a, bGradient: &b, tape: tape,
            workspace: &workspace, dx: dx.mutableMatrixView(), accumulates: true, passesFrozenGradient: mode == .intended,
            on: item.pool)
        return (a, b)
    }

    /// Single projections with recorded gradients of their outputs. Those of x add up over queries, keys and values.
    func compareProjections(
        _ x: Tensor<Float>, _ split: TokenSplit?, _ variant: String, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let attention = try item.matrix("in.attn")
        let prefixes = mode == .released ? ["out.\(variant).", "aux.\(variant).f64_"] : ["aux.\(variant).intended_"]
        var dx = try Tensor<Float>(zeros: x.shape)
        var dAttention = try Tensor<Float>(zeros: attention.shape)
        for name in ["q", "k", "v", "o"] {
            var tape = SparseProjection.Tape()
            let input = name == "o" ? attention : x
            let y = try run(name, input, split, &tape)
            let dy = try item.matrix("in.grad_\(name)")
            let gradients =
                name == "o"
                ? try gradient(name, dy, input, tape, addingTo: &dAttention)
                : try gradient(name, dy, input, tape, addingTo: &dx)
            for prefix in prefixes {
                try item.compare(prefix + name, y.elements, &comparison)
                try item.compare(prefix + "grad_a_" + name, gradients.a.elements, &comparison)
                try item.compare(prefix + "grad_b_" + name, gradients.b.elements, &comparison)
            }
        }
        for prefix in prefixes {
            try item.compare(prefix + "qkv_grad_x", dx.elements, &comparison)
            try item.compare(prefix + "o_grad_attn", dAttention.elements, &comparison)
        }
    }

    /// The whole module: projections, rotation, causal attention, output projection, and back.
    func compareWhole(
        _ x: Tensor<Float>, _ split: TokenSplit?, _ variant: String, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        var tapes = Array(repeating: SparseProjection.Tape(), count: 4)
        let q = try run("q", x, split, &tapes[0])
        let k = try run("k", x, split, &tapes[1])
        let v = try run("v", x, split, &tapes[2])
        var attention = SparseLoRAAttention(
            parameters, cos: try item.matrix("in.rope_cos"), sin: try item.matrix("in.rope_sin"))
        let output = try attention.run(query: q, key: k, value: v)
        let y = try run("o", output, split, &tapes[3])
        let dy = try item.matrix("in.grad_o")
        var dOutput = try Tensor<Float>(zeros: output.shape)
        _ = try gradient("o", dy, output, tapes[3], addingTo: &dOutput)
        let (dq, dk, dv) = try attention.gradient(dOutput)
        var dx = try Tensor<Float>(zeros: x.shape)
        _ = try gradient("q", dq, x, tapes[0], addingTo: &dx)
        _ = try gradient("k", dk, x, tapes[1], addingTo: &dx)
        _ = try gradient("v", dv, x, tapes[2], addingTo: &dx)
        for prefix in ["out.\(variant).", "aux.\(variant).f64_"] {
            try item.compare(prefix + "y", y.elements, &comparison)
            // Rounded queries and keys meet scores of several tens: the released gradient is 9·10⁻⁶ from float64, too.
            try item.compare(prefix + "grad_x", dx.elements, factor: 2, &comparison)
        }
    }
}

internal import SparseKernels
internal import SparseKernelsTraining
internal import SparseLoRA

/// `sparselora.mlp`: estimators, scores, channels, and the layer forward and backward, as released (with plain weights) and as intended (with
/// adapters, which the released code cannot run).
///
/// Channels are equal; values agree within 10⁻⁵ of the largest of their tensor against float64, and twice that against the released ones.
func replaySparseMLP(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(MLPParameters.self)
    let item = SparseLoRACase(
        golden: golden, set: instructionSet, pool: pool, batch: parameters.batch, length: parameters.length,
        dense: parameters.from..<parameters.to)
    var comparison = GoldenComparison()
    let gate = try item.matrix("in.w_gate")
    let up = try item.matrix("in.w_up")
    let x = try item.matrix("in.x")
    let estimator = try MLPEstimator(gate: gate, up: up, rank: parameters.rank, method: .full, on: pool)
    try item.compare("out.estimator_gate_product", estimator.gate, &comparison)
    try item.compare("out.estimator_up_product", estimator.up, &comparison)
    var channels: [String: ChannelSubset] = [:]
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        guard let averages = variant.averages else { continue }
        let tokens: MLPEstimator.Tokens = averages ? .sequenceMeans : .all
        let scores = try estimator.scores(
            x.matrixView(), batch: parameters.batch, tokens: tokens, instructionSet: instructionSet, on: pool)
        try item.compare("aux.\(name).f64_scores", scores, &comparison)
        try item.compare("out.\(name).scores", scores, &comparison)
        let kept = try estimator.channels(
            x.matrixView(), batch: parameters.batch, sparsity: parameters.sparsity, tokens: tokens,
            instructionSet: instructionSet,
            on: pool)
        try item.compare("out.\(name).indices", kept, &comparison)
        channels[name] = kept
    }
    let layer = try SparseMLP(
        gate: gate, up: up, down: item.matrix("in.w_down"), loraRank: parameters.loraRank, instructionSet: instructionSet,
        on: pool)
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        guard let masks = variant.masks else { continue }
        let split = try item.split(masks)
        let kept = channels[variant.indices ?? ""]
        if name.hasPrefix("lora") {
            try replayAdapted(item, layer, x, split, kept, parameters.loraScaling, name, &comparison)
        } else {
            try replayPlain(item, layer, x, split, kept, name, &comparison)
        }
    }
    return comparison.result(golden)
}

private func replayPlain(
    _ item: SparseLoRACase, _ layer: SparseMLP, _ x: Tensor<Float>, _ split: TokenSplit?, _ channels: ChannelSubset?,
    _ name: String, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let dy = try item.matrix("in.grad_y")
    var y = try Tensor<Float>(zeros: x.shape)
    var dx = try Tensor<Float>(zeros: x.shape)
    var tape = SparseMLP.Tape()
    var workspace = SparseLoRAWorkspace()
    try layer.run(
        x: x.matrixView(), split: split, channels: channels, tape: &tape, workspace: &workspace, y: y.mutableMatrixView(),
        on: item.pool)
    try layer.gradient(dy.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView(), on: item.pool)
    for prefix in ["out.\(name).", "aux.\(name).f64_"] {
        try item.compare(prefix + "y", y.elements, &comparison)
        try item.compare(prefix + "grad_x", dx.elements, &comparison)
    }
}

private func replayAdapted(
    _ item: SparseLoRACase, _ layer: SparseMLP, _ x: Tensor<Float>, _ split: TokenSplit?, _ channels: ChannelSubset?,
    _ scale: Float, _ name: String, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let dy = try item.matrix("in.grad_y")
    var y = try Tensor<Float>(zeros: x.shape)
    var dx = try Tensor<Float>(zeros: x.shape)
    var tape = SparseMLP.Tape()
    var workspace = SparseLoRAWorkspace()
    let adapters = MLPAdapters(
        gate: try item.factors("gate", scale: scale), up: try item.factors("up", scale: scale),
        down: try item.factors("down", scale: scale))
    func zeros(_ factors: LoRAFactors?) throws(SparseKernelsError) -> LoRAFactors? {
        guard let factors else { return nil }
        return try LoRAFactors(
            a: Tensor(zeros: factors.a.shape), b: Tensor(zeros: factors.b.shape), scale: factors.scale)
    }
    var gradients = MLPAdapters(
        gate: try zeros(adapters.gate), up: try zeros(adapters.up), down: try zeros(adapters.down))
    try layer.run(
        x: x.matrixView(), split: split, channels: channels, adapters: adapters, tape: &tape, workspace: &workspace,
        y: y.mutableMatrixView(), on: item.pool)
    try layer.gradient(
        dy.matrixView(), x: x.matrixView(), adapters: adapters, gradients: &gradients, tape: tape, workspace: &workspace,
        dx: dx.mutableMatrixView(), on: item.pool)
    let prefix = "aux.\(name).intended_"
    try item.compare(prefix + "y", y.elements, &comparison)
    try item.compare(prefix + "grad_x", dx.elements, &comparison)
    for (part, gradient) in [("gate", gradients.gate), ("up", gradients.up), ("down", gradients.down)] {
        guard let gradient else { continue }
        try item.compare(prefix + "grad_a_" + part, gradient.a.elements, &comparison)
        try item.compare(prefix + "grad_b_" + part, gradient.b.elements, &comparison)
    }
}

private struct MLPParameters: Decodable {
    struct Variant: Decodable {
        var averages: Bool?
        var masks: String?
        /// The variant whose channels are used.
        var indices: String?

        enum CodingKeys: String, CodingKey {
            case averages = "seq_avg"
            case masks, indices
        }
    }
    var batch: Int
    var length: Int
    var from: Int
    var to: Int
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
        case loraRank = "lora_rank"
        case loraScaling = "lora_scaling"
        case rank, sparsity, variants
    }
}

import SparseKernels
import SparseKernelsModels
import SparseLoRA

/// The estimators of the blocks that leave channels out.
struct ChannelEstimators: Sendable {
    /// Sparsities may change, but only of parts that had one from the start.
    var configuration: SparseLoRAConfiguration
    private let mlp: [MLPEstimator?]
    private let attention: [AttentionEstimator?]

    /// Decomposes the weights of the blocks that have a sparsity.
    /// - Throws: `.invalidArgument` for a configuration of another number of layers or with numbers out of range.
    init(
        _ model: FrozenModel, _ configuration: SparseLoRAConfiguration, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let c = model.configuration
        try configuration.validate(layerCount: c.layers)
        self.configuration = configuration
        let files = try ModelFiles(folder: model.name)
        let shapes = c.linearShapes
        var (mlp, attention): ([MLPEstimator?], [AttentionEstimator?]) = ([], [])
        for (index, layer) in configuration.layers.enumerated() {
            func weight(_ name: String) throws(SparseKernelsError) -> Tensor<Float> {
                try files.tensor("model.layers.\(index).\(name).weight", shapes[name]!)
            }
            let rank = configuration.estimatorRank
            mlp.append(
                layer.mlp == nil
                    ? nil
                    : try MLPEstimator(
                        gate: weight("mlp.gate_proj"), up: weight("mlp.up_proj"),
                        rank: min(rank, c.hiddenSize, c.intermediateSize),
                        function: c.activation, on: pool))
            let narrowest = min(c.hiddenSize, c.kvHeads * c.headDim)
            attention.append(
                layer.attention == nil
                    ? nil
                    : try AttentionEstimator(
                        query: weight("self_attn.q_proj"), key: weight("self_attn.k_proj"), value: weight("self_attn.v_proj"),
                        heads: c.queryHeads, kvHeads: c.kvHeads, rank: min(rank, narrowest), on: pool))
        }
        (self.mlp, self.attention) = (mlp, attention)
    }

    /// The channels of a block's attention; nil where all of them run.
    func attentionChannels(
        _ block: Int, _ x: MatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> AttentionChannels? {
        guard let sparsity = configuration.layers[block].attention, let estimator = attention[block] else { return nil }
        return try estimator.channels(x, sparsity: sparsity, mode: configuration.mode, on: pool)
    }

    /// The channels of a block's MLP; nil where all of them run.
    func mlpChannels(
        _ block: Int, _ x: MatrixView<Float>, sequences: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> ChannelSubset? {
        guard let sparsity = configuration.layers[block].mlp, let estimator = mlp[block] else { return nil }
        return try estimator.channels(
            x, batch: sequences, sparsity: sparsity, tokens: configuration.averagesSequences ? .sequenceMeans : .all, on: pool)
    }
}

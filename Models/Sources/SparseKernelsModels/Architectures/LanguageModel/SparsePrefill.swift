internal import MInference
internal import SpargeAttention
import SparseKernels
internal import XAttention

/// Attention of a chunk of one sequence, in one layer, by a sparse method over the keys that the cache has.
struct SparsePrefill {
    private let shape: AttentionShape
    private let method: PrefillMethod
    private let modifiers: ScoreModifiers
    private let isRetrieval: [Bool]?

    /// - Throws: `.invalidArgument` for parameters of the method out of their domain.
    init(
        _ model: LanguageModel, _ method: PrefillMethod, _ options: SessionOptions, layer: Int, queries: Int, keys: Int
    ) throws(SparseKernelsError) {
        let c = model.configuration
        shape = try AttentionShape(
            queryLength: queries, keyLength: keys, queryHeads: c.queryHeads, kvHeads: c.kvHeads, headDim: c.headDim)
        self.method = method
        modifiers = model.modifiers(layer: layer)
        isRetrieval = options.retrievalHeads?[layer]
    }

    /// Throws the errors of the method's parameters, before there is a prompt.
    static func check(_ model: LanguageModel, _ options: SessionOptions) throws(SparseKernelsError) {
        let c = model.configuration
        let plan = try SparsePrefill(model, options.prefill, options, layer: 0, queries: 1, keys: 1)
        let zeros = try Tensor<Float>(zeros: [c.queryHeads, 1, c.headDim])
        let keys = try Tensor<Float>(zeros: [c.kvHeads, 1, c.headDim])
        _ = try plan.plan(query: zeros.view(named: "query"), key: keys.view(named: "key"), on: .serial)
    }

    /// Attends the queries of rows from `row` on into the same rows of `output`.
    /// - Returns: the pairs that were computed, and those of dense causal attention.
    func run<K: AttentionElement, V: AttentionElement>(
        query: TensorView<Float>, key: TensorView<K>, value: TensorView<V>, _ heads: HeadRows, row: Int, count: Int,
        into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> (attended: Int, reachable: Int) {
        let plan = try plan(query: query, key: key, on: pool)
        let width = heads.queryHeads * heads.headDim
        var elements = output.mutableSpan
        try plan.run(
            query: query, key: key, value: value,
            output: MutableTensorView(
                elements._mutatingExtracting((row * width)...), geometry: heads.outputGeometry(tokens: count), named: "output"),
            on: pool)
        let offset = shape.keyLength - shape.queryLength
        let reachable = (2 * offset + shape.queryLength + 1) * shape.queryLength / 2 * shape.queryHeads
        return (plan.visiblePairs, reachable)
    }

    /// The keys of each query. Selections are those of the papers; how scores become probabilities is the model's.
    private func plan<K: AttentionElement>(
        query: TensorView<Float>, key: TensorView<K>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> BlockSparseAttention {
        let scale = modifiers.softmaxScale
        switch method {
        case .dense:
            return try patterns([.dense])
        case .xAttention(let threshold, let stride):
            let method = try XAttentionPrefill(
                shape, XAttentionConfiguration(stride: stride, softmaxScale: scale), threshold: threshold)
            return try BlockSparseAttention(
                shape, mask: method.select(query: query, key: key, on: pool).mask, modifiers: modifiers)
        case .mInference(let vertical, let slash):
            let method = try MInferencePrefill(
                shape, heads: [.verticalSlash(vertical: vertical, slash: slash)], softmaxScale: scale)
            return try patterns(method.patterns(query: query, key: key, on: pool))
        case .sparge(let keepRatio):
            var configuration = SpargeAttentionConfiguration(isCausal: true)
            configuration.modifiers = modifiers
            let method = try SpargeAttentionPrefill(shape, configuration, heads: [.keepRatio(keepRatio)])
            return try method.attention(over: method.select(query: query, key: key, on: pool))
        case .streaming(let sink, let local):
            return try patterns([.streaming(sink: sink, local: local)])
        case .lServe(let sink, let local):
            guard let isRetrieval else { return try patterns([.dense]) }
            return try patterns(isRetrieval.map { $0 ? .dense : .streaming(sink: sink, local: local) })
        }
    }

    private func patterns(_ heads: [HeadPattern]) throws(SparseKernelsError) -> BlockSparseAttention {
        try BlockSparseAttention(shape, heads: heads, isCausal: true, modifiers: modifiers)
    }
}

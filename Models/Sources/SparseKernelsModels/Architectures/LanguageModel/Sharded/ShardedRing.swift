import SequenceParallel
import SparseKernels

/// Attention of a prompt over itself, spread over ranks: keys and values go round a ring, and each rank's queries stay where they
/// are (``SequenceParallelAttention``). For n tokens of a pass that is n · 2·kvHeads·headDim elements per rank and layer, which is
/// less than queries and outputs are.
///
/// Ranks send keys and values as the cache has stored them, so that a prompt is as it would be in chunks.
struct ShardedRing {
    private let model: LanguageModel
    private let ranks: SessionRanks
    /// Layers with the same window share a plan and its memory.
    private var plans: [Int?: SequenceParallelAttention] = [:]
    private var shards: TokenShards?

    init(_ model: LanguageModel, _ ranks: SessionRanks) { (self.model, self.ranks) = (model, ranks) }

    /// Whether the pass has the tokens of one sequence from its start on.
    var isOn: Bool { shards != nil }

    /// Learned logits are another plan in every layer, which is too much memory; such models do without a ring.
    mutating func begin(_ shards: TokenShards) { if !model.hasSinks { self.shards = shards } }

    mutating func end() {
        shards = nil
        plans = [:]
    }

    /// Attends the queries of this rank's rows.
    ///
    /// - Parameters:
    ///   - cache: has the keys and values of the pass, and `name` is their sequence.
    mutating func attend(
        _ heads: HeadRows, _ cache: ShardedKVCache, _ name: ShardedKVCache.SequenceID, layer: Int,
        into output: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let plan = try plan(layer: layer)
        let stored = try cache.localName(of: name)
        let (keys, values) = (try cache.local.keys(of: stored, layer: layer), try cache.local.values(of: stored, layer: layer))
        switch (cache.configuration.keyFormat, cache.configuration.valueFormat) {
        // Of one type, and not wider than they are stored.
        case (.bfloat16, .bfloat16):
            try run(plan, heads, try keys.converted(to: BFloat16.self), try values.converted(to: BFloat16.self), &output, pool)
        #if !(os(macOS) && arch(x86_64))
            case (.float16, .float16):
                try run(
                    plan, heads, try keys.converted(to: Float16.self), try values.converted(to: Float16.self), &output, pool)
        #endif
        default: try run(plan, heads, keys, values, &output, pool)
        }
    }

    private mutating func plan(layer: Int) throws(SparseKernelsError) -> SequenceParallelAttention {
        let c = model.configuration
        let window = c.slidingWindows[layer]
        if let plan = plans[window] { return plan }
        let plan = try SequenceParallelAttention(
            shards!, queryHeads: c.queryHeads, kvHeads: c.kvHeads, headDim: c.headDim,
            mask: window.map { .causal(window: $0) } ?? .causal, modifiers: model.modifiers(layer: layer),
            on: ranks.communicator)
        plans[window] = plan
        return plan
    }

    private func run<Element: AttentionElement>(
        _ plan: SequenceParallelAttention, _ heads: HeadRows, _ keys: Tensor<Element>, _ values: Tensor<Element>,
        _ output: inout Tensor<Float>, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let geometry = try heads.geometry(heads: heads.queryHeads)
        let query = try TensorView(heads.elements.span, geometry: geometry, named: "query")
        let (key, value) = (try keys.view(named: "key"), try values.view(named: "value"))
        let outputGeometry = try heads.outputGeometry()
        try plan.run(
            query: query, key: key, value: value,
            output: MutableTensorView(output.mutableSpan, geometry: outputGeometry, named: "output"), on: pool)
    }
}

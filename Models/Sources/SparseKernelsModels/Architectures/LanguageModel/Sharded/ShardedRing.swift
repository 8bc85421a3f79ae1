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
        let formats = (cache.configuration.keyFormat, cache.configuration.valueFormat)
        if formats == (.float32, .float32) {
            let geometry = try heads.geometry(heads: heads.kvHeads)
            let span = heads.elements.span
            // A rank without rows may have no memory behind the first, either.
            let (first, second) = heads.rows == 0 ? (0, 0) : (heads.keyOffset, heads.valueOffset)
            let key = try TensorView(span.extracting(first...), geometry: geometry, named: "key")
            let value = try TensorView(span.extracting(second...), geometry: geometry, named: "value")
            try run(plan, heads, key, value, &output, pool)
            return
        }
        let stored = try cache.localName(of: name)
        let (keys, values) = (try cache.local.keys(of: stored, layer: layer), try cache.local.values(of: stored, layer: layer))
        switch formats {
        // Of one type, and not wider than they are stored.
        case (.bfloat16, .bfloat16):
            let (key, value) = (
                try Self.narrowed(keys, to: BFloat16.self, on: pool), try Self.narrowed(values, to: BFloat16.self, on: pool)
            )
            try run(plan, heads, key.view(named: "key"), value.view(named: "value"), &output, pool)
        #if !(os(macOS) && arch(x86_64))
            case (.float16, .float16):
                let (key, value) = (
                    try Self.narrowed(keys, to: Float16.self, on: pool), try Self.narrowed(values, to: Float16.self, on: pool)
                )
                try run(plan, heads, key.view(named: "key"), value.view(named: "value"), &output, pool)
        #endif
        default: try run(plan, heads, keys.view(named: "key"), values.view(named: "value"), &output, pool)
        }
    }

    /// The same numbers in a type that holds them.
    private static func narrowed<Element: AttentionElement>(
        _ numbers: Tensor<Float>, to type: Element.Type, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Element> {
        var result = try Tensor<Element>(zeros: numbers.shape)
        let span = numbers.span
        var elements = result.mutableSpan
        span.withUnsafeBufferPointer { source in
            elements.withUnsafeMutableBufferPointer { target in
                nonisolated(unsafe) let (source, target) = (source, target)
                pool.forEachRange(of: source.count, workPerItem: 8) { range in
                    for index in range { target[index] = Element(source[index]) }
                }
            }
        }
        return result
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
        _ plan: SequenceParallelAttention, _ heads: HeadRows, _ key: TensorView<Element>, _ value: TensorView<Element>,
        _ output: inout Tensor<Float>, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let geometry = try heads.geometry(heads: heads.queryHeads)
        let query = try TensorView(heads.elements.span, geometry: geometry, named: "query")
        let outputGeometry = try heads.outputGeometry()
        try plan.run(
            query: query, key: key, value: value,
            output: MutableTensorView(output.mutableSpan, geometry: outputGeometry, named: "output"), on: pool)
    }
}

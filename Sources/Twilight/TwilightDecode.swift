public import SparseKernels

/// Twilight (Lin et al., NeurIPS 2025, arXiv 2502.02770): a selector with a generous budget, then as few of its tokens as hold a
/// fraction p of their attention mass, then exact attention over those.
///
/// ```swift
/// let configuration = try TwilightDecode.cache(layers: 32, kvHeads: 8, headDim: 128, pageCapacity: 4096)
/// let cache = try PagedKVCache(configuration)
/// let twilight = try TwilightDecode(queryHeads: 32, configuration: configuration)
/// let step = try twilight.decode(query: query, cache: cache, sequences: sequences, layer: layer)
/// print(step.state.output.shape, step.meanTokens)
/// ```
///
/// The mass is estimated from a 4-bit copy of the keys that the cache keeps, and is a fraction of what the selector kept: with
/// `.everything` of the whole sequence.
///
/// - Complexity: per key/value head of headDim d and length L, with pages of 16, a budget B₀ and B₁ kept tokens, a step reads L/8·d
///   numbers of page metadata, B₀·d/2 bytes of estimates, and the keys and values of B₁ tokens.
/// - Scratch: that of `PageSelector`, `TokenPruner` and `PagedAttention`, one after the other.
public struct TwilightDecode: Sendable {
    /// The first step: which tokens are candidates.
    public enum Selector: Hashable, Sendable {
        /// The pages of the highest bounds. The cache must have metadata of minima and maxima.
        case quest(Budget)
        /// The first tokens and the last ones. Static: it costs nothing.
        case streaming(sink: Int, recent: Int)
        /// All tokens.
        case everything
    }

    /// B₀: tokens of a sequence that the selector keeps.
    public enum Budget: Hashable, Sendable {
        case tokens(Int)
        /// This fraction of each sequence, rounded down. The paper suggests 1/4.
        case fraction(Double)
    }

    /// Where paper and released code differ.
    public enum Rule: String, Hashable, Sendable, CaseIterable {
        /// The query heads of a group share a list in both steps, the union in the second one. The last page is always a candidate.
        /// The bisection starts from the largest weight.
        case paper
        /// Every query head has lists of its own. The last page is a page as any other. The bisection starts from the weight of token
        /// 0, and keeps far more than p where that is no sink.
        case released
    }

    /// What one decoding step did.
    public struct Step: Sendable {
        /// Output `[queryHeads, sequences, valueDim]` and LSE over the tokens that were read.
        public let state: AttentionState
        /// What was kept; nil in a dense layer.
        public let pruning: TokenPruning?

        /// Tokens that a list has, on average over sequences and heads; nil in a dense layer.
        public var meanTokens: Double? { pruning?.meanTokens }
    }

    public let selector: Selector
    public let rule: Rule
    /// The first layers, in which all tokens are read.
    public let denseLayers: Int
    /// The second step.
    public let pruner: TokenPruner
    /// The third step.
    public let attention: PagedAttention
    let configuration: KVCacheConfiguration

    /// - Parameters:
    ///   - queryHeads: a multiple of `kvHeads`.
    ///   - configuration: of the caches to decode from; `cache` makes one.
    ///   - selector: the first step. The released configurations have a budget of 8192 tokens.
    ///   - topP: p. 0.85 in the released configurations; the paper has 0.95 for Llama-2 and Llama-3.
    ///   - rule: of the paper, or of the released code.
    ///   - denseLayers: 2 in the released configurations.
    ///   - softmaxScale: nil: 1/√headDim.
    ///   - instructionSet: of the attention; nil: the best, or what `SPARSEKERNELS_ISA` names.
    /// - Throws: `.invalidShape` for query heads that are not a multiple; `.invalidArgument` for a budget below 1 token or outside
    ///   0…1, negative sinks, fewer than 1 recent token, a negative number of layers, a p outside 0…1, and for `.quest` without
    ///   metadata; `.unsupportedInstructionSet`.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, selector: Selector = .quest(.tokens(8192)), topP: Double = 0.85,
        rule: Rule = .paper, denseLayers: Int = 2, softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(denseLayers >= 0, .invalidArgument, "denseLayers", expected: "at least 0", actual: "\(denseLayers)")
        pruner = try TokenPruner(
            queryHeads: queryHeads, configuration: configuration, topP: topP, sharing: rule == .paper ? .kvHead : .queryHead,
            upperBound: rule == .paper ? .maximum : .firstWeight, softmaxScale: softmaxScale)
        attention = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, modifiers: ScoreModifiers(softmaxScale: softmaxScale),
            instructionSet: instructionSet)
        self.selector = selector
        self.rule = rule
        self.denseLayers = denseLayers
        self.configuration = configuration
        switch selector {
        case .quest(.tokens(let count)):
            _ = try pageSelector(tokenBudget: count)
        case .quest(.fraction(let fraction)):
            try require(
                fraction > 0 && fraction <= 1, .invalidArgument, "selector.quest.fraction", expected: "above 0 and at most 1",
                actual: "\(fraction)")
            _ = try pageSelector(tokenBudget: 1)
        case .streaming(let sink, let recent):
            try require(sink >= 0, .invalidArgument, "selector.streaming.sink", expected: "at least 0", actual: "\(sink)")
            try require(
                recent >= 1, .invalidArgument, "selector.streaming.recent", expected: "at least 1", actual: "\(recent)")
        case .everything: break
        }
    }

    /// A cache as the paper has it: pages with minima and maxima, and a 4-bit copy of the keys.
    ///
    /// - Parameters:
    ///   - layers: attention layers that share the page tables.
    ///   - kvHeads: key/value heads of a layer.
    ///   - headDim: channels of keys, and of values unless `valueDim` says otherwise.
    ///   - valueDim: channels of values; nil: `headDim`.
    ///   - pageSize: 16 in the released configurations (`chunk_size`).
    ///   - pageCapacity: pages of the pool.
    ///   - format: of keys and values.
    /// - Throws: as `KVCacheConfiguration`.
    public static func cache(
        layers: Int = 1, kvHeads: Int, headDim: Int, valueDim: Int? = nil, pageSize: Int = 16, pageCapacity: Int,
        format: KVFormat = .float16
    ) throws(SparseKernelsError) -> KVCacheConfiguration {
        try KVCacheConfiguration(
            layers: layers, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, pageSize: pageSize,
            pageCapacity: pageCapacity, format: format, metadata: PageMetadata(.minMax, logicalPageSize: pageSize),
            keepsKeyEstimates: true)
    }

    // MARK: - Steps

    /// Select, prune, attend: one query token of every sequence, which is the last token of its sequence.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`. With rotary positions applied, as the keys have.
    ///   - cache: holds the sequences' last tokens already; nothing may write it meanwhile.
    ///   - sequences: of any lengths.
    ///   - layer: whose keys and values are read. The first `denseLayers` layers are not pruned.
    ///   - pool: the threads to use.
    /// - Returns: output and LSE, and what was kept.
    /// - Throws: as `PageSelector.select`, `TokenPruner.prune` and `PagedAttention` do.
    public func decode<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Step {
        let tables = try PageTables(of: sequences, in: cache, layer: layer)
        var pruning: TokenPruning?
        if layer >= denseLayers {
            pruning = try prune(query: query.view(named: "query"), cache: cache, tables: tables, layer: layer, on: pool)
        }
        let state = try attention(
            query: query, cache: cache, tables: tables, layer: layer, selection: pruning?.selection, on: pool)
        return Step(state: state, pruning: pruning)
    }

    /// Select and prune, whatever the layer. Arguments and errors are those of `decode`.
    public func prune<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenPruning {
        try prune(
            query: query, cache: cache, tables: PageTables(of: sequences, in: cache, layer: layer), layer: layer, on: pool)
    }

    private func prune<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, tables: PageTables, layer: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> TokenPruning {
        let candidates = try select(query: query, cache: cache, tables: tables, layer: layer, on: pool)
        return try pruner.prune(
            query: query, cache: cache, tables: tables, layer: layer, within: candidates, on: pool)
    }
}

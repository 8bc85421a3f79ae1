public import SparseKernels

/// Twilight (Lin et al., NeurIPS 2025, arXiv 2502.02770): decoding with a selector of generous budget, whose tokens are pruned
/// to the smallest set with a fraction p of their attention mass, and exact attention over that set.
///
/// ```swift
/// let configuration = try TwilightDecode.cache(layers: 32, kvHeads: 8, headDim: 128, pageCapacity: 4096)
/// let cache = try PagedKVCache(configuration)
/// let twilight = try TwilightDecode(queryHeads: 32, configuration: configuration)
/// let step = try twilight.decode(query: query, cache: cache, sequences: sequences, layer: layer)
/// print(step.state.output.shape, step.meanTokens)
/// ```
///
/// The mass is estimated from a 4-bit copy of the keys in the cache. It is a fraction of the mass of the selector's tokens;
/// with `.everything`, of the whole sequence.
///
/// - Complexity: per key/value head of headDim d and length L, with pages of 16, a budget B₀ and B₁ kept tokens, a step reads
///   L/8·d numbers of page metadata, B₀·d/2 bytes for estimates, and the keys and values of B₁ tokens.
/// - Scratch: that of `PageSelector`, `TokenPruner` and `PagedAttention`, which run one after the other.
public struct TwilightDecode: Sendable {
    /// The first step, which selects the candidates.
    public enum Selector: Hashable, Sendable {
        /// The pages with the highest bounds. The cache must have minima and maxima as metadata.
        case quest(Budget)
        /// The first and the last tokens. This selection is static and costs nothing.
        case streaming(sink: Int, recent: Int)
        /// All tokens.
        case everything
    }

    /// B₀, the number of tokens of a sequence that the selector keeps.
    public enum Budget: Hashable, Sendable {
        case tokens(Int)
        /// This fraction of each sequence, rounded down. The paper suggests 1/4.
        case fraction(Double)
    }

    /// The version to follow where the paper and the released code differ.
    public enum Rule: String, Hashable, Sendable, CaseIterable {
        /// The query heads of a group share a list in both steps; in the second step it is the union. The last page is always a
        /// candidate. The bisection starts from the largest weight.
        case paper
        /// Every query head has its own lists. The last page has no special treatment. The bisection starts from the weight of
        /// token 0, and so keeps far more than p when token 0 is not a sink.
        case released
    }

    /// The result of one decoding step.
    public struct Step: Sendable {
        /// Output `[queryHeads, sequences, valueDim]` and LSE over the kept tokens.
        public let state: AttentionState
        /// The kept tokens; nil in a dense layer.
        public let pruning: TokenPruning?

        /// Mean number of kept tokens over sequences and heads; nil in a dense layer.
        public var meanTokens: Double? { pruning?.meanTokens }
    }

    public let selector: Selector
    public let rule: Rule
    /// Number of layers at the start that attend to all tokens.
    public let denseLayers: Int
    /// The second step.
    public let pruner: TokenPruner
    /// The third step.
    public let attention: PagedAttention
    let configuration: KVCacheConfiguration

    /// - Parameters:
    ///   - queryHeads: a multiple of `kvHeads`.
    ///   - configuration: the configuration of the caches, such as one made by `cache`.
    ///   - selector: the first step. The released configurations have a budget of 8192 tokens.
    ///   - topP: the fraction p. 0.85 in the released configurations; the paper uses 0.95 for Llama-2 and Llama-3.
    ///   - rule: the paper's rule or the released one.
    ///   - denseLayers: 2 in the released configurations.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level of the attention; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for query heads that are not a multiple; `.invalidArgument` for a budget below 1 token or
    ///   outside 0…1, negative sinks, fewer than 1 recent token, a negative number of layers, a p outside 0…1, and `.quest`
    ///   without metadata; `.unsupportedInstructionSet`.
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

    /// A cache configuration as in the paper: minima and maxima of pages, and a 4-bit copy of the keys.
    ///
    /// - Parameters:
    ///   - layers: attention layers that share the page tables.
    ///   - kvHeads: key/value heads of a layer.
    ///   - headDim: channels of keys, and of values unless `valueDim` says otherwise.
    ///   - valueDim: channels of values; nil means `headDim`.
    ///   - pageSize: 16 in the released configurations (`chunk_size`).
    ///   - pageCapacity: pages of the pool.
    ///   - format: storage format of keys and values.
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

    /// Performs one step of decoding: selects, prunes and attends, for the last token of every sequence.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`, with rotary positions applied as in the keys.
    ///   - cache: a cache that already has the sequences' last tokens and that nothing changes during the call.
    ///   - sequences: sequences of any lengths.
    ///   - layer: the layer of the cache that is read. The first `denseLayers` layers are not pruned.
    ///   - pool: the threads to use.
    /// - Returns: output, LSE and the kept tokens.
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

    /// Selects and prunes, in any layer. Arguments and errors are those of `decode`.
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

public import SparseKernels

/// Quest (Tang et al., ICML 2024, arXiv 2406.10774): decoding over the pages whose keys have the highest possible scores.
///
/// ```swift
/// let configuration = try QuestDecode.cache(layers: 32, kvHeads: 32, headDim: 128, pageCapacity: 2048)
/// let quest = try QuestDecode(queryHeads: 32, configuration: configuration, tokenBudget: 2048)
/// let state = try quest(query: query, cache: cache, sequences: [sequence], layer: layer)
/// ```
///
/// Append a step's keys before the call: the query belongs to the last token. Prompts use dense attention, by `DenseAttention`
/// or by `attention` without a selection.
///
/// - Results are bitwise the same for every number of threads.
/// - Source: Algorithm 1; `evaluation/quest_attention.py` and `quest/` of mit-han-lab/Quest.
/// - Complexity: for a context of L tokens, a step reads L/pageSize metadata rows and `tokenBudget` tokens.
public struct QuestDecode: Sendable {
    /// Which of the two released implementations selects pages.
    public enum Rule: String, Hashable, Sendable, CaseIterable {
        /// `evaluation/`: all pages are candidates, including the last one, which is being filled; at least 3 are kept.
        case releasedEvaluation
        /// `quest/`, the CUDA path: the last page is always kept and counts in the budget; there is no other minimum.
        case releasedKernels
    }

    public let rule: Rule
    /// Number of layers at the start that attend to everything.
    public let denseLayers: Int
    public let selector: PageSelector
    /// The attention over `selector`'s pages, or over everything without a selection.
    public let attention: PagedAttention

    /// A cache configuration for Quest, with minima and maxima for every page.
    ///
    /// - Parameters:
    ///   - layers: layers of the model.
    ///   - kvHeads: key/value heads of a layer.
    ///   - headDim: channels of keys, and of values unless `valueDim` says otherwise.
    ///   - valueDim: channels of values; nil means `headDim`.
    ///   - pageSize: 16 in the paper and in all released scripts.
    ///   - pageCapacity: pages of the pool.
    ///   - format: storage format of keys and values.
    /// - Throws: as `KVCacheConfiguration`.
    public static func cache(
        layers: Int = 1, kvHeads: Int, headDim: Int, valueDim: Int? = nil, pageSize: Int = 16, pageCapacity: Int,
        format: KVFormat = .float16
    ) throws(SparseKernelsError) -> KVCacheConfiguration {
        try KVCacheConfiguration(
            layers: layers, kvHeads: kvHeads, headDim: headDim, valueDim: valueDim, pageSize: pageSize,
            pageCapacity: pageCapacity, format: format, metadata: PageMetadata(.minMax, logicalPageSize: pageSize))
    }

    /// - Parameters:
    ///   - queryHeads: a multiple of the cache's `kvHeads`.
    ///   - configuration: the configuration of the caches, such as one made by `cache(…)`.
    ///   - tokenBudget: largest number of tokens that a step reads, `tokenBudget` / `pageSize` pages, rounded down.
    ///   - rule: the released implementation to follow.
    ///   - sharing: one list per query head, as in both releases, or one per key/value head, which reads pages once per group.
    ///   - denseLayers: 2 in the paper; 0 for none.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidArgument` for a negative `denseLayers`; otherwise as `PageSelector` and `PagedAttention`.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, tokenBudget: Int, rule: Rule = .releasedKernels,
        sharing: SelectionSharing = .queryHead, denseLayers: Int = 2, softmaxScale: Float? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(denseLayers >= 0, .invalidArgument, "denseLayers", expected: "at least 0", actual: "\(denseLayers)")
        self.rule = rule
        self.denseLayers = denseLayers
        selector = try PageSelector(
            queryHeads: queryHeads, configuration: configuration, tokenBudget: tokenBudget, sharing: sharing,
            forcedLast: rule == .releasedKernels ? 1 : 0, minimumPages: rule == .releasedKernels ? 1 : 3)
        attention = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, modifiers: ScoreModifiers(softmaxScale: softmaxScale),
            instructionSet: instructionSet)
    }

    /// The pages of a step; nil in dense layers. Parameters and errors are those of `PageSelector.select`.
    public func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection? {
        if layer < denseLayers { return nil }
        return try selector.select(query: query, cache: cache, sequences: sequences, layer: layer, on: pool)
    }

    /// Performs one step of decoding: selects pages and attends to them.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`: token i is the last one of `sequences[i]`.
    ///   - cache: a cache that already has the keys and values of these tokens.
    ///   - sequences: sequences of any lengths.
    ///   - layer: a layer of the cache; those below `denseLayers` are dense.
    ///   - pool: the threads to use.
    /// - Throws: as `PageSelector.select` and `PagedAttention.run`.
    public func callAsFunction<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let tables = try PageTables(of: sequences, in: cache, layer: layer)
        let selection =
            layer < denseLayers
            ? nil
            : try selector.select(query: query.view(named: "query"), cache: cache, tables: tables, layer: layer, on: pool)
        return try attention(
            query: query, cache: cache, tables: tables, layer: layer, selection: selection, on: pool)
    }
}

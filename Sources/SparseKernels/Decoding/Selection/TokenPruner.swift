internal import KernelInterface

/// Prunes the tokens that a decoding step reads to a fraction of the attention mass. This is Twilight's second step.
///
/// The candidates of a query head are the tokens that any selector chose, or all tokens. They are scored in 4 bits,
///
///     w = softmax(softmaxScale · q·k̂)  over the candidates only          kept = {i : w_i > t},  Σ_kept w ≥ p
///
/// where k̂ are the key estimates that the cache keeps. A bisection finds t without sorting (`TopP.bisection`). So p is a
/// fraction of the candidates' mass, and fewer tokens are kept where attention is focused than where it is spread.
///
/// ```swift
/// let pruner = try TokenPruner(queryHeads: 32, configuration: cache.configuration, topP: 0.85)
/// let pruning = try pruner.prune(query: query.view(), cache: cache, sequences: [sequence], within: pages)
/// let state = try attention(query: query.view(), cache: cache, sequences: [sequence], selection: pruning.selection)
/// ```
///
/// In a cache without estimates, keys are scored: 4-bit keys at the same cost, others exactly and with more memory traffic.
///
/// - A row of scores with NaN or +∞ has no softmax. It keeps every candidate whose weight is not 0, so that attention
///   propagates such values.
/// - Results are bitwise the same for every number of threads and for every batch.
/// - Source: Twilight (Lin et al., NeurIPS 2025, arXiv 2502.02770), section 4 and Algorithm 1. `Twilight` has its defaults.
/// - Complexity: reads headDim/2 + 4 bytes per candidate and key/value head; headDim multiply-adds per candidate and query
///   head, and about 15 passes over the few weights that matter. A task is a key/value head of a sequence.
/// - Scratch: per thread 8 bytes per candidate, and 4 bytes per candidate for each query head of a group and once more; 4 bytes
///   per candidate and list for the call. The result is 4 bytes per kept token and list.
public struct TokenPruner: Sendable {
    public let queryHeads: Int
    /// The configuration of the caches: heads, `headDim` and `pageSize` must agree with it.
    public let configuration: KVCacheConfiguration
    /// The fraction of the candidates' mass to keep.
    public let topP: Double
    /// With `.kvHead`, a group shares the union of the tokens that its query heads keep. Every token is read once per group.
    public let sharing: SelectionSharing
    /// The start of the bisection. `.firstWeight` is the weight of token 0 of the sequence, as in the released kernel, or 0
    /// when it is not a candidate. When it is small, nearly everything is kept.
    public let upperBound: TopP.BisectionUpperBound
    /// The bisection ends when the weights between its bounds differ by no more than this.
    public let epsilon: Float
    public let softmaxScale: Float

    /// The number of lists per sequence.
    public var lists: Int { sharing == .kvHead ? configuration.kvHeads : queryHeads }

    /// - Parameters:
    ///   - queryHeads: a multiple of the cache's `kvHeads`.
    ///   - configuration: that of the caches to prune in, which should keep key estimates.
    ///   - topP: 0…1. At least the token with the largest weight is kept.
    ///   - sharing: one list per key/value head, or per query head as in the released Python code.
    ///   - upperBound: the paper starts from the largest weight, the released kernel from that of token 0.
    ///   - epsilon: not negative; 10⁻⁵ in the released kernel. It is absolute: when all weights are smaller, the tokens above
    ///     half of the largest weight are kept if they have the mass, and otherwise all tokens.
    ///   - softmaxScale: nil is 1/√headDim.
    /// - Throws: `.invalidShape` for query heads that are not a multiple; `.invalidArgument` for the rest.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, topP: Double = 0.85, sharing: SelectionSharing = .kvHead,
        upperBound: TopP.BisectionUpperBound = .maximum, epsilon: Float = 1e-5, softmaxScale: Float? = nil
    ) throws(SparseKernelsError) {
        try require(
            queryHeads >= 1 && queryHeads % configuration.kvHeads == 0, .invalidShape, "queryHeads",
            expected: "a positive multiple of kvHeads (\(configuration.kvHeads))", actual: "\(queryHeads)")
        try TopP.checkMass(topP, named: "topP")
        try require(epsilon >= 0, .invalidArgument, "epsilon", expected: "at least 0", actual: "\(epsilon)")
        let scale = softmaxScale ?? 1 / Float(configuration.headDim).squareRoot()
        try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        self.queryHeads = queryHeads
        self.configuration = configuration
        self.topP = topP
        self.sharing = sharing
        self.upperBound = upperBound
        self.epsilon = epsilon
        self.softmaxScale = scale
    }

    /// Prunes for one query token of every sequence.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`, with rotary positions as in the keys. Token i is for `sequences[i]`.
    ///   - cache: must not be written during the call.
    ///   - sequences: may have any lengths. Empty ones keep nothing.
    ///   - layer: the layer whose keys are scored.
    ///   - candidates: pages or tokens that a selector kept, one list per key/value head or per query head, or nil for all
    ///     tokens. Tokens of discarded pages are not candidates.
    ///   - pool: the threads to use.
    /// - Returns: the kept tokens by position (`unit` is 1), ascending, and their mass.
    /// - Throws: `.invalidShape` for a query, a cache or candidates of other extents; `.invalidArgument` for candidates past
    ///   the end of their sequence and for a layer that the cache does not have; `.unknownSequence`.
    public func prune<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        within candidates: KVSelection? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenPruning {
        try check(query.geometry, cache, sequences: sequences.count)
        return try prune(
            query: query, cache: cache, tables: PageTables(of: sequences, in: cache, layer: layer), layer: layer,
            within: candidates, on: pool)
    }

    /// The same for sequences whose page tables the caller has.
    package func prune<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, tables: PageTables, layer: Int, within candidates: KVSelection?,
        on pool: WorkerPool
    ) throws(SparseKernelsError) -> TokenPruning {
        try check(query.geometry, cache, sequences: tables.sequences.count)
        if let candidates { try check(candidates, tables) }
        return TokenPruneCall.run(
            self, query: AttentionOperand(query), cache: cache, layer: layer,
            tables: ScoredPages(tables, rows: Array(tables.sequences.indices)), candidates: candidates, on: pool)
    }

    private func check(
        _ query: TensorGeometry, _ cache: PagedKVCache, sequences: Int
    ) throws(SparseKernelsError) {
        let (ours, theirs) = (configuration, cache.configuration)
        try require(
            theirs.kvHeads == ours.kvHeads && theirs.headDim == ours.headDim && theirs.pageSize == ours.pageSize, .invalidShape,
            "cache", expected: "one of \(ours.kvHeads) KV heads of \(ours.headDim) channels in pages of \(ours.pageSize)",
            actual: "one of \(theirs.kvHeads) of \(theirs.headDim) in pages of \(theirs.pageSize)")
        try require(
            query.heads == queryHeads && query.tokens == sequences && query.channels == ours.headDim, .invalidShape, "query",
            expected: "\(queryHeads) heads × \(sequences) sequences × \(ours.headDim) channels",
            actual: "\(query.heads) × \(query.tokens) × \(query.channels)")
    }

    private func check(_ candidates: KVSelection, _ tables: PageTables) throws(SparseKernelsError) {
        let (kvHeads, pageSize) = (configuration.kvHeads, configuration.pageSize)
        try require(
            candidates.sequences == tables.sequences.count && (candidates.heads == kvHeads || candidates.heads == queryHeads)
                && (candidates.unit == 1 || candidates.unit == pageSize), .invalidShape, "candidates",
            expected: "\(tables.sequences.count) sequences of \(kvHeads) or \(queryHeads) heads, in units of 1 or \(pageSize)",
            actual: "\(candidates.sequences) of \(candidates.heads), in units of \(candidates.unit)")
        for list in 0..<candidates.sequences * candidates.heads {
            let (begin, end) = (candidates.offsets[list], candidates.offsets[list + 1])
            if begin == end { continue }
            // Lists are ascending.
            let (last, length) = (Int(candidates.indices[end - 1]), tables.sequences[list / candidates.heads].length)
            try require(
                last * candidates.unit < length, .invalidArgument, "candidates.indices[\(end - 1)]",
                expected: length == 0
                    ? "left out, as its sequence has no tokens" : "within the \(length) tokens of its sequence",
                actual: candidates.unit == 1 ? "token \(last)" : "page \(last), from token \(last * candidates.unit) on")
        }
    }
}

/// The result of `TokenPruner`.
public struct TokenPruning: Equatable, Sendable {
    /// Positions of the kept tokens; `unit` is 1.
    public let selection: KVSelection
    /// Per sequence and query head, the mass of the tokens above the head's threshold among its candidates, by the estimates.
    /// At least `topP` up to rounding; NaN for a head without a softmax, and 0 without candidates. A head that shares its list
    /// also reads the tokens of its group's other heads, so that its mass is this or more.
    public let masses: [Float]

    /// Kept tokens per list, on average over sequences and heads.
    public var meanTokens: Double { Double(selection.indices.count) / Double(max(1, selection.sequences * selection.heads)) }
}

internal import KernelInterface

/// The heads that share a list of pages.
public enum SelectionSharing: String, Hashable, Sendable, CaseIterable {
    /// The query heads of a key/value head share one list and read every page once. A page's score is the largest of theirs.
    case kvHead
    /// Every query head has a list of its own, as in the released code of Quest and LServe.
    case queryHead
}

/// Selects the pages that a decoding step reads: those with the highest scores, up to a budget.
///
/// A page's metadata bounds the scores of its keys. With their channelwise maxima and minima,
///
///     score(logical page) = Σ_c max(q_c·kmax_c, q_c·kmin_c) ≥ q·k  for each of its keys;  no softmaxScale
///     score(page) = max over its logical pages that hold tokens
///
/// and with `.mean` metadata the score is q·k̄. A sequence of at most `tokenBudget` tokens keeps all pages. A longer one keeps
/// `pageBudget` pages: the first `forcedFirst`, the last `forcedLast`, and others by score. Of equal scores, the lower position
/// is kept. NaN scores, which only a query that is not finite has, come first.
///
/// ```swift
/// let selector = try PageSelector(queryHeads: 32, configuration: cache.configuration, tokenBudget: 2048)
/// let selection = try selector.select(query: query.view(), cache: cache, sequences: [sequence])
/// ```
///
/// - Results are bitwise the same for every number of threads and for every batch.
/// - Source: Quest (Tang et al., ICML 2024, arXiv 2406.10774), Algorithm 1; LServe (Yang et al., MLSys 2025, arXiv 2502.14866),
///   section 3.5. The modules `Quest` and `LServe` have their defaults.
/// - Complexity: reads one metadata row per logical page and key/value head; 2·headDim multiply-adds per query head and row;
///   ranking is O(pages).
/// - Scratch: 4 bytes per page and list of a call; per thread 4 bytes per page of a sequence, 8 KiB, and about 4 KiB per query
///   head of a group. The pool keeps all of it. The result is 4 bytes per kept page and list.
public struct PageSelector: Sendable {
    public let queryHeads: Int
    /// The configuration of the caches: heads, `headDim`, `pageSize` and metadata must agree with it.
    public let configuration: KVCacheConfiguration
    /// Tokens that a step may read. Divided by `pageSize` and rounded down, this is the budget of pages.
    public let tokenBudget: Int
    public let sharing: SelectionSharing
    /// Pages at the start that are always kept, as attention sinks.
    public let forcedFirst: Int
    /// Pages at the end that are always kept. 1 is the rule of LServe and of Quest's CUDA path. With 0, the last page, full or
    /// not, competes like any other, which is the rule of Quest's accuracy code.
    public let forcedLast: Int
    public let minimumPages: Int

    /// Pages that a long sequence keeps, including forced ones: max(`minimumPages`, ⌊`tokenBudget` / `pageSize`⌋).
    public var pageBudget: Int { max(minimumPages, tokenBudget / configuration.pageSize) }
    /// The number of lists per sequence.
    public var lists: Int { sharing == .kvHead ? configuration.kvHeads : queryHeads }

    let metadata: PageMetadata

    /// - Parameters:
    ///   - queryHeads: a multiple of the cache's `kvHeads`.
    ///   - configuration: that of the caches to select from. It must have metadata.
    ///   - tokenBudget: at least 1.
    ///   - sharing: one list per key/value head, or per query head.
    ///   - forcedFirst: pages at the start that are always kept.
    ///   - forcedLast: pages at the end that are always kept, with `forcedFirst` at most `pageBudget`.
    ///   - minimumPages: at least 1; 3 in Quest and in LServe.
    /// - Throws: `.invalidShape` for query heads that are not a multiple; `.invalidArgument` for the rest.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, tokenBudget: Int, sharing: SelectionSharing = .kvHead,
        forcedFirst: Int = 0, forcedLast: Int = 1, minimumPages: Int = 3
    ) throws(SparseKernelsError) {
        try require(
            queryHeads >= 1 && queryHeads % configuration.kvHeads == 0, .invalidShape, "queryHeads",
            expected: "a positive multiple of kvHeads (\(configuration.kvHeads))", actual: "\(queryHeads)")
        guard let metadata = configuration.metadata else {
            throw SparseKernelsError(
                .invalidArgument, "configuration.metadata", expected: "page metadata to score", actual: "nil")
        }
        for (name, value, least) in [
            ("tokenBudget", tokenBudget, 1), ("minimumPages", minimumPages, 1), ("forcedFirst", forcedFirst, 0),
            ("forcedLast", forcedLast, 0),
        ] {
            try require(value >= least, .invalidArgument, name, expected: "at least \(least)", actual: "\(value)")
        }
        self.queryHeads = queryHeads
        self.configuration = configuration
        self.tokenBudget = tokenBudget
        self.sharing = sharing
        self.forcedFirst = forcedFirst
        self.forcedLast = forcedLast
        self.minimumPages = minimumPages
        self.metadata = metadata
        let (forced, overflow) = forcedFirst.addingReportingOverflow(forcedLast)
        try require(
            !overflow && forced <= pageBudget, .invalidArgument, "forcedFirst, forcedLast",
            expected: "together at most the \(pageBudget) pages of the budget", actual: "\(forcedFirst), \(forcedLast)")
    }

    /// The number of pages that a sequence keeps.
    func keptCount(pages: Int, length: Int) -> Int { length <= tokenBudget ? pages : min(pageBudget, pages) }

    /// Selects for one query token of every sequence.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`, with rotary positions as in the keys. Token i is for `sequences[i]`.
    ///   - cache: must not be written during the call.
    ///   - sequences: may have any lengths. Empty ones keep nothing. Discarded pages are not selected.
    ///   - layer: the layer whose keys are scored.
    ///   - pool: the threads to use.
    /// - Returns: positions in the page tables (`unit` is `pageSize`), ascending.
    /// - Throws: `.invalidShape` for a query or a cache of other extents, `.unknownSequence`, `.invalidArgument` for a layer
    ///   that the cache does not have.
    public func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection {
        try check(query.geometry, cache, sequences: sequences.count)
        return try select(
            query: query, cache: cache, tables: PageTables(of: sequences, in: cache, layer: layer), layer: layer, on: pool)
    }

    /// Selects with page tables that the caller has, for all of their sequences or for some: those of the query tokens `rows`.
    package func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, tables: PageTables, rows: [Int]? = nil, layer: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> KVSelection {
        try check(query.geometry, cache, sequences: tables.sequences.count)
        return select(
            query: AttentionOperand(query), cache: cache, tables: tables, rows: rows ?? Array(tables.sequences.indices),
            layer: layer, on: pool)
    }

    /// Selects for some of the sequences: those of the query tokens `rows`, in that order.
    func select(
        query: AttentionOperand, cache: PagedKVCache, tables: PageTables, rows: [Int], layer: Int, on pool: WorkerPool
    ) -> KVSelection {
        var tables = ScoredPages(tables, rows: rows)
        let scorer = PageScorer(self, query: query, cache: cache, layer: layer)
        let listsPerHead = lists / configuration.kvHeads
        tables.cut(chunkPages: scorer.chunkPages, lists: lists) { sequence in
            let kept = keptCount(pages: sequence.pages.count, length: sequence.length)
            return kept < sequence.pages.count && kept > forcedFirst + forcedLast
        }
        var offsets = [0]
        offsets.reserveCapacity(rows.count * lists + 1)
        for sequence in tables.sequences {
            let kept = keptCount(pages: sequence.pages.count, length: sequence.length)
            for _ in 0..<lists { offsets.append(offsets[offsets.count - 1] + kept) }
        }
        let indices = [Int32](unsafeUninitializedCapacity: offsets[offsets.count - 1]) { buffer, count in
            count = offsets[offsets.count - 1]
            guard let positions = buffer.baseAddress else { return }
            pool.withWorkspace(byteCount: tables.keyCount * MemoryLayout<Int32>.stride) { workspace in
                let keys = workspace.bindMemory(to: Int32.self, capacity: tables.keyCount)
                tables.withAddresses { scored in
                    PageScoringCall(scorer: scorer, scored: scored, listsPerHead: listsPerHead, keys: keys).run(on: pool)
                    offsets.withUnsafeBufferPointer { offsets in
                        PageSelectionCall(
                            selector: self, scored: scored, maximumPages: tables.maximumPages, listsPerHead: listsPerHead,
                            keys: keys, offsets: offsets.baseAddress!, positions: positions
                        ).run(on: pool)
                    }
                }
            }
        }
        return KVSelection(
            unchecked: configuration.pageSize, sequences: rows.count, heads: lists, offsets: offsets, indices: indices)
    }

    /// Throws unless queries and cache have the extents that the selector expects.
    func check(_ query: TensorGeometry, _ cache: PagedKVCache, sequences: Int) throws(SparseKernelsError) {
        let (ours, theirs) = (configuration, cache.configuration)
        try require(
            theirs.kvHeads == ours.kvHeads && theirs.headDim == ours.headDim && theirs.pageSize == ours.pageSize
                && theirs.metadata == ours.metadata, .invalidShape, "cache",
            expected: "one of \(ours.kvHeads) KV heads of \(ours.headDim) channels in pages of \(ours.pageSize) with "
                + "\(ours.metadata.map { "\($0)" } ?? "no") metadata, as the selector has them",
            actual: "one of \(theirs.kvHeads) of \(theirs.headDim) in pages of \(theirs.pageSize) with "
                + "\(theirs.metadata.map { "\($0)" } ?? "no") metadata")
        try require(
            query.heads == queryHeads && query.tokens == sequences && query.channels == ours.headDim, .invalidShape, "query",
            expected: "\(queryHeads) heads × \(sequences) sequences × \(ours.headDim) channels",
            actual: "\(query.heads) × \(query.tokens) × \(query.channels)")
    }
}

/// Chooses the pages that a step of decoding reads, where the pages live on several ranks.
///
/// ```swift
/// let selector = try ShardedPageSelector(
///     PageSelector(queryHeads: 32, configuration: cache.configuration, tokenBudget: 4096), scope: .allRanks, on: ranks)
/// let state = try attention(query: query, cache: cache, sequences: [sequence], selector: selector)
/// ```
///
/// | Scope | Pages | Messages |
/// |---|---|---|
/// | `.eachRank` | the best of each rank, which reads `tokenBudget` / ranks tokens | none |
/// | `.allRanks` | the best of all: those of one machine, where runs are whole pages | one per rank, of its best scores |
///
/// With `.eachRank` every rank keeps its own first and last pages, as many as the selector forces. It reads the same on all
/// ranks, but misses pages where the best are on few of them. With `.allRanks` a rank may have more to read than others.
///
/// Pages are those of the ranks' caches. They are ranked as ``PageSelector`` ranks them; equal scores by the position of the
/// first token. Where runs are not whole pages, tokens that are far apart may share a page and its bounds.
///
/// - Source: the selectors of Quest and LServe; a union of the best of every part holds the best of the whole.
/// - Complexity: that of the selector for the own tokens; with `.allRanks` also O(ranks · budget · log) per list.
public final class ShardedPageSelector {
    /// Where pages compete.
    public enum Scope: Hashable, Sendable {
        /// On each rank for its part of the budget.
        case eachRank
        /// On all ranks for the whole budget.
        case allRanks
    }

    public let selector: PageSelector
    public let scope: Scope
    public let communicator: any Communicator
    /// The selector of a rank's part of the budget.
    private let part: PageSelector
    private var message: MessageBuffer

    /// Makes the selector. No message is sent.
    ///
    /// - Parameters:
    ///   - selector: the rule, with the budget of all ranks together.
    ///   - scope: where pages compete.
    ///   - communicator: that of the caches.
    public init(
        _ selector: PageSelector, scope: Scope, on communicator: any Communicator
    ) throws(SparseKernelsError) {
        self.selector = selector
        self.scope = scope
        self.communicator = communicator
        let ranks = communicator.count
        let (tokens, pages) = ((selector.tokenBudget - 1) / ranks + 1, (selector.minimumPages - 1) / ranks + 1)
        part = try PageSelector(
            queryHeads: selector.queryHeads, configuration: selector.configuration, tokenBudget: tokens,
            sharing: selector.sharing, forcedFirst: selector.forcedFirst, forcedLast: selector.forcedLast,
            minimumPages: max(pages, selector.forcedFirst + selector.forcedLast, 1))
        message = try MessageBuffer(byteCount: 0)
    }

    /// Selects for one query token of every sequence. Every rank calls it.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`, the same on all ranks. Token i is for `sequences[i]`.
    ///   - cache: must not be written during the call.
    ///   - sequences: may have any lengths. Discarded pages are not selected.
    ///   - layer: the layer whose keys are scored.
    ///   - pool: the threads to use.
    /// - Returns: pages of this rank: positions in the page tables of the local cache, ascending.
    /// - Throws: the errors of `PageSelector.select`; `.communication`.
    public func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: ShardedKVCache, sequences: [ShardedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection {
        guard cache.communicator === communicator else {
            throw SparseKernelsError(
                .invalidShape, "cache", expected: "of the ranks that the selector was made for", actual: "one of others")
        }
        var entries: [ShardedKVCache.Entry] = []
        for sequence in sequences { entries.append(try cache.entry(of: sequence)) }
        try cache.requireLayer(layer)
        if scope == .eachRank || communicator.count == 1 {
            return try (communicator.count == 1 ? selector : part).select(
                query: query, cache: cache.local, sequences: entries.map(\.name), layer: layer, on: pool)
        }
        return try selectFromAll(query, cache, entries, layer, on: pool)
    }

    /// Selects with a tensor. See `select` with a view.
    public func select<Q: AttentionElement>(
        query: Tensor<Q>, cache: ShardedKVCache, sequences: [ShardedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection {
        try select(query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, on: pool)
    }

    // MARK: - The best of all ranks

    private func selectFromAll<Q: AttentionElement>(
        _ query: TensorView<Q>, _ cache: ShardedKVCache, _ entries: [ShardedKVCache.Entry], _ layer: Int,
        on pool: WorkerPool
    ) throws(SparseKernelsError) -> KVSelection {
        guard query.heads == selector.queryHeads, query.tokens == entries.count else {
            throw SparseKernelsError(
                .invalidShape, "query", expected: "\(selector.queryHeads) heads × \(entries.count) sequences",
                actual: "\(query.heads) × \(query.tokens)")
        }
        let ranking = PageRanking(selector, ranks: communicator.count, entries: entries, layer: layer)
        if ranking.wordCount > 0 {
            let bytes = communicator.count * ranking.byteCount
            if message.byteCount < bytes { message = try MessageBuffer(byteCount: bytes) }
        }
        // What this rank has: its pages, and for sequences that compete their scores.
        var pages: [RankPages] = []
        for (index, entry) in entries.enumerated() {
            if ranking.competes(index) {
                let scores = try selector.pageScores(
                    query: query.tokens(index..<index + 1), cache: cache.local, sequence: entry.name, layer: layer, on: pool)
                pages.append(RankPages(scores, entry, cache))
                try ranking.write(pages[index], ofSequence: index, rank: communicator.rank, to: message)
            } else {
                let rows = entry.tokens.count(of: communicator.rank, below: entry.lengths[layer])
                let table = try cache.local.pageTable(of: entry.name).prefix(cache.pageCount(rows))
                pages.append(RankPages(table))
            }
        }
        if ranking.wordCount > 0 {
            try communicator.allGather(
                message, counts: Array(repeating: ranking.byteCount, count: communicator.count))
        }
        var (offsets, indices) = ([0], [Int32]())
        for (index, own) in pages.enumerated() {
            for list in 0..<selector.lists {
                if ranking.competes(index) {
                    indices += ranking.best(ofSequence: index, list: list, own, rank: communicator.rank, message)
                } else {
                    indices += own.positions
                }
                offsets.append(indices.count)
            }
        }
        return try KVSelection(
            unit: selector.configuration.pageSize, sequences: entries.count, heads: selector.lists, offsets: offsets,
            indices: indices)
    }
}

/// The pages of a rank in one sequence.
struct RankPages {
    /// Positions in the page table of the rank, ascending, without discarded pages.
    let positions: [Int32]
    /// The first token of each page.
    let tokens: [Int]
    /// Scores, `[lists, pages]`; nil where pages do not compete.
    let scores: Tensor<Float>?

    init(_ scores: PageScores, _ entry: ShardedKVCache.Entry, _ cache: ShardedKVCache) {
        positions = scores.positions
        let pageSize = cache.configuration.pageSize
        tokens = scores.positions.map { entry.tokens.token(ofRow: Int($0) * pageSize, of: cache.rank) }
        self.scores = scores.pages
    }

    init(_ table: ArraySlice<Int32>) {
        positions = table.indices.filter { table[$0] >= 0 }.map { Int32(truncatingIfNeeded: $0) }
        tokens = []
        scores = nil
    }
}

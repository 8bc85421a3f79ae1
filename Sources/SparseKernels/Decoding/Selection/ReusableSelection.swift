/// A page selection that is made every few steps and reused in between, because neighbouring queries want similar pages.
///
/// The lists of a sequence in a layer are made when its length is a multiple of `interval`, when there are none, and when it is
/// shorter than at the last call. Otherwise the previous lists are returned, **and every page that holds a token appended
/// since**. The length is that at the call. Call it before a step's token is appended, as LServe does, and add that token's
/// page with `KVSelection.covering`. Or call it afterwards, when the selection includes that page.
///
/// ```swift
/// var selection = try ReusableSelection(selector, interval: 4)
/// let pages = try selection.select(query: query.view(), cache: cache, sequences: sequences, layer: layer)
/// ```
///
/// Each sequence follows its own length, so that in a batch of different lengths it gets the same pages as alone.
///
/// - Source: LServe (arXiv 2502.14866), section 3.5.3, "reusable page selector". The released code returns the last list
///   unchanged, so that a page begun since is missing when the interval does not divide the page size. It takes one length
///   for a batch.
/// - Complexity: O(kept pages) for a step that reuses.
/// - Scratch: that of the selector, and 4 bytes per kept page and list for every sequence and layer, until `forget`.
public struct ReusableSelection: Sendable {
    public let selector: PageSelector
    /// Steps between selections. 1 selects at every step.
    public let interval: Int
    /// The number of selections made so far, counted by sequence and layer.
    public private(set) var selectionCount = 0

    private struct Key: Hashable {
        let sequence: PagedKVCache.SequenceID
        let layer: Int
    }

    private struct Entry {
        let length: Int
        let lists: [[Int32]]
    }

    private var entries: [Key: Entry] = [:]
    /// The number of entries at which those of freed sequences are removed.
    private var purgeCount = 64

    /// - Throws: `.invalidArgument` for an interval below 1.
    public init(_ selector: PageSelector, interval: Int = 4) throws(SparseKernelsError) {
        try require(interval >= 1, .invalidArgument, "interval", expected: "at least 1", actual: "\(interval)")
        self.selector = selector
        self.interval = interval
    }

    /// Selects, or returns the previous selection.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`, also when nothing is selected.
    ///   - cache: must be the same one at every call.
    ///   - sequences: each may appear once.
    ///   - layer: the layer whose keys are scored.
    ///   - pool: the threads to use.
    /// - Throws: as `PageSelector.select`, and `.invalidArgument`, with nothing remembered, for a sequence that appears twice.
    public mutating func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection {
        try selector.check(query.geometry, cache, sequences: sequences.count)
        try require(
            Set(sequences).count == sequences.count, .invalidArgument, "sequences", expected: "different sequences",
            actual: "one of them twice")
        let tables = try PageTables(of: sequences, in: cache, layer: layer)
        let lengths = tables.lengths
        let due = sequences.indices.filter {
            isDue(entries[Key(sequence: sequences[$0], layer: layer)], length: lengths[$0])
        }
        let fresh = selector.select(
            query: AttentionOperand(query), cache: cache, tables: tables, rows: due, layer: layer, on: pool)
        purge(cache)
        for (index, row) in due.enumerated() {
            entries[Key(sequence: sequences[row], layer: layer)] = Entry(
                length: lengths[row], lists: (0..<fresh.heads).map { Array(fresh.list(sequence: index, head: $0)) })
        }
        selectionCount += due.count
        if due.count == sequences.count { return fresh }
        return try remembered(sequences, lengths: lengths, layer: layer)
    }

    private func isDue(_ entry: Entry?, length: Int) -> Bool {
        guard let entry else { return true }
        return length % interval == 0 || length < entry.length
    }

    /// The previous lists of every sequence, with the pages of the tokens that were appended since.
    private func remembered(
        _ sequences: [PagedKVCache.SequenceID], lengths: [Int], layer: Int
    ) throws(SparseKernelsError) -> KVSelection {
        var result = KVSelectionLists()
        var appended: [Range<Int>] = []
        for (row, sequence) in sequences.enumerated() {
            // Every sequence either has an entry or was selected for in this call.
            let entry = entries[Key(sequence: sequence, layer: layer)]!
            for list in entry.lists {
                result.append(list)
                result.endList()
            }
            appended.append(entry.length..<lengths[row])
        }
        let heads = selector.lists
        return try result.selection(unit: selector.configuration.pageSize, sequences: sequences.count, heads: heads)
            .covering(appended)
    }

    /// Forgets a sequence in every layer, so that the next step selects. Call this after its tokens were overwritten,
    /// or truncated and replaced by others.
    public mutating func forget(_ sequence: PagedKVCache.SequenceID) {
        entries = entries.filter { $0.key.sequence != sequence }
    }

    /// Removes the entries of sequences that were freed, whenever the number of entries has doubled.
    private mutating func purge(_ cache: PagedKVCache) {
        if entries.count < purgeCount { return }
        entries = entries.filter { (try? cache.length(of: $0.key.sequence, layer: $0.key.layer)) != nil }
        purgeCount = max(64, 2 * entries.count)
    }
}

public import SparseKernels

extension TwilightDecode {
    /// Runs the first step alone, in any layer: the pages or tokens that are candidates of the second step; nil for all tokens.
    ///
    /// Arguments and errors are those of `decode`.
    public func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection? {
        try select(
            query: query, cache: cache, tables: PageTables(of: sequences, in: cache, layer: layer), layer: layer, on: pool)
    }

    func select<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, tables: PageTables, layer: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> KVSelection? {
        switch selector {
        case .everything: return nil
        case .streaming(let sink, let recent):
            return try streaming(tables.lengths, sink: sink, recent: recent)
        case .quest(.tokens(let count)):
            return try pageSelector(tokenBudget: count).select(
                query: query, cache: cache, tables: tables, layer: layer, on: pool)
        case .quest(.fraction(let fraction)):
            var lists = SelectionLists()
            for (row, length) in tables.lengths.enumerated() {
                // A selector has one budget for all sequences, but here every sequence has its own.
                let selector = try pageSelector(tokenBudget: max(1, Int(fraction * Double(length))))
                lists.append(
                    try selector.select(query: query, cache: cache, tables: tables, rows: [row], layer: layer, on: pool))
            }
            return try lists.selection(unit: configuration.pageSize, sequences: tables.lengths.count, heads: pruner.lists)
        }
    }

    func pageSelector(tokenBudget: Int) throws(SparseKernelsError) -> PageSelector {
        // The released selector rounds budgets up to whole pages.
        let pageSize = configuration.pageSize
        let isExact = tokenBudget % pageSize == 0 || tokenBudget < 1 || tokenBudget > Int.max - pageSize
        let rounded = isExact ? tokenBudget : (tokenBudget / pageSize + 1) * pageSize
        return try PageSelector(
            queryHeads: pruner.queryHeads, configuration: configuration, tokenBudget: rounded,
            sharing: rule == .paper ? .kvHead : .queryHead, forcedLast: rule == .paper ? 1 : 0, minimumPages: 1)
    }

    /// The first `sink` and the last `recent` tokens of sequences with the given lengths.
    private func streaming(_ lengths: [Int], sink: Int, recent: Int) throws(SparseKernelsError) -> KVSelection {
        var lists = SelectionLists()
        for length in lengths {
            let first = min(sink, length)
            for _ in 0..<configuration.kvHeads { lists.append(0..<first, max(first, length - min(recent, length))..<length) }
        }
        return try lists.selection(unit: 1, sequences: lengths.count, heads: configuration.kvHeads)
    }
}

/// The joined lists of several selections.
private struct SelectionLists {
    private var offsets = [0]
    private var indices: [Int32] = []

    /// Appends one list of two runs of tokens.
    mutating func append(_ first: Range<Int>, _ second: Range<Int>) {
        for token in first { indices.append(Int32(truncatingIfNeeded: token)) }
        for token in second { indices.append(Int32(truncatingIfNeeded: token)) }
        offsets.append(indices.count)
    }

    /// Appends all lists of a selection.
    mutating func append(_ selection: KVSelection) {
        for offset in selection.offsets.dropFirst() { offsets.append(indices.count + offset) }
        indices += selection.indices
    }

    func selection(unit: Int, sequences: Int, heads: Int) throws(SparseKernelsError) -> KVSelection {
        try KVSelection(unit: unit, sequences: sequences, heads: heads, offsets: offsets, indices: indices)
    }
}

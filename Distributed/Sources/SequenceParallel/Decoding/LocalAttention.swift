/// What a rank does of an attention call: its own tokens, for all queries.
struct LocalAttention {
    /// Queries see everything up to their own row; also where they see all rows there are.
    let causal: PagedAttention
    /// Queries see all rows.
    let full: PagedAttention
    let records: AttentionRecords
    /// Where LSE values are written before they go into records.
    let logSumExp: MessageBuffer

    /// The masks of queries that are attended by blocks and not row by row: up to so many queries of a sequence, the latter is
    /// faster. The number is that of sessions of language models.
    static let fewQueries = 8

    private var modifiers: ScoreModifiers { causal.modifiers }
    private var queryHeads: Int { records.heads }

    // MARK: - Steps

    /// Attends one query of every sequence, its last token, and writes states from byte `offset` on.
    func attendStep<Q: AttentionElement>(
        _ query: TensorView<Q>, _ cache: ShardedKVCache, _ entries: [ShardedKVCache.Entry], mask: KVMask, layer: Int,
        selection: KVSelection?, into message: MessageBuffer, atByte offset: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var names: [PagedKVCache.SequenceID] = []
        names.reserveCapacity(entries.count)
        for entry in entries { names.append(entry.name) }
        var selection = selection
        if selection == nil, mask != .causal, mask != .full {
            selection = try lists(entries.map { (visible($0, mask, layer, cache.rank), $0.lengths[layer] - 1) }, cache)
        }
        try causal.run(
            query: query, cache: cache.local, sequences: names, layer: layer, selection: selection,
            output: message.mutableView(
                Float.self, atByte: offset, geometry: records.geometry(tokens: entries.count), named: "output"),
            logSumExp: logSumExp.mutableElements(Float.self, count: queryHeads * entries.count), on: pool)
        records.write(logSumExp: logSumExp, tokens: entries.count, to: message, atByte: offset)
    }

    private func visible(_ entry: ShardedKVCache.Entry, _ mask: KVMask, _ layer: Int, _ rank: Int) -> VisibleRows {
        VisibleRows(mask: mask, length: entry.lengths[layer], tokens: entry.tokens, rank: rank)
    }

    /// The rows that queries see, a list for each and each key/value head; nil when all see all rows.
    private func lists(
        _ queries: [(rows: VisibleRows, position: Int)], _ cache: ShardedKVCache
    ) throws(SparseKernelsError) -> KVSelection? {
        let heads = cache.configuration.kvHeads
        var (offsets, indices, seesAll) = ([0], [Int32](), true)
        for query in queries {
            let seen = query.rows.rows(ofQueryAt: query.position)
            seesAll = seesAll && seen.sink.count + seen.window.count == query.rows.rows
            for _ in 0..<heads {
                indices.append(contentsOf: seen.sink.lazy.map { Int32(truncatingIfNeeded: $0) })
                indices.append(contentsOf: seen.window.lazy.map { Int32(truncatingIfNeeded: $0) })
                offsets.append(indices.count)
            }
        }
        if seesAll { return nil }
        return try KVSelection(unit: 1, sequences: queries.count, heads: heads, offsets: offsets, indices: indices)
    }

    // MARK: - Several queries of a sequence

    /// Attends some queries of one sequence, in any order, and writes their states from byte `offset` on.
    ///
    /// - Parameters:
    ///   - query: the queries.
    ///   - positions: their positions in the sequence.
    func attend<Q: AttentionElement>(
        _ query: TensorView<Q>, positions: [Int], _ cache: ShardedKVCache, _ entry: ShardedKVCache.Entry, mask: KVMask,
        layer: Int, into message: MessageBuffer, atByte offset: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let count = positions.count
        if count == 0 { return }
        let rows = visible(entry, mask, layer, cache.rank)
        let own = rows.rows
        if own == 0 {
            records.writeEmpty(tokens: count, logSumExp: modifiers.sinkLogits, to: message, atByte: offset)
            return
        }
        if case .streaming = mask {
            try attendLists(query, positions, rows, cache, entry, layer, message, offset, on: pool)
        } else {
            var (ranges, showsAll): ([Range<Int>], Bool) = ([], true)
            ranges.reserveCapacity(count)
            for position in positions {
                let range = rows.rows(ofQueryAt: position).window
                showsAll = showsAll && range.count == own
                ranges.append(range)
            }
            // The queries are the last rows of this rank, in order.
            let isCausal = ranges.indices.allSatisfy { ranges[$0] == 0..<max(0, own - count + $0 + 1) }
            if count <= Self.fewQueries, showsAll || isCausal {
                try (showsAll ? full : causal).run(
                    query: query, cache: cache.local, sequences: [entry.name], queryLengths: [count], layer: layer,
                    output: message.mutableView(
                        Float.self, atByte: offset, geometry: records.geometry(tokens: count), named: "output"),
                    logSumExp: logSumExp.mutableElements(Float.self, count: queryHeads * count), on: pool)
            } else if count <= Self.fewQueries, mask != .causal {
                try attendLists(query, positions, rows, cache, entry, layer, message, offset, on: pool)
            } else {
                try attendBlocks(query, ranges, cache, entry, layer, message, offset, on: pool)
            }
        }
        records.write(logSumExp: logSumExp, tokens: count, to: message, atByte: offset)
    }

    /// Attends every query as a step of its own, with the list of the rows that it sees.
    private func attendLists<Q: AttentionElement>(
        _ query: TensorView<Q>, _ positions: [Int], _ rows: VisibleRows, _ cache: ShardedKVCache,
        _ entry: ShardedKVCache.Entry, _ layer: Int, _ message: MessageBuffer, _ offset: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let count = positions.count
        let selection = try lists(positions.map { (rows, $0) }, cache)
        try causal.run(
            query: query, cache: cache.local, sequences: Array(repeating: entry.name, count: count), layer: layer,
            selection: selection,
            output: message.mutableView(
                Float.self, atByte: offset, geometry: records.geometry(tokens: count), named: "output"),
            logSumExp: logSumExp.mutableElements(Float.self, count: queryHeads * count), on: pool)
    }

    /// Attends blocks of queries, of which each sees one range of rows.
    private func attendBlocks<Q: AttentionElement>(
        _ query: TensorView<Q>, _ ranges: [Range<Int>], _ cache: ShardedKVCache, _ entry: ShardedKVCache.Entry, _ layer: Int,
        _ message: MessageBuffer, _ offset: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let cached = try cache.local.rows(of: entry.name, layer: layer)
        let c = cache.configuration
        let shape = try AttentionShape(
            queryLength: ranges.count, keyLength: cached.tokens, queryHeads: queryHeads, kvHeads: c.kvHeads,
            headDim: c.headDim, valueDim: c.valueDim)
        try DenseAttention(
            shape, limits: KeyLimits(ranges), modifiers: modifiers, instructionSet: causal.instructionSet
        ).run(
            query: query, key: cached.key, value: cached.value,
            output: message.mutableView(
                Float.self, atByte: offset, geometry: records.geometry(tokens: ranges.count), named: "output"),
            logSumExp: logSumExp.mutableElements(Float.self, count: queryHeads * ranges.count), on: pool)
    }
}

/// The work of one call of paged attention: query rows in groups that share a list of tokens.
///
/// The rows of a key/value head are numbered sequence by sequence. Inside a sequence they go query by query and then by query
/// head, or head by head when every query head has its own list. Rows that share a list or a prefix are adjacent.
struct PagedBatch {
    /// Tokens per chunk. They are 512 KiB of half-precision keys and values of 128 channels, beside which starting a task and
    /// merging 2 KiB cost nothing. A budget of 4096 tokens over 8 heads still gives 32 tasks, enough for 16 threads.
    static let chunk = 1024
    /// The most rows of a group, which bounds the scratch of a task. More rows reread keys from the second-level cache.
    static let maximumRows = 64

    struct Sequence {
        /// The index of the sequence in the call.
        let index: Int
        /// The index of its first query in the call's operands.
        let firstQuery: Int
        /// May be 0.
        let queries: Int
        /// Tokens in the cache, including those of the queries. May be fewer than the queries, or 0.
        let length: Int
        /// The index of its page table in `tables`.
        let table: Int
        /// The index of its first row within a key/value head.
        var firstRow = 0
        /// The number of its first tokens that are attended together with other sequences.
        var sharedLength = 0

        /// The position of a query, which is below 0 when there are more queries than tokens before it.
        func position(ofQuery query: Int) -> Int { length - queries + query }
    }

    /// Rows that attend the same list.
    struct Group {
        let kvHead: Int
        /// The rows within the key/value head.
        let rows: Range<Int>
        let list: TokenList
        /// Rows see up to this many tokens after their own, so different parts of the list; nil when all rows see all.
        let reach: Int?
        /// Its first partial result: the result for chunk c and row r of the group is record `firstRecord + c·rows.count + r`.
        let firstRecord: Int

        var chunks: Int { (list.count + PagedBatch.chunk - 1) / PagedBatch.chunk }
    }

    let pageSize: Int
    let queryCount: Int
    /// Sequences in the order of their rows.
    private(set) var sequences: [Sequence] = []
    let tables: [Int32]
    let selection: KVSelection?
    /// The heads that attend; nil means all.
    let heads: SelectedHeads?
    /// Whether rows go head by head.
    let isHeadMajor: Bool
    /// Prefixes of so many rows that they are attended elsewhere: no group attends their tokens.
    private(set) var separate: [SharedPrefix] = []
    private(set) var groups: [Group] = []
    private(set) var recordCount = 0
    /// Rows of a key/value head.
    let rowsPerHead: Int
    /// The group of every row, numbered over all heads; −1 for none.
    private(set) var groupOfRow: [Int32]
    /// The most shared prefixes, one behind the other, that a row has.
    private(set) var prefixLevels = 0
    /// For every row, `prefixLevels` groups of shared prefixes in the order of their tokens; −1 for none.
    private(set) var prefixesOfRow: [Int32] = []

    init(
        _ plan: PagedAttention, step: PageTables, queryLengths: [Int]?, queryTokens: Int, selection: KVSelection?,
        heads: HeadSelection? = nil, separateRows: Int = .max
    ) throws(SparseKernelsError) {
        let configuration = plan.configuration
        pageSize = configuration.pageSize
        tables = step.pages
        var queries = 0
        for (index, sequence) in step.sequences.enumerated() {
            let count = queryLengths?[index] ?? 1
            try require(
                count >= 0 && count <= queryTokens, .invalidShape, "queryLengths[\(index)]",
                expected: "0 or more queries, and no more than the \(queryTokens) of the call", actual: "\(count)")
            sequences.append(
                Sequence(
                    index: index, firstQuery: queries, queries: count, length: sequence.length,
                    table: sequence.table.lowerBound))
            queries += count
        }
        queryCount = queries
        try require(
            queryTokens == queries, .invalidShape, "query", expected: "Σ queryLengths = \(queries) tokens",
            actual: "\(queryTokens)")
        self.selection = selection
        if let heads {
            try Self.check(heads, sequences: step.sequences.count, plan)
            self.heads = SelectedHeads(heads, kvHeads: configuration.kvHeads, group: plan.group)
        } else {
            self.heads = nil
        }
        // Where queries share a list, the rows of the selected heads are adjacent.
        isHeadMajor =
            selection.map { $0.heads != configuration.kvHeads } ?? false
            || heads.map { $0.heads != configuration.kvHeads } ?? false && plan.mask.reach != nil
        rowsPerHead = queries * plan.group
        let rows = rowsPerHead * configuration.kvHeads
        groupOfRow = [Int32](repeating: -1, count: rows)
        if let selection { try check(selection, plan) } else { try checkPages(plan.mask) }

        var prefixes = shareAndOrder(plan)
        func isSeparate(_ prefix: SharedPrefix) -> Bool {
            sequences[prefix.members].reduce(0) { $0 + $1.queries } * plan.group >= separateRows
        }
        separate = prefixes.filter(isSeparate)
        prefixes.removeAll(where: isSeparate)
        prefixLevels = prefixes.reduce(0) { max($0, $1.level + 1) }
        prefixesOfRow = [Int32](repeating: -1, count: rows * prefixLevels)
        for kvHead in 0..<configuration.kvHeads {
            for prefix in prefixes {
                let list = TokenList(
                    kind: .ranges(0..<0, prefix.tokens), table: sequences[prefix.members.lowerBound].table,
                    count: prefix.tokens.count)
                let last = sequences[prefix.members.upperBound - 1]
                let rows = sequences[prefix.members.lowerBound].firstRow..<last.firstRow + last.queries * plan.group
                addGroups(kvHead: kvHead, rows: rows, list: list, reach: nil, prefixLevel: prefix.level)
            }
            for sequence in sequences { addGroups(of: sequence, kvHead: kvHead, plan) }
        }
    }

    // MARK: - Checks

    private func check(_ selection: KVSelection, _ plan: PagedAttention) throws(SparseKernelsError) {
        let kvHeads = plan.configuration.kvHeads
        try require(
            plan.mask == .causal || plan.mask == .full, .invalidArgument, "selection",
            expected: "nil with a mask that is not .causal or .full", actual: "a selection with \(plan.mask)")
        try require(
            selection.sequences == sequences.count, .invalidShape, "selection.sequences", expected: "\(sequences.count)",
            actual: "\(selection.sequences)")
        try require(
            selection.heads == kvHeads || selection.heads == plan.queryHeads, .invalidShape, "selection.heads",
            expected: "kvHeads (\(kvHeads)) or queryHeads (\(plan.queryHeads))", actual: "\(selection.heads)")
        try require(
            selection.unit == pageSize || selection.unit == 1, .invalidShape, "selection.unit",
            expected: "pageSize (\(pageSize)) or 1", actual: "\(selection.unit)")
        let perPage = pageSize / selection.unit
        for sequence in sequences {
            let limit = selection.unit == 1 ? sequence.length : (sequence.length + pageSize - 1) / pageSize
            let lists = sequence.index * selection.heads
            for entry in selection.offsets[lists]..<selection.offsets[lists + selection.heads] {
                let index = Int(selection.indices[entry])
                try require(
                    index < limit, .invalidArgument, "selection.indices[\(entry)]",
                    expected: limit == 0
                        ? "left out: sequence \(sequence.index) has no tokens"
                        : "below \(limit), for sequence \(sequence.index) of \(sequence.length) tokens", actual: "\(index)")
                try requirePage(index / perPage, of: sequence)
            }
        }
    }

    private static func check(_ heads: HeadSelection, sequences: Int, _ plan: PagedAttention) throws(SparseKernelsError) {
        let kvHeads = plan.configuration.kvHeads
        try require(
            heads.sequences == sequences, .invalidShape, "heads.sequences", expected: "\(sequences)",
            actual: "\(heads.sequences)")
        try require(
            heads.heads == kvHeads || heads.heads == plan.queryHeads, .invalidShape, "heads.heads",
            expected: "kvHeads (\(kvHeads)) or queryHeads (\(plan.queryHeads))", actual: "\(heads.heads)")
    }

    private func checkPages(_ mask: KVMask) throws(SparseKernelsError) {
        for sequence in sequences where sequence.queries > 0 {
            // The first query sees the earliest window and the last one the latest. Some query sees each token between.
            let first = mask.tokens(of: sequence.position(ofQuery: 0), length: sequence.length)
            let last = mask.tokens(of: sequence.position(ofQuery: sequence.queries - 1), length: sequence.length)
            let begin = first.window.lowerBound
            for tokens in [first.sink, last.sink, begin..<max(begin, last.window.upperBound)] where !tokens.isEmpty {
                for page in tokens.lowerBound / pageSize...(tokens.upperBound - 1) / pageSize {
                    try requirePage(page, of: sequence)
                }
            }
        }
    }

    private func requirePage(_ page: Int, of sequence: Sequence) throws(SparseKernelsError) {
        try require(
            tables[sequence.table + page] >= 0, .notFound, "sequences[\(sequence.index)]",
            expected: "tokens \(page * pageSize)..<\((page + 1) * pageSize) in the cache", actual: "discarded tokens")
    }

    // MARK: - Groups

    /// Makes sequences with a common prefix adjacent and numbers the rows. Returns the prefixes that are attended once.
    private mutating func shareAndOrder(_ plan: PagedAttention) -> [SharedPrefix] {
        var prefixes: [SharedPrefix] = []
        if plan.sharesPrefixes && plan.mask == .causal && selection == nil && heads == nil && sequences.count > 1 {
            let order = SharedPrefix.find(among: sequences, tables: tables, pageSize: pageSize, &prefixes)
            sequences = order.map { sequences[$0] }
        }
        var row = 0
        for place in sequences.indices {
            sequences[place].firstRow = row
            row += sequences[place].queries * plan.group
        }
        // Prefixes behind others come later.
        for prefix in prefixes { for place in prefix.members { sequences[place].sharedLength = prefix.tokens.upperBound } }
        return prefixes
    }

    private mutating func addGroups(of sequence: Sequence, kvHead: Int, _ plan: PagedAttention) {
        let (group, queries) = (plan.group, sequence.queries)
        // Skipped heads have the last places of their group, and no rows in any group.
        let attending = heads?.count(sequence: sequence.index, kvHead: kvHead) ?? group
        if queries == 0 || attending == 0 { return }
        let all = sequence.firstRow..<sequence.firstRow + queries * (isHeadMajor ? attending : group)
        // The last query is at the end of the sequence. With a reach over all others each query sees the same.
        let reach = plan.mask.reach.flatMap { $0 < queries - 1 ? $0 : nil }
        if let selection {
            let hasListPerHead = selection.heads != plan.configuration.kvHeads
            for place in 0..<(hasListPerHead ? attending : 1) {
                let list =
                    sequence.index * selection.heads
                    + (hasListPerHead
                        ? queryHead(of: sequence, kvHead: kvHead, place: place, group: group) : kvHead)
                let rows =
                    hasListPerHead ? all.lowerBound + place * queries..<all.lowerBound + (place + 1) * queries : all
                addGroups(
                    kvHead: kvHead, rows: rows, list: self.list(selection, list, of: sequence), reach: reach)
            }
            return
        }
        if plan.mask.reach != nil {
            let tokens = sequence.sharedLength..<sequence.length
            let list = TokenList(kind: .ranges(0..<0, tokens), table: sequence.table, count: tokens.count)
            addGroups(kvHead: kvHead, rows: all, list: list, reach: reach)
            return
        }
        // Every query has its own window.
        for query in 0..<queries {
            let tokens = plan.mask.tokens(of: sequence.position(ofQuery: query), length: sequence.length)
            let list = TokenList(
                kind: .ranges(tokens.sink, tokens.window), table: sequence.table,
                count: tokens.sink.count + tokens.window.count)
            let first = all.lowerBound + query * group
            addGroups(kvHead: kvHead, rows: first..<first + attending, list: list, reach: nil)
        }
    }

    private func list(_ selection: KVSelection, _ index: Int, of sequence: Sequence) -> TokenList {
        let entries = selection.offsets[index]..<selection.offsets[index + 1]
        if selection.unit == 1 { return TokenList(kind: .tokens(entries), table: sequence.table, count: entries.count) }
        var count = entries.count * pageSize
        if let last = selection.indices[entries].last {
            count -= max(0, (Int(last) + 1) * pageSize - sequence.length)
        }
        return TokenList(kind: .pages(entries), table: sequence.table, count: count)
    }

    private mutating func addGroups(kvHead: Int, rows: Range<Int>, list: TokenList, reach: Int?, prefixLevel: Int? = nil) {
        var first = rows.lowerBound
        while first < rows.upperBound {
            let part = first..<min(first + Self.maximumRows, rows.upperBound)
            for row in part {
                let number = kvHead * rowsPerHead + row
                if let prefixLevel {
                    prefixesOfRow[number * prefixLevels + prefixLevel] = Int32(truncatingIfNeeded: groups.count)
                } else {
                    groupOfRow[number] = Int32(truncatingIfNeeded: groups.count)
                }
            }
            groups.append(
                Group(kvHead: kvHead, rows: part, list: list, reach: reach, firstRecord: recordCount))
            recordCount += groups.last!.chunks * part.count
            first = part.upperBound
        }
    }

    /// The query head at a place of the rows of a key/value head.
    func queryHead(of sequence: Sequence, kvHead: Int, place: Int, group: Int) -> Int {
        kvHead * group + (heads?.head(sequence: sequence.index, kvHead: kvHead, place: place) ?? place)
    }

    /// The sequence, the query and the place of the query head in its group of a row of a key/value head.
    func place(ofRow row: Int, group: Int, from start: inout Int) -> (sequence: Sequence, query: Int, head: Int) {
        while row >= sequences[start].firstRow + sequences[start].queries * group { start += 1 }
        let sequence = sequences[start]
        let offset = row - sequence.firstRow
        return isHeadMajor
            ? (sequence, offset % sequence.queries, offset / sequence.queries) : (sequence, offset / group, offset % group)
    }
}

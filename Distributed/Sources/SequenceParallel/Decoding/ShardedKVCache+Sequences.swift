// Sequences: making, freeing, forking and shortening them, on all ranks.

extension ShardedKVCache {
    /// Makes a sequence without tokens. Every rank calls it; no message is sent.
    public func makeSequence() -> SequenceID {
        add(
            Entry(
                name: local.makeSequence(), tokens: ShardedTokens(ranks: ranks),
                lengths: Array(repeating: 0, count: configuration.layers)))
    }

    /// Frees a sequence. Pages that other sequences share stay with them. No message is sent.
    ///
    /// - Parameter sequence: the sequence, which the cache does not know afterwards.
    /// - Throws: `.unknownSequence`.
    /// - Complexity: O(pages of the sequence).
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) {
        let entry = try entry(of: sequence)
        try local.free(entry.name)
        count(entry.tokens, times: -1)
        entries[sequence.number] = nil
    }

    /// Makes a sequence that begins with the tokens of another one and shares their pages, on every rank. See
    /// `PagedKVCache.fork`.
    ///
    /// - Parameters:
    ///   - sequence: the parent, which does not change.
    ///   - length: tokens of the child, from 0 to the length of the longest layer; nil means all. Shorter layers keep theirs.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, or one that ends inside a discarded page of a rank;
    ///   `.capacityExceeded` when a rank must copy a page and has none. On errors nothing changes on any rank.
    public func fork(_ sequence: SequenceID, at length: Int? = nil) throws(SparseKernelsError) -> SequenceID {
        let parent = try entry(of: sequence)
        let length = length ?? parent.tokens.length
        try requireLength(length, of: parent)
        let rows = parent.tokens.count(of: rank, below: length)
        let failure = catching { () throws(SparseKernelsError) in
            if try copiesPage(cutting: parent, at: rows) { try requireFreePages(1) }
        }
        try agreement.settle(failure, CallFingerprint("fork", sequence.number, length), "fork")

        var child = Entry(
            name: try local.fork(parent.name, at: rows), tokens: parent.tokens,
            lengths: parent.lengths.map { min($0, length) })
        child.tokens.truncate(to: length)
        entries[sequence.number]!.claimed = 0..<0
        return add(child)
    }

    /// Removes tokens from the end of a sequence in all layers. See `PagedKVCache.truncate`.
    ///
    /// - Parameters:
    ///   - sequence: the sequence to shorten.
    ///   - length: tokens that remain, from 0 to the length of the longest layer. Layers with fewer tokens keep theirs.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, or one that ends inside a discarded page of a rank;
    ///   `.capacityExceeded` when a rank must copy a page, has none and gets none. On errors nothing changes on any rank.
    public func truncate(_ sequence: SequenceID, to length: Int) throws(SparseKernelsError) {
        var entry = try entry(of: sequence)
        try requireLength(length, of: entry)
        let rows = entry.tokens.count(of: rank, below: length)
        let failure = catching { () throws(SparseKernelsError) in
            guard try copiesPage(cutting: entry, at: rows) else { return }
            let owners = try local.pageOwners(of: entry.name)
            let kept = pageCount(rows)
            if owners[kept - 1] > 1, !owners[kept...].contains(1) { try requireFreePages(1) }
        }
        try agreement.settle(failure, CallFingerprint("truncate", sequence.number, length), "truncate")

        try local.truncate(entry.name, to: rows)
        count(entry.tokens, times: -1)
        entry.tokens.truncate(to: length)
        count(entry.tokens, times: 1)
        entry.lengths = entry.lengths.map { min($0, length) }
        entry.claimed = entry.claimed.clamped(to: 0..<length)
        entries[sequence.number] = entry
    }

    /// Returns pages inside a range of tokens to the pools, for heads that see the first and the last tokens only. See
    /// `PagedKVCache.discard`. Pages that the range covers only in part stay; so a rank that has runs which are not whole pages
    /// keeps one or two pages more. No message is sent.
    ///
    /// - Parameters:
    ///   - sequence: the sequence. Other sequences that share the pages keep them.
    ///   - tokens: a range within the tokens of every layer.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a range that leaves the shortest layer.
    public func discard(_ sequence: SequenceID, tokens: Range<Int>) throws(SparseKernelsError) {
        let entry = try entry(of: sequence)
        let shortest = entry.lengths.min() ?? 0
        guard tokens.lowerBound >= 0, tokens.upperBound <= shortest else {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "within the \(shortest) tokens of the shortest layer",
                actual: "\(tokens)")
        }
        try local.discard(entry.name, tokens: entry.tokens.rows(of: rank, in: tokens))
    }

    // MARK: - Before anything changes

    private func requireLength(_ length: Int, of entry: Entry) throws(SparseKernelsError) {
        guard length >= 0, length <= entry.tokens.length else {
            throw SparseKernelsError(
                .invalidArgument, "length", expected: "from 0 to the \(entry.tokens.length) tokens that there are",
                actual: "\(length)")
        }
    }

    /// Whether a page whose metadata describe tokens on both sides of a cut is needed on both. Throws when the rows cannot end
    /// there.
    private func copiesPage(cutting entry: Entry, at rows: Int) throws(SparseKernelsError) -> Bool {
        let offset = rows % configuration.pageSize
        if offset != 0, try local.pageTable(of: entry.name)[rows / configuration.pageSize] < 0 {
            throw SparseKernelsError(
                .invalidArgument, "length", expected: "at the end of a page of rank \(rank) where its pages were discarded",
                actual: "token \(offset) of one")
        }
        guard let metadata = configuration.metadata else { return false }
        return rows % metadata.logicalPageSize != 0 && entry.tokens.count(of: rank) > rows
    }
}

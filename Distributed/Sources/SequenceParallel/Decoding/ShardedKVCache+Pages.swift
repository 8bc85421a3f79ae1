// Accounting: pages of all ranks.

extension ShardedKVCache {
    /// Pages of the pool of a rank.
    public struct PageCounts: Hashable, Sendable {
        /// Pages in one or more page tables, each counted once.
        public let used: Int
        /// Pages in no page table.
        public let free: Int

        public init(used: Int, free: Int) { (self.used, self.free) = (used, free) }

        public static func + (a: Self, b: Self) -> Self { Self(used: a.used + b.used, free: a.free + b.free) }
    }

    /// The pages of this rank.
    public var localPages: PageCounts { PageCounts(used: local.usedPageCount, free: local.freePageCount) }

    /// The pages of every rank. Every rank calls it.
    /// - Throws: `.communication`.
    public func pages() throws(SparseKernelsError) -> [PageCounts] {
        if ranks == 1 { return [localPages] }
        return try communicator.gather([local.usedPageCount, local.freePageCount]).map { PageCounts(used: $0[0], free: $0[1]) }
    }

    /// The pages of all ranks together. Every rank calls it. A call may fail for lack of pages while there are some: those of
    /// the rank that owns the tokens count.
    /// - Throws: `.communication`.
    public func totalPages() throws(SparseKernelsError) -> PageCounts {
        try pages().reduce(PageCounts(used: 0, free: 0)) { $0 + $1 }
    }

    /// The free pages that it takes on each rank to append tokens to every layer of some sequences, where `placement` puts
    /// them: new pages, and copies of shared ones. Every rank calls it.
    ///
    /// - Parameters:
    ///   - counts: tokens for each sequence, 0 or more.
    ///   - sequences: different sequences.
    /// - Returns: one number per rank, as `PagedKVCache.pagesNeeded` counts.
    /// - Throws: the errors of `PagedKVCache.pagesNeeded`; `.communication`.
    public func pagesNeeded(
        toAppend counts: [Int], to sequences: [SequenceID]
    ) throws(SparseKernelsError) -> [Int] {
        guard counts.count == sequences.count else {
            throw SparseKernelsError(
                .invalidShape, "counts", expected: "one per sequence (\(sequences.count))", actual: "\(counts.count)")
        }
        var (own, names, totals): ([Int], [PagedKVCache.SequenceID], [Int]) = ([], [], totals)
        for (index, sequence) in sequences.enumerated() {
            let entry = try entry(of: sequence)
            guard counts[index] >= 0, counts[index] <= 1 << 31 else {
                throw SparseKernelsError(
                    .invalidArgument, "counts[\(index)]", expected: "from 0 to 2³¹", actual: "\(counts[index])")
            }
            var tokens = entry.tokens
            place(counts[index], in: &tokens, &totals)
            own.append(tokens.count(of: rank) - entry.tokens.count(of: rank))
            names.append(entry.name)
        }
        let needed = try local.pagesNeeded(toAppend: own, to: names)
        if ranks == 1 { return [needed] }
        return try communicator.gather([needed]).map { $0[0] }
    }

    // MARK: - Shared

    /// The number of pages for some rows of a rank.
    func pageCount(_ rows: Int) -> Int { (rows + configuration.pageSize - 1) / configuration.pageSize }

    func requireFreePages(_ needed: Int) throws(SparseKernelsError) {
        if needed <= local.freePageCount { return }
        throw SparseKernelsError(
            .capacityExceeded, "pageCapacity", expected: "enough for \(needed) more pages",
            actual: "\(configuration.pageCapacity), of which \(local.freePageCount) are free")
    }
}

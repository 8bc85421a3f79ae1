// Accounting: whose pages are whose, and what a step will take.

extension PagedKVCache {
    /// How many pages a sequence has.
    public struct PageUse: Hashable, Sendable {
        /// Pages of its page table. Discarded ones do not count.
        public let total: Int
        /// Those of them that other page tables have, too.
        public let shared: Int
        /// Those of them that become free with the sequence.
        public var own: Int { total - shared }
    }

    /// The pages of a sequence, shared and own.
    ///
    /// - Parameter sequence: the sequence.
    /// - Throws: `.unknownSequence`.
    /// - Complexity: O(pages of the sequence).
    public func pageUse(of sequence: SequenceID) throws(SparseKernelsError) -> PageUse {
        let held = table.entries[try table.index(of: sequence)].pages.filter { $0 != CachedSequence.hole }
        return PageUse(total: held.count, shared: held.count { pages.isShared($0) })
    }

    /// The number of page tables that have each page of a sequence, in the order of its table; 0 for discarded pages.
    ///
    /// - Parameter sequence: the sequence.
    /// - Throws: `.unknownSequence`.
    /// - Complexity: O(pages of the sequence).
    public func pageOwners(of sequence: SequenceID) throws(SparseKernelsError) -> [Int] {
        table.entries[try table.index(of: sequence)].pages.map {
            $0 == CachedSequence.hole ? 0 : Int(pages.referenceCounts[Int($0)])
        }
    }

    /// The free pages that it takes to append tokens to every layer of some sequences: new pages, and copies of shared ones.
    ///
    /// A step that finds so many free pages does not fail for lack of them, whatever the order of its appends. Of several
    /// sequences that share the page they write to, the last may write in place; that is counted.
    ///
    /// - Parameters:
    ///   - counts: tokens for each sequence, 0 or more.
    ///   - sequences: different sequences.
    /// - Throws: `.unknownSequence`; `.invalidShape` when there are not as many counts as sequences; `.invalidArgument` for a
    ///   sequence that is named twice, and for a count below 0 or beyond what any cache holds.
    /// - Complexity: O(sequences + pages to write).
    public func pagesNeeded(
        toAppend counts: [Int], to sequences: [SequenceID]
    ) throws(SparseKernelsError) -> Int {
        try require(
            counts.count == sequences.count, .invalidShape, "counts", expected: "one per sequence (\(sequences.count))",
            actual: "\(counts.count)")
        try require(
            Set(sequences).count == sequences.count, .invalidArgument, "sequences", expected: "different sequences",
            actual: "one of them twice")
        var needed = 0
        var writers: [Int32: Int] = [:]
        for (place, (name, count)) in zip(sequences, counts).enumerated() {
            let sequence = table.entries[try table.index(of: name)]
            try require(
                count >= 0 && count <= 1 << 31, .invalidArgument, "counts[\(place)]", expected: "from 0 to 2³¹",
                actual: "\(count)")
            if count == 0 { continue }
            let end = pageCount(sequence.longest + count)
            let first = sequence.shortest / configuration.pageSize
            needed += max(0, end - sequence.pages.count)
            for page in sequence.pages[min(first, sequence.pages.count)...]
            where page != CachedSequence.hole && pages.isShared(page) {
                writers[page, default: 0] += 1
            }
        }
        for (page, count) in writers { needed += min(count, Int(pages.referenceCounts[Int(page)]) - 1) }
        return needed
    }
}

// Sequences: making, freeing, forking and shortening them.

extension PagedKVCache {
    /// Makes a sequence without tokens. It takes no page until tokens are appended.
    public func makeSequence() -> SequenceID {
        let empty = CachedSequence(pages: [], lengths: Array(repeating: 0, count: configuration.layers))
        let index = table.insert(empty)
        return table.name(at: index)
    }

    /// Frees a sequence. Pages that other sequences share stay with them.
    ///
    /// - Parameter sequence: the sequence, which the cache does not know afterwards.
    /// - Throws: `.unknownSequence`.
    /// - Complexity: O(pages of the sequence).
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) {
        let index = try table.index(of: sequence)
        releasePages(from: 0, of: index)
        table.remove(at: index)
    }

    /// Makes a sequence that begins with the tokens of another one and shares their pages until one of the two writes to them.
    ///
    /// No token is copied, with one exception: when the cut runs through a logical page, its metadata differ on the two sides,
    /// so the child gets a copy of the physical page at once.
    ///
    /// - Parameters:
    ///   - sequence: the parent, which does not change.
    ///   - length: tokens of the child, from 0 to the length of the longest layer; nil means all. Shorter layers keep theirs.
    /// - Returns: the child. Pages that the parent has discarded are missing there as well.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, or one that ends inside a discarded page;
    ///   `.capacityExceeded` when a page must be copied and none is free. On errors nothing changes.
    /// - Complexity: O(pages), and at most one copied page.
    public func fork(_ sequence: SequenceID, at length: Int? = nil) throws(SparseKernelsError) -> SequenceID {
        let parent = table.entries[try table.index(of: sequence)]
        let length = length ?? parent.longest
        try requireCut(of: parent, at: length)
        let copies = cutsMetadata(of: parent, at: length)
        if copies { try requireFreePages(1) }

        let kept = parent.pages.prefix(pageCount(length))
        for page in kept where page != CachedSequence.hole { pages.retain(page) }
        let child = table.insert(CachedSequence(pages: Array(kept), lengths: parent.lengths.map { min($0, length) }))
        if copies {
            separatePage(at: kept.count - 1, of: child)
            summariseEnd(of: child, at: length)
        }
        return table.name(at: child)
    }

    /// Removes tokens from the end of a sequence in all layers. Whole pages are returned; a page that the cut divides stays.
    ///
    /// Other sequences that share pages keep every token. When the cut runs through a logical page, its metadata are
    /// recomputed, on a copy if the page is shared.
    ///
    /// - Parameters:
    ///   - sequence: the sequence to shorten.
    ///   - length: tokens that remain, from 0 to the length of the longest layer. Layers with fewer tokens keep theirs.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for another length, or one that ends inside a discarded page;
    ///   `.capacityExceeded` when a page must be copied, none is free and none becomes free. On errors nothing changes.
    /// - Complexity: O(pages), and at most one copied page.
    public func truncate(_ sequence: SequenceID, to length: Int) throws(SparseKernelsError) {
        let index = try table.index(of: sequence)
        let old = table.entries[index]
        try requireCut(of: old, at: length)
        let kept = pageCount(length)
        let cuts = cutsMetadata(of: old, at: length)
        let copies = cuts && pages.isShared(old.pages[kept - 1])
        if copies {
            let becomesFree = old.pages[kept...].contains { $0 != CachedSequence.hole && !pages.isShared($0) }
            if !becomesFree { try requireFreePages(1) }
        }

        releasePages(from: kept, of: index)
        for layer in old.lengths.indices { table.entries[index].lengths[layer] = min(old.lengths[layer], length) }
        if copies { separatePage(at: kept - 1, of: index) }
        if cuts { summariseEnd(of: index, at: length) }
    }

    /// Returns the pages inside a range of tokens to the pool, for heads that see the first and the last tokens only.
    ///
    /// Lengths and positions do not change. The entries of these pages in the page table become −1; attention does not see
    /// their tokens, and they can be neither read nor overwritten. Pages that the range covers only in part stay.
    ///
    /// - Parameters:
    ///   - sequence: the sequence. Other sequences that share the pages keep them.
    ///   - tokens: a range within the tokens of every layer.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a range that leaves the shortest layer.
    /// - Complexity: O(pages of the range).
    public func discard(_ sequence: SequenceID, tokens: Range<Int>) throws(SparseKernelsError) {
        let index = try table.index(of: sequence)
        let shortest = table.entries[index].shortest
        try require(
            tokens.lowerBound >= 0 && tokens.upperBound <= shortest, .invalidArgument, "tokens",
            expected: "within the \(shortest) tokens of the shortest layer", actual: "\(tokens)")
        let (first, end) = (pageCount(tokens.lowerBound), tokens.upperBound / configuration.pageSize)
        if first >= end { return }
        for position in first..<end {
            let page = table.entries[index].pages[position]
            if page == CachedSequence.hole { continue }
            pages.release(page)
            table.entries[index].pages[position] = CachedSequence.hole
        }
    }

    // MARK: - Cutting

    /// Throws unless a sequence can end at `length`.
    private func requireCut(of sequence: CachedSequence, at length: Int) throws(SparseKernelsError) {
        let longest = sequence.longest
        try require(
            length >= 0 && length <= longest, .invalidArgument, "length",
            expected: "from 0 to the \(longest) tokens that there are",
            actual: "\(length)")
        let pageSize = configuration.pageSize
        // Otherwise appending would have to fill a page whose first tokens are missing.
        try require(
            length % pageSize == 0 || sequence.pages[length / pageSize] != CachedSequence.hole, .invalidArgument, "length",
            expected: "a multiple of \(pageSize) where pages were discarded", actual: "\(length)")
    }

    /// Whether the metadata of a page describe tokens on both sides of a cut.
    private func cutsMetadata(of sequence: CachedSequence, at length: Int) -> Bool {
        guard let metadata = configuration.metadata else { return false }
        return length % metadata.logicalPageSize != 0 && sequence.longest > length
    }

    /// Recomputes the metadata of the logical page of the last of `length` tokens, in all layers that end there.
    private func summariseEnd(of index: Int, at length: Int) {
        let position = (length - 1) / configuration.pageSize
        let sequence = table.entries[index]
        let filled = length - position * configuration.pageSize
        WorkerPool.serial.withWorkspace(byteCount: KVStorage.scratchByteCount(configuration)) { scratch in
            for layer in 0..<configuration.layers where sequence.lengths[layer] == length {
                for head in 0..<configuration.kvHeads {
                    storage.summarise(
                        layer: layer, head: head, page: Int(sequence.pages[position]), tokens: filled - 1..<filled,
                        filled: filled, scratch: scratch)
                }
            }
        }
    }

    private func releasePages(from position: Int, of index: Int) {
        for page in table.entries[index].pages[position...] where page != CachedSequence.hole { pages.release(page) }
        table.entries[index].pages.removeSubrange(position...)
    }
}

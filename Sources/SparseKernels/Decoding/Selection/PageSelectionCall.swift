/// Chooses among scored pages. A task is a key/value head of a sequence.
struct PageSelectionCall: PoolCall {
    let selector: PageSelector
    let scored: ScoredPages.Addresses
    let maximumPages: Int
    let listsPerHead: Int
    /// The keys of the scores, indexed by sequence, list and page.
    let keys: UnsafePointer<Int32>
    /// The offset of each list in `positions`, by sequence and head.
    let offsets: UnsafePointer<Int>
    let positions: UnsafeMutablePointer<Int32>

    func run(on pool: WorkerPool) {
        let heads = selector.configuration.kvHeads
        let pages = scored.chunks.reduce(0) { $0 + $1.pages.count }
        // Ranking reads the keys about five times.
        pool.run(
            self, tasks: scored.sequences.count * heads, work: 8 * heads * listsPerHead * pages,
            scratchByteCount: TopK.scratchByteCount(maximumPages))
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let heads = selector.configuration.kvHeads
        let sequence = scored.sequences[task / heads]
        let count = sequence.pages.count
        guard count > 0, let entries = scored.entries else { return }
        let pages = entries + sequence.pages.lowerBound
        let kept = selector.keptCount(pages: count, length: sequence.length)
        for list in task * listsPerHead..<(task + 1) * listsPerHead {
            let target = positions + offsets[list]
            if kept == count {
                for page in 0..<count { target[page] = pages[page].position }
                continue
            }
            let firstKey = sequence.firstKey + (list - task / heads * heads * listsPerHead) * count
            choose(keys + firstKey, count: count, kept: kept, to: target, scratch: scratch)
            for place in 0..<kept { target[place] = pages[Int(target[place])].position }
        }
    }

    /// Writes the numbers of the kept pages in ascending order: forced pages, and between them the pages with the largest keys.
    private func choose(
        _ keys: UnsafePointer<Int32>, count: Int, kept: Int, to target: UnsafeMutablePointer<Int32>,
        scratch: UnsafeMutableRawPointer
    ) {
        let (first, last) = (selector.forcedFirst, selector.forcedLast)
        for page in 0..<first { target[page] = Int32(truncatingIfNeeded: page) }
        for page in 0..<last { target[kept - 1 - page] = Int32(truncatingIfNeeded: count - 1 - page) }
        if kept == first + last { return }
        let candidates = count - first - last
        let threshold = TopK.threshold(keys + first, count: candidates, keeping: kept - first - last, scratch: scratch)
        TopK.write(threshold, of: keys + first, count: candidates, offset: first, to: target + first)
    }
}

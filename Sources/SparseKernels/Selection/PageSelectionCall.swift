/// One call of `PageSelector`: a task is a key/value head of a sequence.
struct PageSelectionCall {
    let selector: PageSelector
    let scoring: PageScoring
    let sequences: UnsafeBufferPointer<PageTables.Sequence>
    let entries: UnsafePointer<PageTables.Page>?
    let maximumPages: Int
    let listsPerHead: Int
    /// Where each list begins in `positions`: by sequence, then head.
    let offsets: UnsafePointer<Int>
    let positions: UnsafeMutablePointer<Int32>

    /// Keys of every list, then what ranking needs, then what scoring needs.
    private var keyBytes: Int { (4 * listsPerHead * maximumPages + 63) / 64 * 64 }
    private var rankBytes: Int { (TopK.scratchByteCount(maximumPages) + 63) / 64 * 64 }

    func run(on pool: WorkerPool) {
        let pages = sequences.reduce(0) { $0 + (kept($1) < $1.pages.count ? $1.pages.count : 0) }
        withUnsafePointer(to: self) { call in
            pool.run(
                tasks: sequences.count * scoring.kvHeads, work: scoring.kvHeads * scoring.work(pages: pages),
                scratchByteCount: keyBytes + rankBytes + scoring.scratchByteCount, context: call
            ) { context, task, scratch in
                context.assumingMemoryBound(to: PageSelectionCall.self).pointee.select(task: task, scratch: scratch)
            }
        }
    }

    private func kept(_ sequence: PageTables.Sequence) -> Int {
        selector.keptCount(pages: sequence.pages.count, length: sequence.length)
    }

    private func select(task: Int, scratch: UnsafeMutableRawPointer) {
        let (index, head) = (task / scoring.kvHeads, task % scoring.kvHeads)
        let sequence = sequences[index]
        let count = sequence.pages.count
        guard count > 0, let entries else { return }
        let pages = entries + sequence.pages.lowerBound
        let firstList = (index * scoring.kvHeads + head) * listsPerHead
        let kept = kept(sequence)
        if kept == count {
            for list in firstList..<firstList + listsPerHead {
                for page in 0..<count { positions[offsets[list] + page] = pages[page].position }
            }
            return
        }
        let free = kept - selector.forcedFirst - selector.forcedLast
        let keys = scratch.bindMemory(to: Int32.self, capacity: listsPerHead * maximumPages)
        if free > 0 {
            scoring.score(
                head: head, pages: pages, count: count, length: sequence.length, token: sequence.row, lists: listsPerHead,
                keys: keys, keyStride: maximumPages, scratch: scratch + keyBytes + rankBytes)
        }
        for list in 0..<listsPerHead {
            choose(
                keys + list * maximumPages, count: count, free: free, kept: kept, to: positions + offsets[firstList + list],
                scratch: scratch + keyBytes)
            for place in 0..<kept {
                let target = positions + offsets[firstList + list] + place
                target.pointee = pages[Int(target.pointee)].position
            }
        }
    }

    /// Numbers of the kept pages, ascending: forced ones, and between them those of the `free` largest keys.
    private func choose(
        _ keys: UnsafePointer<Int32>, count: Int, free: Int, kept: Int, to target: UnsafeMutablePointer<Int32>,
        scratch: UnsafeMutableRawPointer
    ) {
        let first = selector.forcedFirst
        for page in 0..<first { target[page] = Int32(truncatingIfNeeded: page) }
        for page in 0..<selector.forcedLast {
            target[kept - 1 - page] = Int32(truncatingIfNeeded: count - 1 - page)
        }
        if free == 0 { return }
        let candidates = count - first - selector.forcedLast
        let threshold = TopK.threshold(keys + first, count: candidates, keeping: free, scratch: scratch)
        TopK.write(threshold, of: keys + first, count: candidates, offset: first, to: target + first)
    }
}

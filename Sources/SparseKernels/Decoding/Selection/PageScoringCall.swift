/// Scores the pages of some sequences. A task is a chunk of pages of one key/value head.
struct PageScoringCall: PoolCall {
    let scorer: PageScorer
    let scored: ScoredPages.Addresses
    let listsPerHead: Int
    /// Indexed by sequence, list and page.
    let keys: UnsafeMutablePointer<Int32>
    /// The scores of one sequence, query heads × `logicalStride`, or nil.
    var logical: UnsafeMutablePointer<Float>?
    var logicalStride = 0

    func run(on pool: WorkerPool) {
        let pages = scored.chunks.reduce(0) { $0 + $1.pages.count }
        pool.run(
            self, tasks: scored.chunks.count * scorer.kvHeads, work: scorer.kvHeads * scorer.work(pages: pages),
            scratchByteCount: scorer.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let chunk = scored.chunks[task / scorer.kvHeads]
        let head = task % scorer.kvHeads
        let sequence = scored.sequences[chunk.sequence]
        let count = sequence.pages.count
        scorer.score(
            head: head, pages: scored.entries! + sequence.pages.lowerBound, range: chunk.pages, length: sequence.length,
            token: sequence.row, lists: listsPerHead, keys: keys + sequence.firstKey + head * listsPerHead * count,
            keyStride: count, logical: logical.map { $0 + head * scorer.group * logicalStride }, logicalStride: logicalStride,
            scratch: scratch)
    }
}

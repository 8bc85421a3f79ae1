/// Scores the pages of some sequences. A task is a chunk of pages of one key/value head.
struct PageScoringCall: PoolCall {
    let scoring: PageScoring
    let plan: ScoredPages.Plan
    let listsPerHead: Int
    /// Indexed by sequence, list and page.
    let keys: UnsafeMutablePointer<Int32>
    /// The scores of one sequence, query heads × `logicalStride`, or nil.
    var logical: UnsafeMutablePointer<Float>?
    var logicalStride = 0

    func run(on pool: WorkerPool) {
        let pages = plan.chunks.reduce(0) { $0 + $1.pages.count }
        pool.run(
            self, tasks: plan.chunks.count * scoring.kvHeads, work: scoring.kvHeads * scoring.work(pages: pages),
            scratchByteCount: scoring.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let chunk = plan.chunks[task / scoring.kvHeads]
        let head = task % scoring.kvHeads
        let sequence = plan.sequences[chunk.sequence]
        let count = sequence.pages.count
        scoring.score(
            head: head, pages: plan.entries! + sequence.pages.lowerBound, range: chunk.pages, length: sequence.length,
            token: sequence.row, lists: listsPerHead, keys: keys + sequence.firstKey + head * listsPerHead * count,
            keyStride: count, logical: logical.map { $0 + head * scoring.group * logicalStride }, logicalStride: logicalStride,
            scratch: scratch)
    }
}

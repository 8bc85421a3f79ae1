extension WorkerPool {
    /// Runs `body` for ranges that together are 0..<count, for passes of a model between operators, on the same threads.
    ///
    /// The ranges do not depend on the pool, so a body that reads and writes only what belongs to its range gives the same bits
    /// on any pool. Returns when all are done.
    ///
    /// - Parameters:
    ///   - count: the rows or other items to cover; nothing runs for 0 or less.
    ///   - workPerItem: the estimated cost of one item in multiply-adds, or in bytes for passes that move memory.
    ///   - body: may run on several threads at once.
    public func forEachRange(of count: Int, workPerItem: Int, _ body: @Sendable (Range<Int>) -> Void) {
        forEachRowRange(count, workPerRow: workPerItem) { range, _ in body(range) }
    }

    /// Runs `body` for ranges that together are 0..<rows, for passes over matrices that write one row at a time.
    ///
    /// The ranges do not depend on the pool, so a body that reads only its range gives the same bits on any pool.
    ///
    /// - Parameters:
    ///   - rows: the rows to cover.
    ///   - workPerRow: the estimated cost of one row, as for `run`.
    ///   - scratchByteCount: bytes of scratch for every body, 64-byte aligned, with undefined contents.
    ///   - body: may run on several threads at once.
    package func forEachRowRange(
        _ rows: Int, workPerRow: Int, scratchByteCount: Int = 0,
        _ body: @Sendable (Range<Int>, UnsafeMutableRawPointer) -> Void
    ) {
        // A task takes about ten microseconds, far more than drawing a task and far less than a thread's share.
        let rowsPerTask = max(1, (1 << 15) / max(1, workPerRow))
        let tasks = (rows + rowsPerTask - 1) / rowsPerTask
        let (work, overflow) = rows.multipliedReportingOverflow(by: workPerRow)
        withoutActuallyEscaping(body) { body in
            run(
                RowRangeCall(rows: rows, rowsPerTask: rowsPerTask, body: body), tasks: tasks,
                work: overflow ? .max : work, scratchByteCount: scratchByteCount)
        }
    }
}

private struct RowRangeCall: PoolCall {
    let rows: Int
    let rowsPerTask: Int
    let body: @Sendable (Range<Int>, UnsafeMutableRawPointer) -> Void

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let start = task * rowsPerTask
        body(start..<min(rows, start + rowsPerTask), scratch)
    }
}

extension MutableMatrixView where Element == Float {
    /// Sets every row to `row`, or to zeros.
    ///
    /// - Complexity: one pass over the rows; allocates nothing.
    package mutating func fillRows(with row: borrowing Tensor<Float>? = nil, on pool: WorkerPool) {
        let (count, columns, stride) = (rows, self.columns, rowStride)
        if count == 0 || columns == 0 { return }
        precondition(row.map { $0.count == columns } ?? true, "a row of \(columns) elements")
        // The addresses are used only until this call returns, which borrows the row and owns access to the view.
        let source = row.map { row in row.span.withUnsafeBufferPointer { $0.baseAddress! } }
        let call = FillRowsCall(
            source: source, target: span.withUnsafeMutableBufferPointer { $0.baseAddress! }, stride: stride, columns: columns,
            tasks: RowTasks(rows: count, bytesPerRow: columns * 4))
        pool.run(call, call.tasks)
    }
}

private struct FillRowsCall: PoolCall {
    let source: UnsafePointer<Float>?
    let target: UnsafeMutablePointer<Float>
    let stride: Int
    let columns: Int
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        for row in first..<first + tasks.count(task) {
            let line = target + row * stride
            if let source {
                line.update(from: source, count: columns)
            } else {
                line.update(repeating: 0, count: columns)
            }
        }
    }
}

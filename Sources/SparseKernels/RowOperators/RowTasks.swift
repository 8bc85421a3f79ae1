package import KernelInterface

// What operators on rows share, linear layers among them: addresses of rows, checks of extents, and how rows are cut into tasks.

extension RowOperand {
    /// The rows of a view, which the caller borrows until the pointers are no longer used.
    package init<Element: AttentionElement>(_ view: borrowing MatrixView<Element>) {
        self.init(
            base: view.span.withUnsafeBufferPointer {
                UnsafeRawPointer($0.baseAddress) ?? UnsafeRawPointer(addressOfNothing())
            },
            stride: view.rowStride, type: Element.storageType)
    }

    /// The rows from `row` on.
    package func from(_ row: Int) -> RowOperand {
        RowOperand(base: base + row * stride * type.byteCount, stride: stride, type: type)
    }
}

extension RowTarget {
    /// The rows of a view, which the caller owns until the pointers are no longer used.
    package init<Element: AttentionElement>(_ view: inout MutableMatrixView<Element>) {
        self.init(
            base: view.span.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress) ?? addressOfNothing() },
            stride: view.rowStride, type: Element.storageType)
    }

    /// The rows from `row` on.
    package func from(_ row: Int) -> RowTarget {
        RowTarget(base: base + row * stride * type.byteCount, stride: stride, type: type)
    }

    /// The columns from `column` on.
    package func from(column: Int) -> RowTarget {
        RowTarget(base: base + column * type.byteCount, stride: stride, type: type)
    }

    /// The same rows for a kernel that reads and writes them.
    var asOperand: RowOperand { RowOperand(base: UnsafeRawPointer(base), stride: stride, type: type) }
}

/// Rows cut into tasks of equal size, which depends on the size of a row only.
package struct RowTasks {
    package let rows: Int
    package let rowsPerTask: Int
    package let bytesPerRow: Int

    /// - Parameter bytesPerRow: what is read and written per row, or more where arithmetic takes longer than that.
    package init(rows: Int, bytesPerRow: Int) {
        self.rows = rows
        self.bytesPerRow = max(1, bytesPerRow)
        // 64 KB take several microseconds, far more than drawing a task.
        rowsPerTask = max(1, (1 << 16) / self.bytesPerRow)
    }

    package var count: Int { (rows + rowsPerTask - 1) / rowsPerTask }

    /// The estimated work of the call, as `WorkerPool.run` wants it.
    package var work: Int {
        let (bytes, overflow) = rows.multipliedReportingOverflow(by: bytesPerRow)
        return overflow ? .max : bytes
    }

    package func first(_ task: Int) -> Int { task * rowsPerTask }

    package func count(_ task: Int) -> Int { min(rowsPerTask, rows - task * rowsPerTask) }
}

extension WorkerPool {
    package func run<Call: PoolCall>(_ call: Call, _ tasks: RowTasks) { run(call, tasks: tasks.count, work: tasks.work) }
}

/// Throws `.invalidShape` unless a matrix has these extents.
package func requireMatrix(
    _ name: String, rows: Int, columns: Int, expected: (rows: Int, columns: Int)
) throws(SparseKernelsError) {
    try require(
        rows == expected.rows && columns == expected.columns, .invalidShape, name,
        expected: "\(expected.rows) × \(expected.columns)", actual: "\(rows) × \(columns)")
}

/// Throws `.invalidShape` unless a matrix has this many columns.
package func requireColumns(_ name: String, _ columns: Int, expected: Int) throws(SparseKernelsError) {
    try require(
        columns == expected, .invalidShape, name, expected: "\(expected) columns", actual: "\(columns)")
}

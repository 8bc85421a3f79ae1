/// What factorisations take: products of such elements with vectors of any length that fits memory stay inside `Float`, their
/// squares inside `Double`.
let magnitudeLimit: Float = 0x1p100

/// Throws `.invalidArgument` for a matrix with an element that is not finite or that reaches the limit.
func requireMagnitudes(of matrix: MatrixView<Float>, named name: String, on pool: WorkerPool) throws(SparseKernelsError) {
    guard let (row, column) = matrix.firstElement(reaching: magnitudeLimit, on: pool) else { return }
    throw SparseKernelsError(
        .invalidArgument, name, expected: "finite elements of magnitude below 2¹⁰⁰",
        actual: "\(matrix[row, column]) at (\(row), \(column))")
}

extension MatrixView<Float> {
    /// The first element, row by row, whose magnitude is not below `limit`; NaN is below nothing.
    fileprivate func firstElement(reaching limit: Float, on pool: WorkerPool) -> (row: Int, column: Int)? {
        var flags = [Bool](repeating: false, count: rows)
        flags.withUnsafeMutableBufferPointer { flags in
            span.withUnsafeBufferPointer { elements in
                // Pointers are used only until this call returns; a view has at least one row and one column.
                MagnitudeScan(
                    elements: elements.baseAddress!, rows: rows, columns: columns, rowStride: rowStride, limit: limit,
                    flags: flags.baseAddress!
                ).run(on: pool)
            }
        }
        guard let row = flags.firstIndex(of: true) else { return nil }
        return (row, (0..<columns).first { !(abs(self[row, $0]) < limit) } ?? 0)
    }
}

/// Flags rows with an element that is not below the limit. Tasks write the flags of their own rows.
private struct MagnitudeScan {
    let elements: UnsafePointer<Float>
    let rows: Int
    let columns: Int
    let rowStride: Int
    let limit: Float
    let flags: UnsafeMutablePointer<Bool>

    /// A row alone is a microsecond of work.
    private static let rowsPerTask = 32

    func run(on pool: WorkerPool) {
        let tasks = (rows + Self.rowsPerTask - 1) / Self.rowsPerTask
        withUnsafePointer(to: self) { call in
            pool.run(tasks: tasks, work: rows * columns, scratchByteCount: 0, context: call) { context, task, _ in
                context.assumingMemoryBound(to: MagnitudeScan.self).pointee.scan(task: task)
            }
        }
    }

    private func scan(task: Int) {
        for row in task * Self.rowsPerTask..<min(rows, (task + 1) * Self.rowsPerTask) {
            let line = elements + row * rowStride
            // No early exit, so that the loop vectorises.
            var reached: UInt32 = 0
            for column in 0..<columns { reached |= abs(line[column]) < limit ? 0 : 1 }
            flags[row] = reached != 0
        }
    }
}

/// The limit of elements that factorisations accept. Products of such elements with vectors of any length that fits in memory
/// stay in the range of `Float`, and their squares in that of `Double`.
let magnitudeLimit: Float = 0x1p100

/// Returns the largest magnitude. Throws `.invalidArgument` when an element is not finite or reaches the limit.
@discardableResult
func requireMagnitudes(
    of matrix: MatrixView<Float>, named name: String, on pool: WorkerPool
) throws(SparseKernelsError) -> Float {
    let magnitudes = matrix.rowMagnitudes(below: magnitudeLimit, on: pool)
    guard let row = magnitudes.firstIndex(of: .infinity) else { return magnitudes.max() ?? 0 }
    let column = (0..<matrix.columns).first { !(abs(matrix[row, $0]) < magnitudeLimit) } ?? 0
    throw SparseKernelsError(
        .invalidArgument, name, expected: "a matrix of finite elements of magnitude below 2¹⁰⁰",
        actual: "\(matrix[row, column]) at (\(row), \(column))")
}

extension MatrixView<Float> {
    /// The largest magnitude of every row, or ∞ for rows with an element that is NaN or not below `limit`.
    fileprivate func rowMagnitudes(below limit: Float, on pool: WorkerPool) -> [Float] {
        var magnitudes = [Float](repeating: 0, count: rows)
        magnitudes.withUnsafeMutableBufferPointer { magnitudes in
            span.withUnsafeBufferPointer { elements in
                // Pointers are used only until this call returns; a view has at least one row and one column.
                MagnitudeScan(
                    elements: elements.baseAddress!, rows: rows, columns: columns, rowStride: rowStride, limit: limit,
                    magnitudes: magnitudes.baseAddress!
                ).run(on: pool)
            }
        }
        return magnitudes
    }
}

/// Finds the largest magnitude of every row. A task writes those of its own rows.
private struct MagnitudeScan: PoolCall {
    let elements: UnsafePointer<Float>
    let rows: Int
    let columns: Int
    let rowStride: Int
    let limit: Float
    let magnitudes: UnsafeMutablePointer<Float>

    /// A single row is only about a microsecond of work.
    private static let rowsPerTask = 32

    func run(on pool: WorkerPool) {
        pool.run(self, tasks: (rows + Self.rowsPerTask - 1) / Self.rowsPerTask, work: rows * columns)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        for row in task * Self.rowsPerTask..<min(rows, (task + 1) * Self.rowsPerTask) {
            let line = elements + row * rowStride
            // No early exit, so that the loop vectorises.
            var reached: UInt32 = 0
            var largest: Float = 0
            for column in 0..<columns {
                let magnitude = abs(line[column])
                reached |= magnitude < limit ? 0 : 1
                largest = magnitude > largest ? magnitude : largest
            }
            magnitudes[row] = reached != 0 ? .infinity : largest
        }
    }
}

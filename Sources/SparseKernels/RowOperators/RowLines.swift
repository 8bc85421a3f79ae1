/// The rows (head, token) of a view as lines of rows with one stride: tokens of a head, or heads of a token if there are more heads.
///
/// A task is a part of one line, or a whole one. How lines are cut depends on the extents only.
struct RowLines {
    let isOverHeads: Bool
    /// Lines, and the rows of each.
    let lines: Int
    let rows: Int
    /// Elements from one row to the next.
    let rowStride: Int
    private let rowsPerTask: Int

    init(_ geometry: TensorGeometry) {
        isOverHeads = geometry.heads > geometry.tokens
        (lines, rows) = isOverHeads ? (geometry.tokens, geometry.heads) : (geometry.heads, geometry.tokens)
        rowStride = isOverHeads ? geometry.headStride : geometry.tokenStride
        // 64 KB at 128 channels of floats that are read and written.
        rowsPerTask = 64
    }

    private var tasksPerLine: Int { (rows + rowsPerTask - 1) / rowsPerTask }

    var taskCount: Int { lines * tasksPerLine }

    func work(bytesPerRow: Int) -> Int {
        let (bytes, overflow) = (lines * rows).multipliedReportingOverflow(by: bytesPerRow)
        return overflow ? .max : bytes
    }

    /// The first row of a task, and how many rows follow with the line's stride.
    func part(_ task: Int) -> (head: Int, token: Int, rows: Int) {
        let (line, piece) = task.quotientAndRemainder(dividingBy: tasksPerLine)
        let first = piece * rowsPerTask
        let count = min(rowsPerTask, rows - first)
        return isOverHeads ? (first, line, count) : (line, first, count)
    }
}

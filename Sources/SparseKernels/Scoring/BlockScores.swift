/// An estimate of every block's importance, which scoring operators make and selection turns into a `BlockMask`.
///
/// Larger is more important. Estimators that normalise give masses, which add up to the same total along every row of equal
/// blocks. Top-p selection needs that, top-k does not. Values of unreachable blocks are 0.
public struct BlockScores: Sendable, Equatable {
    public let grid: BlockGrid
    /// `[heads, blockRows, blockColumns]`.
    public internal(set) var values: Tensor<Float>

    public var heads: Int { values.shape[0] }

    /// - Throws: `.invalidShape` unless the values are `[heads, blockRows, blockColumns]` with at least one head.
    public init(grid: BlockGrid, values: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            values.shape.count == 3 && values.shape[0] >= 1 && values.shape[1] == grid.blockRows
                && values.shape[2] == grid.blockColumns, .invalidShape, "values",
            expected: "[heads, \(grid.blockRows), \(grid.blockColumns)]", actual: "\(values.shape)")
        self.grid = grid
        self.values = values
    }

    /// Scores that are all 0.
    /// - Throws: `.invalidShape` for no heads or a size that overflows.
    init(grid: BlockGrid, heads: Int) throws(SparseKernelsError) {
        try self.init(grid: grid, values: Tensor(zeros: [heads, grid.blockRows, grid.blockColumns]))
    }

    /// The score of a block.
    public subscript(head: Int, row: Int, column: Int) -> Float {
        precondition(
            head >= 0 && head < heads && row >= 0 && row < grid.blockRows && column >= 0 && column < grid.blockColumns,
            "block (\(head), \(row), \(column)) outside [\(heads), \(grid.blockRows), \(grid.blockColumns)]")
        return values[flat: (head * grid.blockRows + row) * grid.blockColumns + column]
    }
}

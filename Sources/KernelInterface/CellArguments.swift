// The operands of kernels for pictures and grids of tokens. Strides count elements.

/// Cells of grids of tokens whose LayerNorm is wanted: the `factor`² tokens of a cell are one row, in raster order, and tokens outside
/// of the grid are zeros.
public struct NormalizeCellsArguments {
    /// A row per token, frame after frame, in raster order.
    public var x: RowOperand
    /// A row of `factor`² · `channels` elements per cell. Row 0 is that of cell `first`.
    public var y: RowTarget
    /// Tokens of a frame, at least 1 × 1.
    public var gridRows: Int
    public var gridColumns: Int
    /// Rows and columns of a cell, at least 1.
    public var factor: Int
    /// Channels of a token, at least 1.
    public var channels: Int
    /// Cells count in raster order, frame after frame.
    public var first: Int
    public var count: Int
    public var epsilon: Float
    /// `factor`² · `channels` floats, or nil for 1.
    public var weight: UnsafePointer<Float>?
    /// `factor`² · `channels` floats, or nil for 0.
    public var bias: UnsafePointer<Float>?
    /// Whether y goes past the caches, which do not read the memory first then.
    public var streams = false

    public init(
        x: RowOperand, y: RowTarget, gridRows: Int, gridColumns: Int, factor: Int, channels: Int, first: Int, count: Int,
        epsilon: Float
    ) {
        self.x = x
        self.y = y
        self.gridRows = gridRows
        self.gridColumns = gridColumns
        self.factor = factor
        self.channels = channels
        self.first = first
        self.count = count
        self.epsilon = epsilon
    }
}

/// Means of rows that are given by index.
public struct AverageRowsArguments {
    public var x: RowOperand
    /// The rows of every list, one list after the other.
    public var rows: UnsafePointer<Int32>
    /// Where lists begin in `rows`, and where the last one ends: `count` + 1 numbers.
    public var offsets: UnsafePointer<Int32>
    public var count: Int
    /// Adjacent channels of a row.
    public var channels: Int
    /// The row of y for each list; nil for one after the other.
    public var targets: UnsafePointer<Int32>?
    public var y: RowTarget

    public init(
        x: RowOperand, rows: UnsafePointer<Int32>, offsets: UnsafePointer<Int32>, count: Int, channels: Int,
        targets: UnsafePointer<Int32>?, y: RowTarget
    ) {
        self.x = x
        self.rows = rows
        self.offsets = offsets
        self.count = count
        self.channels = channels
        self.targets = targets
        self.y = y
    }
}

/// Which way columns move, and what becomes of columns that are not listed.
public enum ColumnDirection: UInt8, Sendable {
    /// target[:, t] = source[:, columns[t]].
    case gather
    /// target[:, columns[t]] = source[:, t]; other columns of the target become 0.
    case scatter
    /// The same; other columns of the target stay.
    case scatterAmongOthers
}

/// Moves listed columns of rows between a wide matrix and a compact one. Strides count elements.
public struct MoveColumnsArguments {
    public var source: UnsafePointer<Float>
    public var sourceStride: Int
    public var target: UnsafeMutablePointer<Float>
    public var targetStride: Int
    public var rows: Int
    /// Ascending, without repetition, below `width`.
    public var columns: UnsafePointer<Int32>
    public var count: Int
    /// Columns of the wide matrix.
    public var width: Int
    public var direction: ColumnDirection

    public init(
        source: UnsafePointer<Float>, sourceStride: Int, target: UnsafeMutablePointer<Float>, targetStride: Int, rows: Int,
        columns: UnsafePointer<Int32>, count: Int, width: Int, direction: ColumnDirection
    ) {
        self.source = source
        self.sourceStride = sourceStride
        self.target = target
        self.targetStride = targetStride
        self.rows = rows
        self.columns = columns
        self.count = count
        self.width = width
        self.direction = direction
    }
}

/// The extent of a picture in pixels, or of a grid of tokens, patches or cells.
///
/// Cells are numbered in raster order: row by row from the top, each row from the left.
public struct GridSize: Hashable, Sendable {
    public var rows: Int
    public var columns: Int

    public init(rows: Int, columns: Int) {
        self.rows = rows
        self.columns = columns
    }

    /// A square of `side` × `side` cells.
    public init(side: Int) { self.init(rows: side, columns: side) }

    /// Cells of the grid. Operators check that it is representable before they use it.
    public var count: Int { rows * columns }

    /// Throws unless both extents are at least 1 and their product is representable.
    /// - Throws: `.invalidShape` that names `argument`.
    package func validate(_ argument: String) throws(SparseKernelsError) {
        let isValid = rows >= 1 && columns >= 1 && !rows.multipliedReportingOverflow(by: columns).overflow
        try require(isValid, .invalidShape, argument, expected: "at least 1 × 1", actual: "\(self)")
    }
}

extension GridSize: CustomStringConvertible {
    /// Rows × columns.
    public var description: String { "\(rows) × \(columns)" }
}

/// How a picture lies in memory.
public enum ImageLayout: Hashable, Sendable {
    /// `[…, channels, rows, columns]`: a plane per channel, as PyTorch's pictures.
    case planar
    /// `[…, rows, columns, channels]`: the channels of a cell side by side, as features of tokens in raster order.
    case interleaved
}

/// The blocks of the attention matrix that are kept, for one or several heads, as block compressed sparse rows (BSR).
///
/// Row r of head h keeps the columns `columnIndices[rowOffsets[h·blockRows + r] ..< rowOffsets[h·blockRows + r + 1]]`,
/// ascending. Blocks after the causal diagonal may be listed; attention and `density` ignore them, and builders omit them.
///
/// Memory: 8 bytes per block row and 4 per kept block. Values are immutable and share storage when copied.
public struct BlockMask: Hashable, Sendable {
    public let grid: BlockGrid
    /// The number of masks in this value: 1, or the KV heads or query heads of a call.
    public let heads: Int
    /// `heads · blockRows + 1` ascending positions in `columnIndices`.
    public let rowOffsets: [Int]
    /// The kept columns of every row, ascending within a row.
    public let columnIndices: [Int32]

    /// Makes a mask from its parts.
    /// - Throws: `.invalidShape` for wrong counts or too many heads, `.invalidArgument` for offsets that do not ascend from 0
    ///   to the number of columns, or for columns out of range or out of order.
    /// - Complexity: O(rows + kept blocks).
    public init(grid: BlockGrid, heads: Int, rowOffsets: [Int], columnIndices: [Int32]) throws(SparseKernelsError) {
        try Self.checkHeads(heads, of: grid)
        let rows = heads * grid.blockRows
        try require(
            rowOffsets.count == rows + 1, .invalidShape, "rowOffsets",
            expected: "heads · blockRows + 1 = \(heads) · \(grid.blockRows) + 1 elements", actual: "\(rowOffsets.count)")
        try require(
            rowOffsets[0] == 0 && rowOffsets[rows] == columnIndices.count, .invalidArgument, "rowOffsets",
            expected: "ascending from 0 to columnIndices.count (\(columnIndices.count))",
            actual: "from \(rowOffsets[0]) to \(rowOffsets[rows])")
        for row in 0..<rows {
            let (begin, end) = (rowOffsets[row], rowOffsets[row + 1])
            try require(
                begin <= end && end <= columnIndices.count, .invalidArgument, "rowOffsets[\(row + 1)]",
                expected: "at least the offset before (\(begin)) and at most columnIndices.count (\(columnIndices.count))",
                actual: "\(end)")
            var previous = Int32(-1)
            for index in begin..<end {
                let column = columnIndices[index]
                try require(
                    column > previous && column < grid.blockColumns, .invalidArgument, "columnIndices[\(index)]",
                    expected: "ascending within the row and below blockColumns (\(grid.blockColumns))",
                    actual: "\(column) after \(previous)")
                previous = column
            }
        }
        self.init(unchecked: grid, heads: heads, rowOffsets: rowOffsets, columnIndices: columnIndices)
    }

    /// Throws unless sums over the blocks and pairs of all heads fit in an `Int`.
    static func checkHeads(_ heads: Int, of grid: BlockGrid) throws(SparseKernelsError) {
        let (extent, overflow) = heads.multipliedReportingOverflow(by: grid.extent)
        try require(
            heads >= 1 && !overflow && extent < BlockGrid.extentLimit, .invalidShape, "heads",
            expected: "at least 1, with heads · queryLength · keyLength below 2⁶⁰", actual: "\(heads)")
    }

    /// Makes a mask from parts that are valid by construction.
    init(unchecked grid: BlockGrid, heads: Int, rowOffsets: [Int], columnIndices: [Int32]) {
        self.grid = grid
        self.heads = heads
        self.rowOffsets = rowOffsets
        self.columnIndices = columnIndices
    }

    /// Keeps the blocks for which `isKept(head, row, column)` is true. It is called for reachable blocks only.
    /// - Throws: `.invalidShape` for no heads or too many.
    public init(grid: BlockGrid, heads: Int = 1, where isKept: (Int, Int, Int) -> Bool) throws(SparseKernelsError) {
        try Self.checkHeads(heads, of: grid)
        var builder = BlockMaskBuilder(grid: grid, heads: heads)
        for head in 0..<heads {
            for row in 0..<grid.blockRows {
                for column in grid.reachableColumns(ofRow: row) where isKept(head, row, column) { builder.keep(column) }
                builder.endRow()
            }
        }
        self = builder.mask
    }

    /// The kept columns of a row.
    public func columns(head: Int, row: Int) -> ArraySlice<Int32> {
        precondition(
            head >= 0 && head < heads && row >= 0 && row < grid.blockRows,
            "row (\(head), \(row)) outside a mask of \(heads) heads × \(grid.blockRows) rows")
        let index = head * grid.blockRows + row
        return columnIndices[rowOffsets[index]..<rowOffsets[index + 1]]
    }

    /// The kept columns of a row that attention computes. Columns ascend, so unreachable ones are at the end.
    func reachableColumns(head: Int, row: Int) -> ArraySlice<Int32> {
        let columns = columns(head: head, row: row)
        let reachable = grid.reachableColumns(ofRow: row).upperBound
        if let last = columns.last, last < reachable { return columns }
        return columns.prefix { $0 < reachable }
    }

    /// Whether a block is kept.
    /// - Complexity: O(log of the row's kept blocks).
    public subscript(head: Int, row: Int, column: Int) -> Bool {
        let columns = columns(head: head, row: row)
        var (low, high) = (columns.startIndex, columns.endIndex)
        while low < high {
            let middle = (low + high) / 2
            if columns[middle] < column { low = middle + 1 } else { high = middle }
        }
        return low < columns.endIndex && columns[low] == column
    }

    /// The number of kept blocks that attention computes, over all heads or in one.
    public func nonzeroBlocks(head: Int? = nil) -> Int {
        var count = 0
        for head in head.map({ $0..<$0 + 1 }) ?? 0..<heads {
            for row in 0..<grid.blockRows { count += reachableColumns(head: head, row: row).count }
        }
        return count
    }

    /// The kept fraction of the reachable blocks (in a causal grid those up to the diagonal), over all heads. 1 when no block
    /// is reachable, because nothing is left out.
    public var density: Double { fraction(nonzeroBlocks(), of: heads * grid.reachableBlocks) }

    /// The kept fraction of one head's reachable blocks.
    public func density(head: Int) -> Double { fraction(nonzeroBlocks(head: head), of: grid.reachableBlocks) }

    /// The number of score entries that attention computes, over all heads.
    public var visiblePairs: Int {
        var pairs = 0
        for head in 0..<heads {
            for row in 0..<grid.blockRows {
                for column in columns(head: head, row: row) { pairs += grid.visiblePairs(row: row, column: Int(column)) }
            }
        }
        return pairs
    }

    /// Bytes of the index arrays.
    public var byteCount: Int { rowOffsets.count * MemoryLayout<Int>.stride + columnIndices.count * 4 }
}

/// The kept fraction of a total; 1 when the total is 0.
package func fraction(_ kept: Int, of total: Int) -> Double { total == 0 ? 1 : Double(kept) / Double(total) }

/// Writes a mask row by row: call `keep` in ascending order, then `endRow`, for every row of every head.
package struct BlockMaskBuilder {
    let grid: BlockGrid
    let heads: Int
    private var rowOffsets = [0]
    private var columnIndices: [Int32] = []

    package init(grid: BlockGrid, heads: Int) {
        self.grid = grid
        self.heads = heads
        rowOffsets.reserveCapacity(heads * grid.blockRows + 1)
    }

    package mutating func keep(_ column: Int) { columnIndices.append(Int32(truncatingIfNeeded: column)) }

    package mutating func keep(_ columns: Range<Int>) { for column in columns { keep(column) } }

    package mutating func endRow() { rowOffsets.append(columnIndices.count) }

    package var mask: BlockMask {
        precondition(rowOffsets.count == heads * grid.blockRows + 1, "a mask needs every row of every head")
        return BlockMask(unchecked: grid, heads: heads, rowOffsets: rowOffsets, columnIndices: columnIndices)
    }
}

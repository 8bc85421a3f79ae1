public import SparseKernels

/// What happens to a block of the attention matrix.
public enum SparseLinearClass: String, Hashable, Sendable, CaseIterable {
    /// Exact softmax attention.
    case critical
    /// Linear attention.
    case marginal
    /// Nothing: the block is skipped.
    case negligible
}

/// The classes of all blocks: every block that is neither critical nor negligible is marginal.
public struct SparseLinearBlocks: Hashable, Sendable {
    public let critical: BlockMask
    public let negligible: BlockMask

    /// - Parameters:
    ///   - critical: the blocks of exact attention, over a grid that is not causal.
    ///   - negligible: the blocks that are skipped, over the same grid; nil means none.
    /// - Throws: `.invalidArgument` for a causal grid or a block of both masks, `.invalidShape` for masks of different grids or
    ///   numbers of heads.
    public init(critical: BlockMask, negligible: BlockMask? = nil) throws(SparseKernelsError) {
        let grid = critical.grid
        try require(!grid.isCausal, .invalidArgument, "critical", expected: "a grid that is not causal", actual: "causal")
        if let negligible {
            try require(
                negligible.grid == grid && negligible.heads == critical.heads, .invalidShape, "negligible",
                expected: "the grid and the \(critical.heads) heads of critical",
                actual: "\(negligible.grid.blockRows) × \(negligible.grid.blockColumns) blocks, \(negligible.heads) heads")
            let both = try critical.intersection(negligible).nonzeroBlocks()
            try require(
                both == 0, .invalidArgument, "negligible", expected: "no block that is critical", actual: "\(both) of them")
        }
        self.critical = critical
        if let negligible {
            self.negligible = negligible
        } else {
            let none = [Int](repeating: 0, count: critical.heads * grid.blockRows + 1)
            self.negligible = try BlockMask(grid: grid, heads: critical.heads, rowOffsets: none, columnIndices: [])
        }
    }

    public var grid: BlockGrid { critical.grid }
    public var heads: Int { critical.heads }

    /// The fraction of blocks whose attention is exact.
    public var density: Double { critical.density }

    /// The class of a block.
    public subscript(head: Int, row: Int, column: Int) -> SparseLinearClass {
        if critical[head, row, column] { return .critical }
        return negligible[head, row, column] ? .negligible : .marginal
    }

    /// The marginal blocks as a mask.
    /// - Complexity: O(blocks of all heads), in time and, as most blocks are marginal, in memory.
    public var marginal: BlockMask {
        var builder = BlockMaskBuilder(grid: grid, heads: heads)
        var isMarginal = [Bool](repeating: true, count: grid.blockColumns)
        for head in 0..<heads {
            for row in 0..<grid.blockRows {
                let others = [critical.columns(head: head, row: row), negligible.columns(head: head, row: row)]
                for columns in others { for column in columns { isMarginal[Int(column)] = false } }
                for column in grid.reachableColumns(ofRow: row) where isMarginal[column] { builder.keep(column) }
                builder.endRow()
                for columns in others { for column in columns { isMarginal[Int(column)] = true } }
            }
        }
        return builder.mask
    }
}

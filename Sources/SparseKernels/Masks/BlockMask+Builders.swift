// Masks of whole blocks: from booleans, full, streaming, dilated. BlockMask+TokenPatterns.swift has patterns that are defined
// by tokens. All of them list reachable blocks only.

extension BlockMask {
    /// Keeps the blocks whose entry is not 0: `[heads, blockRows, blockColumns]`, or `[blockRows, blockColumns]` for one head.
    ///
    /// Entries of unreachable blocks are ignored, as in Block-Sparse-Attention.
    /// - Throws: `.invalidShape` for another shape or no heads.
    /// - Complexity: O(entries).
    public init(grid: BlockGrid, booleans: Tensor<UInt8>) throws(SparseKernelsError) {
        let blocks = [grid.blockRows, grid.blockColumns]
        let shape = booleans.shape
        try require(
            (shape.count == 2 || shape.count == 3) && Array(shape.suffix(2)) == blocks, .invalidShape, "booleans",
            expected: "[heads, \(blocks[0]), \(blocks[1])] or [\(blocks[0]), \(blocks[1])]", actual: "\(shape)")
        let entries = booleans.span
        try self.init(grid: grid, heads: shape.count == 3 ? shape[0] : 1) { head, row, column in
            entries[(head * blocks[0] + row) * blocks[1] + column] != 0
        }
    }

    /// 1 for kept blocks, 0 for others: `[heads, blockRows, blockColumns]`. Unreachable blocks are 0.
    /// - Throws: `.invalidShape` when the size overflows.
    /// - Complexity: O(entries).
    public func booleans() throws(SparseKernelsError) -> Tensor<UInt8> {
        var booleans = try Tensor<UInt8>(zeros: [heads, grid.blockRows, grid.blockColumns])
        var entries = booleans.mutableSpan
        for head in 0..<heads {
            for row in 0..<grid.blockRows {
                let start = (head * grid.blockRows + row) * grid.blockColumns
                for column in reachableColumns(head: head, row: row) { entries[start + Int(column)] = 1 }
            }
        }
        return booleans
    }

    /// Keeps every reachable block, which is dense attention. In a causal grid these are the blocks up to the diagonal.
    /// - Complexity: O(blocks).
    public static func full(_ grid: BlockGrid) -> BlockMask {
        building(grid) { row, builder in builder.keep(grid.reachableColumns(ofRow: row)) }
    }

    /// Keeps the first `sinkBlocks` key blocks and the last `localBlocks` up to the row's own: block streaming as in
    /// Block-Sparse-Attention (mit-han-lab, `flash_blockmask.h`, `fwdStreaming`).
    ///
    /// Causal: for row i, D = keyLength − queryLength and blocks of B tokens, the window is the `localBlocks` blocks that end
    /// with block ⌈D/B⌉ + i, where the diagonal ends in a *full* row of blocks. In a ragged last row the diagonal may end a
    /// block earlier; the window then has a block less, as in the released code. If query and key blocks differ in size, the
    /// window ends with block ⌈(D + (i + 1)·queryBlockSize) / keyBlockSize⌉ − 1, as in the released backward pass. With blocks
    /// of variable sizes, which have no such nominal end, it ends with the block of the row's last query.
    ///
    /// Not causal: the window is the last `localBlocks` key blocks of the *sequence*, the same for all rows, as in the released
    /// code. For a window around each row use `slidingWindow` or `dilated`.
    ///
    /// Streaming counted in tokens is `HeadPattern.streaming`, or `aShape` as a mask.
    /// - Throws: `.invalidArgument` for a negative count.
    /// - Complexity: O(kept blocks).
    public static func streaming(
        _ grid: BlockGrid, sinkBlocks: Int, localBlocks: Int
    ) throws(SparseKernelsError) -> BlockMask {
        for (name, count) in [("sinkBlocks", sinkBlocks), ("localBlocks", localBlocks)] {
            try require(count >= 0, .invalidArgument, name, expected: "at least 0", actual: "\(count)")
        }
        return building(grid) { row, builder in
            let reachable = grid.reachableColumns(ofRow: row)
            if reachable.isEmpty { return }
            let windowEnd = grid.isCausal ? grid.nominalEnd(ofRow: row) + 1 : grid.blockColumns
            let sinkEnd = min(sinkBlocks, reachable.upperBound)
            let windowStart = min(reachable.upperBound, max(sinkEnd, windowEnd - min(localBlocks, windowEnd)))
            builder.keep(0..<sinkEnd)
            builder.keep(windowStart..<reachable.upperBound)
        }
    }

    /// Keeps the diagonal blocks of every row and every `dilation`-th block from there, `localBlocks` in all: backwards in
    /// causal grids, to both sides otherwise.
    ///
    /// This is the dilated sliding window of Longformer (arXiv 2004.05150, section 3.1), in blocks. A `dilation` of 1 is a
    /// window without gaps. A row whose queries span several key blocks keeps them all, and counts from the outer ones.
    /// - Throws: `.invalidArgument` for a number below 1.
    /// - Complexity: O(rows + kept blocks).
    public static func dilated(
        _ grid: BlockGrid, localBlocks: Int, dilation: Int
    ) throws(SparseKernelsError) -> BlockMask {
        for (name, count) in [("localBlocks", localBlocks), ("dilation", dilation)] {
            try require(count >= 1, .invalidArgument, name, expected: "at least 1", actual: "\(count)")
        }
        return building(grid) { row, builder in
            let diagonal = grid.diagonalColumns(ofRow: row)
            if diagonal.isEmpty { return }
            let before = min(localBlocks - 1, diagonal.lowerBound / dilation)
            for step in 0..<before { builder.keep(diagonal.lowerBound - (before - step) * dilation) }
            builder.keep(diagonal)
            if grid.isCausal { return }
            let after = min(localBlocks - 1, (grid.blockColumns - diagonal.upperBound) / dilation)
            for step in 0..<after { builder.keep(diagonal.upperBound - 1 + (step + 1) * dilation) }
        }
    }

    /// A mask of one head, written row by row. `write` keeps columns in ascending order.
    static func building(_ grid: BlockGrid, _ write: (_ row: Int, _ builder: inout BlockMaskBuilder) -> Void) -> BlockMask {
        var builder = BlockMaskBuilder(grid: grid, heads: 1)
        for row in 0..<grid.blockRows {
            write(row, &builder)
            builder.endRow()
        }
        return builder.mask
    }
}

extension BlockGrid {
    /// The key block in which the diagonal would leave the row, if the row were full. May be after the last block.
    fileprivate func nominalEnd(ofRow row: Int) -> Int {
        let end = query.blockSize.map { (row + 1) * $0 } ?? query[row].upperBound
        let position = queryOffset + end - 1
        return key.blockSize.map { position / $0 } ?? key.block(of: position)
    }
}

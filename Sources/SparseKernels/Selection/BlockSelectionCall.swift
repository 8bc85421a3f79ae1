/// One call of `BlockSelection`. Rows are selected independently of each other, a few per task.
struct BlockSelectionCall: PoolCall {
    let selection: BlockSelection
    let grid: BlockGrid
    let heads: Int
    let candidates: BlockMask?
    let values: UnsafePointer<Float>
    let words: UnsafeMutablePointer<UInt64>
    let wordsPerRow: Int
    let negative: UnsafeMutablePointer<Int32>

    /// Rows per task: at 1024 columns about 50 µs of work, against well under 1 µs to draw a task.
    private static let rowsPerTask = 16

    func run(on pool: WorkerPool) {
        let chunks = (grid.blockRows + Self.rowsPerTask - 1) / Self.rowsPerTask
        // Reading a block and moving it into the heap take about eight operations.
        pool.run(
            self, tasks: heads * chunks, work: 8 * heads * grid.blockRows * grid.blockColumns,
            scratchByteCount: grid.blockColumns * MemoryLayout<UInt64>.stride)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let heap = scratch.bindMemory(to: UInt64.self, capacity: grid.blockColumns)
        // The last rows go first, because under a causal limit they have more candidates.
        let end = grid.blockRows - task / heads * Self.rowsPerTask
        for row in max(0, end - Self.rowsPerTask)..<end { select(head: task % heads, row: row, heap: heap) }
    }

    private func select(head: Int, row: Int, heap: UnsafeMutablePointer<UInt64>) {
        let index = head * grid.blockRows + row
        let scores = values + index * grid.blockColumns
        let rule = selection.rules[selection.rules.count == 1 ? 0 : head]
        let reachable = grid.reachableColumns(ofRow: row)
        let diagonal = grid.diagonalColumns(ofRow: row)
        let before = min(diagonal.lowerBound, selection.recentBlocks - 1)
        let recent = selection.recentBlocks == 0 ? 0..<0 : diagonal.lowerBound - before..<diagonal.upperBound
        var needsSign = false
        if case .topP = rule { needsSign = true }
        let hasEmptyColumns = grid.key.blockSize == nil
        var selected = RowSelection(kept: words + index * wordsPerRow, heap: heap)

        func add(_ column: Int) {
            if hasEmptyColumns && grid.key[column].isEmpty { return }
            let score = scores[column]
            if needsSign && score < 0 && negative[index] < 0 { negative[index] = Int32(truncatingIfNeeded: column) }
            selected.add(score, index: column, isForced: column < selection.sinkBlocks || recent.contains(column))
        }
        if let candidates {
            let columns = candidates.columns(head: candidates.heads == 1 ? 0 : head, row: row)
            for column in columns where reachable.contains(Int(column)) { add(Int(column)) }
        } else {
            for column in reachable { add(column) }
        }
        selected.select(rule, minimumCount: selection.minimumBlocks)
    }
}

/// A mask whose rows several threads write in any order. It has one bit per block, and a row is whole words.
struct BlockBits {
    let grid: BlockGrid
    let heads: Int
    let wordsPerRow: Int
    var words: [UInt64]

    init(grid: BlockGrid, heads: Int) {
        self.grid = grid
        self.heads = heads
        wordsPerRow = (grid.blockColumns + 63) / 64
        words = Array(repeating: 0, count: heads * grid.blockRows * wordsPerRow)
    }

    var mask: BlockMask {
        var builder = BlockMaskBuilder(grid: grid, heads: heads)
        for row in 0..<heads * grid.blockRows {
            for word in 0..<wordsPerRow {
                forEachBit(of: words[row * wordsPerRow + word]) { builder.keep(word * 64 + $0) }
            }
            builder.endRow()
        }
        return builder.mask
    }
}

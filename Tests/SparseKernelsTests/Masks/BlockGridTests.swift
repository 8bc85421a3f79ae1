import SparseKernels
import TestSupport
import Testing

@Suite("Block grids")
struct BlockGridTests {
    @Test("visible pairs and reachable blocks agree with a count over tokens", arguments: GridCase.all)
    func pairs(_ grid: GridCase) throws {
        let (pairs, blocks) = (grid.pairs(), try grid.grid())
        #expect(blocks.blockRows == pairs.count && blocks.blockColumns == pairs[0].count)
        var reachableBlocks = 0
        for row in 0..<blocks.blockRows {
            for column in 0..<blocks.blockColumns {
                #expect(blocks.visiblePairs(row: row, column: column) == pairs[row][column], "block (\(row), \(column))")
            }
            let reachable = blocks.reachableColumns(ofRow: row)
            // All columns up to the last one with a pair; all columns in grids that are not causal.
            let last = pairs[row].lastIndex { $0 > 0 }
            #expect(reachable.lowerBound == 0)
            #expect(reachable.upperBound == last.map { grid.isCausal ? $0 + 1 : blocks.blockColumns } ?? 0, "row \(row)")
            reachableBlocks += reachable.count
        }
        #expect(blocks.reachableBlocks == reachableBlocks)
    }

    @Test("diagonal columns are the blocks between those of the first and the last query's position", arguments: GridCase.all)
    func diagonals(_ grid: GridCase) throws {
        let blocks = try grid.grid()
        let onDiagonal = grid.pairs { position, key in position == key }
        for row in 0..<blocks.blockRows {
            let columns = onDiagonal[row].indices.filter { onDiagonal[row][$0] > 0 }
            let diagonal = blocks.diagonalColumns(ofRow: row)
            #expect(diagonal == columns.first.map { $0..<columns.last! + 1 } ?? 0..<0, "row \(row)")
        }
    }

    @Test("a grid of an attention call has its lengths")
    func ofShape() throws {
        let shape = try AttentionShape(queryLength: 130, keyLength: 900, queryHeads: 4, kvHeads: 1, headDim: 64)
        let grid = try BlockGrid(shape, isCausal: true)
        #expect(grid.query.length == 130 && grid.key.length == 900 && grid.blockRows == 2 && grid.blockColumns == 8)
        #expect(grid.queryOffset == 770)
        #expect(try grid == BlockGrid(queryLength: 130, keyLength: 900, isCausal: true))
        #expect(try grid != BlockGrid(queryLength: 130, keyLength: 900, isCausal: false))
        #expect(try grid != BlockGrid(shape, blockSize: 64, isCausal: true))
    }

    @Test("grids that cannot be are refused")
    func errors() throws {
        for isCausal in [true, false] {
            #expect(try BlockGrid(queryLength: 5, keyLength: 4, isCausal: isCausal).queryOffset == -1)
        }
        expectError(.invalidShape, "queryLength") { _ = try BlockGrid(queryLength: -1, keyLength: 4, isCausal: false) }
        expectError(.invalidShape, "keyLength") { _ = try BlockGrid(queryLength: 1, keyLength: -4, isCausal: false) }
        expectError(.invalidShape, "queryBlockSize") {
            _ = try BlockGrid(queryLength: 1, keyLength: 4, queryBlockSize: 0, isCausal: false)
        }
        expectError(.invalidShape, "keyBlockSize") {
            _ = try BlockGrid(queryLength: 1, keyLength: 4, keyBlockSize: .min, isCausal: false)
        }
        expectError(.invalidShape, "keyLength", containing: "\(Int.max)") {
            _ = try BlockGrid(queryLength: 1, keyLength: .max, isCausal: true)
        }
        expectError(.invalidShape, "key", containing: "2³¹") {
            _ = try BlockGrid(queryLength: 1, keyLength: 1 << 31, keyBlockSize: 1, isCausal: false)
        }
        expectError(.invalidShape, "queryLength", containing: "2⁶⁰") {
            _ = try BlockGrid(queryLength: 1 << 30, keyLength: 1 << 30, isCausal: true)
        }
    }

    @Test("counts over the largest grid do not overflow")
    func largest() throws {
        let length = (1 << 30) - 1
        let grid = try BlockGrid(
            queryLength: length, keyLength: length, queryBlockSize: length, keyBlockSize: length, isCausal: true)
        #expect(grid.visiblePairs(row: 0, column: 0) == length * (length + 1) / 2)
        #expect(BlockMask.full(grid).visiblePairs == length * (length + 1) / 2)
        #expect(BlockMask.full(grid).density == 1)
    }
}

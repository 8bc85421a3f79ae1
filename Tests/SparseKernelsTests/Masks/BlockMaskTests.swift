import SparseKernels
import TestSupport
import Testing

@Suite("Block masks")
struct BlockMaskTests {
    /// Listed blocks of two heads, including unreachable ones when the grid has any.
    static func listed(_ grid: BlockGrid) throws -> BlockMask {
        try BlockMask.random(grid, heads: 2, density: 0.5, seed: 7)
    }

    @Test("counts agree with a count over tokens", arguments: GridCase.all)
    func counts(_ grid: GridCase) throws {
        let mask = try Self.listed(grid.grid())
        let pairs = grid.pairs()
        var (visible, nonzero) = (0, [0, 0])
        for head in 0..<2 {
            for row in pairs.indices {
                for column in pairs[row].indices where mask[head, row, column] {
                    visible += pairs[row][column]
                    if mask.grid.reachableColumns(ofRow: row).contains(column) { nonzero[head] += 1 }
                }
            }
        }
        #expect(mask.visiblePairs == visible)
        #expect(mask.nonzeroBlocks() == nonzero[0] + nonzero[1])
        #expect(mask.nonzeroBlocks(head: 0) == nonzero[0] && mask.nonzeroBlocks(head: 1) == nonzero[1])
        let reachable = mask.grid.reachableBlocks
        #expect(mask.density == Double(nonzero[0] + nonzero[1]) / Double(2 * reachable))
        #expect(mask.density(head: 1) == Double(nonzero[1]) / Double(reachable))
        #expect(mask.byteCount == 8 * (2 * mask.grid.blockRows + 1) + 4 * mask.columnIndices.count)
    }

    @Test("the closure is asked for reachable blocks only", arguments: GridCase.all)
    func reachableOnly(_ grid: GridCase) throws {
        let blocks = try grid.grid()
        var asked = 0
        let mask = try BlockMask(grid: blocks, heads: 3) { head, row, column in
            asked += 1
            return (head + row + column) % 2 == 0
        }
        #expect(asked == 3 * blocks.reachableBlocks)
        for head in 0..<3 {
            for row in 0..<blocks.blockRows {
                let columns = blocks.reachableColumns(ofRow: row).filter { (head + row + $0) % 2 == 0 }
                #expect(mask.columns(head: head, row: row).map { Int($0) } == columns)
            }
        }
    }

    @Test("whether a block is kept is known for any column")
    func membership() throws {
        let grid = try BlockGrid(queryLength: 4, keyLength: 40, queryBlockSize: 4, keyBlockSize: 4, isCausal: false)
        let mask = try BlockMask(grid: grid, heads: 1, rowOffsets: [0, 4], columnIndices: [1, 2, 5, 9])
        #expect((-2..<12).filter { mask[0, 0, $0] } == [1, 2, 5, 9])
    }

    // MARK: - Errors

    static let grid = Result {
        try BlockGrid(queryLength: 8, keyLength: 12, queryBlockSize: 4, keyBlockSize: 4, isCausal: true)
    }

    private func expectRefused(
        _ code: SparseKernelsError.Code, _ argument: String, heads: Int = 1, _ rowOffsets: [Int], _ columnIndices: [Int32],
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        expectError(code, argument, sourceLocation: sourceLocation) {
            _ = try BlockMask(grid: Self.grid.get(), heads: heads, rowOffsets: rowOffsets, columnIndices: columnIndices)
        }
    }

    @Test("parts that make no mask are refused")
    func errors() throws {
        #expect(throws: Never.self) {
            try BlockMask(grid: Self.grid.get(), heads: 1, rowOffsets: [0, 2, 3], columnIndices: [0, 2, 1])
        }
        for heads in [0, -1, .min, .max, 1 << 57] { expectRefused(.invalidShape, "heads", heads: heads, [0], []) }
        expectRefused(.invalidShape, "rowOffsets", [0, 2], [0, 2])
        expectRefused(.invalidShape, "rowOffsets", [], [])
        expectRefused(.invalidShape, "rowOffsets", heads: 2, [0, 1, 2], [0, 0])
        expectRefused(.invalidArgument, "rowOffsets", [1, 1, 2], [0, 1])
        expectRefused(.invalidArgument, "rowOffsets", [0, 1, 3], [0, 1])
        expectRefused(.invalidArgument, "rowOffsets[1]", [0, -1, 2], [0, 1])
        expectRefused(.invalidArgument, "rowOffsets[1]", [0, 3, 2], [0, 1])
        expectRefused(.invalidArgument, "rowOffsets[1]", [0, .max, 2], [0, 1])
        expectRefused(.invalidArgument, "columnIndices[1]", [0, 2, 2], [1, 1])
        expectRefused(.invalidArgument, "columnIndices[1]", [0, 2, 2], [1, 0])
        expectRefused(.invalidArgument, "columnIndices[0]", [0, 1, 2], [-1, 0])
        expectRefused(.invalidArgument, "columnIndices[2]", [0, 1, 3], [0, 0, 3])
        expectRefused(.invalidArgument, "columnIndices[0]", [0, 1, 1], [.max])
    }

    @Test("a closure for no heads or too many is refused", arguments: [0, -3, Int.max])
    func headsOfClosure(_ heads: Int) throws {
        expectError(.invalidShape, "heads", containing: "\(heads)") {
            _ = try BlockMask(grid: Self.grid.get(), heads: heads) { _, _, _ in true }
        }
    }

    @Test("a row outside the mask traps")
    func outside() async {
        await #expect(processExitsWith: .failure) {
            _ = BlockMask.full(try BlockGrid(queryLength: 4, keyLength: 4, isCausal: true)).columns(head: 0, row: 1)
        }
    }

    // MARK: - Scores

    @Test("scores have the shape of their grid")
    func scores() throws {
        let grid = try Self.grid.get()
        let scores = try BlockScores(grid: grid, values: Tensor([2, 2, 3]) { Float($0) })
        #expect(scores.heads == 2 && scores[1, 0, 2] == 8 && scores[0, 1, 1] == 4)
        for shape in [[2, 3], [0, 2, 3], [2, 3, 2], [1, 2, 4], [1, 2, 3, 1], []] {
            expectError(.invalidShape, "values") { _ = try BlockScores(grid: grid, values: Tensor(zeros: shape)) }
        }
    }
}

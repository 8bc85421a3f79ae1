import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Sets and permutations of block masks")
struct BlockMaskSetTests {
    @Test("heads come apart and together again", arguments: GridCase.all)
    func heads(_ grid: GridCase) throws {
        let mask = try BlockMask.random(grid.grid(), heads: 3, density: 0.4, seed: 1)
        let parts = try (0..<3).map { try mask.head($0) }
        for (head, part) in parts.enumerated() { #expect(part.heads == 1 && part.kept() == mask.kept(head: head)) }
        #expect(try BlockMask(stacking: parts) == mask)
        let five = try BlockMask(stacking: [mask, parts[2], parts[0]])
        #expect(five.heads == 5 && five.kept(head: 3) == parts[2].kept() && five.kept(head: 4) == parts[0].kept())
    }

    @Test("union and intersection are right block by block", arguments: GridCase.all)
    func sets(_ grid: GridCase) throws {
        let a = try BlockMask.random(grid.grid(), heads: 2, density: 0.4, seed: 2)
        let b = try BlockMask.random(grid.grid(), heads: 2, density: 0.7, seed: 3)
        let one = try b.head(1)
        for (x, y) in [(a, b), (b, a), (a, one), (one, a), (one, one)] {
            let (union, intersection) = (try x.union(y), try x.intersection(y))
            #expect(union.heads == max(x.heads, y.heads) && intersection.heads == union.heads)
            for head in 0..<union.heads {
                let left = x.kept(head: x.heads == 1 ? 0 : head)
                let right = y.kept(head: y.heads == 1 ? 0 : head)
                #expect(union.kept(head: head) == zip(left, right).map { zip($0, $1).map { $0 || $1 } })
                #expect(intersection.kept(head: head) == zip(left, right).map { zip($0, $1).map { $0 && $1 } })
            }
        }
        let full = try BlockMask.full(grid.grid())
        // Unreachable blocks stay listed in a union. The intersection with all reachable blocks removes them.
        #expect(try a.union(full).density == 1)
        #expect(try a.intersection(full) == BlockMask(grid: grid.grid(), heads: 2) { a[$0, $1, $2] })
    }

    @Test("a permutation moves rows, columns and their sizes", arguments: GridCase.all.filter { !$0.isCausal })
    func permuted(_ grid: GridCase) throws {
        let mask = try BlockMask.random(grid.grid(), heads: 2, density: 0.4, seed: 4)
        var generator = SplitMix64(seed: 5)
        let rows = Array(0..<mask.grid.blockRows).shuffled(using: &generator)
        let columns = Array(0..<mask.grid.blockColumns).shuffled(using: &generator)
        let moved = try mask.permuted(rows: rows, columns: columns)
        #expect(moved.grid.query.sizes == rows.map { grid.query.sizes[$0] })
        #expect(moved.grid.key.sizes == columns.map { grid.key.sizes[$0] })
        for head in 0..<2 {
            for row in rows.indices {
                for column in columns.indices {
                    #expect(moved[head, row, column] == mask[head, rows[row], columns[column]])
                }
            }
        }
        // Both parts are valid, and the inverse restores the original.
        #expect(
            try BlockMask(
                grid: moved.grid, heads: 2, rowOffsets: moved.rowOffsets, columnIndices: moved.columnIndices) == moved)
        let back = try moved.permuted(
            rows: rows.indices.sorted { rows[$0] < rows[$1] }, columns: columns.indices.sorted { columns[$0] < columns[$1] })
        #expect(back == mask)
        #expect(try mask.permuted() == mask)
        #expect(moved.visiblePairs == mask.visiblePairs)
    }

    @Test("uniform blocks stay uniform unless a ragged one moves")
    func uniformity() throws {
        let grid = try BlockGrid(queryLength: 12, keyLength: 10, queryBlockSize: 4, keyBlockSize: 4, isCausal: false)
        let mask = BlockMask.full(grid)
        let even = try mask.permuted(rows: [2, 0, 1], columns: [1, 0, 2])
        #expect(even.grid == grid && even.grid.query.blockSize == 4 && even.grid.key.blockSize == 4)
        let ragged = try mask.permuted(columns: [2, 0, 1])
        #expect(ragged.grid.key.blockSize == nil && ragged.grid.key.sizes == [2, 4, 4])
    }

    @Test("masks that do not go together are refused")
    func errors() throws {
        let causal = try BlockGrid(queryLength: 8, keyLength: 8, queryBlockSize: 4, keyBlockSize: 4, isCausal: true)
        let open = try BlockGrid(queryLength: 8, keyLength: 8, queryBlockSize: 4, keyBlockSize: 4, isCausal: false)
        let (a, b) = (BlockMask.full(causal), BlockMask.full(open))
        let (two, three) = (try BlockMask(stacking: [b, b]), try BlockMask(stacking: [b, b, b]))
        for head in [-1, 2, Int.max] { expectError(.invalidArgument, "head", containing: "\(head)") { _ = try two.head(head) } }
        expectError(.invalidShape, "masks") { _ = try BlockMask(stacking: []) }
        expectError(.invalidShape, "masks[2]", containing: "not causal") { _ = try BlockMask(stacking: [a, a, b]) }
        expectError(.invalidShape, "other") { _ = try a.union(b) }
        expectError(.invalidShape, "other") { _ = try b.intersection(a) }
        expectError(.invalidShape, "other.heads", containing: "2", "3") { _ = try two.union(three) }
        expectError(.invalidArgument, "grid", containing: "causal") { _ = try a.permuted(rows: [1, 0]) }
        expectError(.invalidShape, "rows", containing: "2", "3") { _ = try b.permuted(rows: [1, 0, 2]) }
        expectError(.invalidShape, "columns") { _ = try b.permuted(columns: []) }
        expectError(.invalidArgument, "rows[1]", containing: "1 again") { _ = try b.permuted(rows: [1, 1]) }
        for index in [-1, 2, .min, .max] {
            expectError(.invalidArgument, "columns[0]", containing: "\(index)") { _ = try b.permuted(columns: [index, 0]) }
        }
    }
}

import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Vertical-slash selection and index")
struct VerticalSlashIndexTests {
    /// The `count` largest of the values with forced ones first, by sorting.
    static func sorted(_ values: [Float], count: Int, forced: Int) -> [Int32] {
        let order = values.indices.sorted {
            let (a, b) = ($0 < forced ? .infinity : values[$0], $1 < forced ? .infinity : values[$1])
            return a != b ? a > b : $0 < $1
        }
        return order.prefix(count).map(Int32.init).sorted()
    }

    @Test("selection keeps forced lines, then the largest, ties by index")
    func selection() throws {
        for (length, seed) in [(1, 1), (29, 2), (100, 3), (101, 4), (777, 5), (5000, 6)] {
            var generator = SplitMix64(seed: UInt64(seed))
            // Values are quantised for many ties. Negative ones cannot come from scoring, but are ordered as well.
            let vertical = (0..<length).map { _ in (generator.normal() * 4).rounded() / 4 }
            let slash = (0..<length).map { _ in generator.uniform() }
            let scores = try VerticalSlashScores(
                vertical: Tensor([1, length], vertical), slash: Tensor([1, length], slash))
            for (keys, distances) in [(0, 0), (30, 50), (31, 101), (200, 400), (9999, 9999)] {
                let lines = try VerticalSlashSelection(vertical: keys, slash: distances)(scores, head: 0)
                #expect(lines.keys == Self.sorted(vertical, count: max(keys, 30), forced: 30))
                #expect(lines.distances == Self.sorted(slash, count: max(distances, 50), forced: 100))
            }
        }
    }

    @Test("signs of zero do not matter")
    func zeros() throws {
        let values = try Tensor<Float>([1, 64], (0..<64).map { $0 % 2 == 0 ? -0.0 : 0 })
        let scores = try VerticalSlashScores(vertical: values, slash: values)
        let lines = try VerticalSlashSelection(vertical: 40, slash: 50, forcedKeys: 0)(scores, head: 0)
        #expect(lines.keys == (0..<40).map(Int32.init))
    }

    @Test("the micro case of the specification is reproduced")
    func micro() throws {
        let lines = VerticalSlashLines(keys: [0, 5, 100, 250, 300], distances: [190, 70, 2, 1, 0])
        let index = try VerticalSlashIndex(lines, queryLength: 400, keyLength: 400)
        #expect(Array(index.columns(block: 4)) == [0, 5, 250])
        #expect(Array(index.blockStarts(block: 4)) == [66, 186, 254, 318])
        #expect(index.columns(block: 0).isEmpty && Array(index.blockStarts(block: 0)) == [0])
        #expect(Array(index.keyRuns.runs(block: 4)) == [66..<130, 186..<250, 254..<382])
        // The last block of queries ends at 448 in the official code. Our runs end at the last key.
        #expect(index.keyRuns.runs(block: 6).last?.upperBound == 400)
    }

    static func lines(_ keys: Int, count: Int, distances: Int, seed: UInt64) -> VerticalSlashLines {
        var generator = SplitMix64(seed: seed)
        return VerticalSlashLines(
            keys: (0..<count).map { _ in Int32.random(in: 0..<Int32(keys), using: &generator) },
            distances: [0] + (0..<distances).map { _ in Int32.random(in: 0..<Int32(keys), using: &generator) })
    }

    @Test("every line is covered, in the index, the runs and the blocks")
    func coverage() throws {
        for (queries, keys, blockSize, count, distances) in [
            (1, 1, 64, 1, 0), (5, 5, 64, 2, 2), (400, 400, 64, 20, 10), (130, 517, 64, 9, 30), (300, 300, 16, 0, 7),
            (128, 128, 128, 5, 5), (77, 400, 7, 30, 2),
        ] {
            let lines = Self.lines(keys, count: count, distances: distances, seed: UInt64(keys))
            let index = try VerticalSlashIndex(lines, queryLength: queries, keyLength: keys, blockSize: blockSize)
            let runs = index.keyRuns
            let grid = try BlockGrid(
                queryLength: queries, keyLength: keys, queryBlockSize: 48, keyBlockSize: 32, isCausal: true)
            let cover = try index.blockCover(grid)
            for query in 0..<queries {
                let (block, position) = (query / blockSize, query + keys - queries)
                let wanted = Set(lines.keys.map(Int.init) + lines.distances.map { position - Int($0) })
                for key in wanted where key >= 0 && key <= position {
                    let isKept =
                        runs.runs(block: block).contains { $0.contains(key) } || runs.keys(block: block).contains(Int32(key))
                    #expect(isKept, "query \(query), key \(key) of \(queries) × \(keys)")
                    #expect(cover[0, query / 48, key / 32])
                }
            }
        }
    }

    @Test("the block cover holds nothing but blocks of kept keys")
    func tightCover() throws {
        let lines = Self.lines(900, count: 12, distances: 6, seed: 12)
        let index = try VerticalSlashIndex(lines, queryLength: 900, keyLength: 900)
        let grid = try BlockGrid(queryLength: 900, keyLength: 900, queryBlockSize: 64, keyBlockSize: 32, isCausal: true)
        let cover = try index.blockCover(grid)
        for row in 0..<grid.blockRows {
            var keys = Set(index.columns(block: row).map { Int($0) / 32 })
            for run in index.keyRuns.runs(block: row) { for key in run { keys.insert(key / 32) } }
            let expected = keys.filter { grid.reachableColumns(ofRow: row).contains($0) }.sorted()
            #expect(cover.columns(head: 0, row: row).map(Int.init) == expected)
        }
    }

    @Test("attention over the runs agrees with the oracle that hides all other keys", arguments: InstructionSet.available)
    func attention(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 150, keyLength: 333, queryHeads: 2, kvHeads: 1, headDim: 32)
        let query = try Tensor<Float>.normal([2, 150, 32], seed: 1)
        let key = try Tensor<Float>.normal([1, 333, 32], seed: 2)
        let value = try Tensor<Float>.normal([1, 333, 32], seed: 3)
        let index = try VerticalSlashIndex(
            Self.lines(333, count: 15, distances: 4, seed: 4), queryLength: 150, keyLength: 333)
        let runs = index.keyRuns
        let state = try BlockSparseAttention(shape, heads: [.runs(runs)], isCausal: true, instructionSet: set)(
            query: query, key: key, value: value)
        let rows = try referenceRows(
            ReferenceAttention(shape, mask: .causal), query: query, key: key, value: value,
            hides: { query, key in
                !runs.runs(block: query / 64).contains { $0.contains(key) }
                    && !runs.keys(block: query / 64).contains(Int32(key))
            })
        expectMatches(state.output, state.logSumExp, rows, headDim: 32, "vertical-slash on \(set)")
    }

    @Test("bad input is an error that names it")
    func errors() throws {
        let lines = VerticalSlashLines(keys: [3], distances: [0, 9])
        expectError(.invalidShape, "length") { _ = try VerticalSlashIndex(lines, queryLength: -1, keyLength: 10) }
        expectError(.invalidShape, "keyLength") { _ = try VerticalSlashIndex(lines, queryLength: 11, keyLength: -1) }
        expectError(.invalidShape, "blockSize") {
            _ = try VerticalSlashIndex(lines, queryLength: 10, keyLength: 10, blockSize: 0)
        }
        expectError(.invalidArgument, "lines.distances") { _ = try VerticalSlashIndex(lines, queryLength: 9, keyLength: 9) }
        expectError(.invalidArgument, "lines.keys") {
            _ = try VerticalSlashIndex(VerticalSlashLines(keys: [-1], distances: [0]), queryLength: 9, keyLength: 9)
        }
        expectError(.invalidArgument, "lines.distances") {
            _ = try VerticalSlashIndex(VerticalSlashLines(keys: [], distances: [1, 2]), queryLength: 9, keyLength: 9)
        }
        let index = try VerticalSlashIndex(lines, queryLength: 10, keyLength: 10)
        expectError(.invalidShape, "grid") {
            _ = try index.blockCover(BlockGrid(queryLength: 9, keyLength: 10, isCausal: true))
        }
        expectError(.invalidArgument, "grid") {
            _ = try index.blockCover(BlockGrid(queryLength: 10, keyLength: 10, isCausal: false))
        }
    }
}

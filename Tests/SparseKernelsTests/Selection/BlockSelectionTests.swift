import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Selection: blocks")
struct BlockSelectionTests {
    static let rules: [BlockSelection.Rule] = [
        .topP(0), .topP(0.5), .topP(0.9), .topP(1), .topK(0), .topK(3), .topK(1000), .threshold(0.4), .threshold(-.infinity),
    ]

    /// Scores in [0, 1) where reachable, with few distinct values when `steps` is given.
    static func scores(_ grid: BlockGrid, heads: Int, seed: UInt64, steps: Float? = nil) throws -> BlockScores {
        var generator = SplitMix64(seed: seed)
        let values = try Tensor<Float>([heads, grid.blockRows, grid.blockColumns]) { index in
            let x = generator.uniform()
            let row = index / grid.blockColumns % grid.blockRows
            if !grid.reachableColumns(ofRow: row).contains(index % grid.blockColumns) { return 0 }
            return steps.map { (x * $0).rounded(.down) / $0 } ?? x * x
        }
        return try BlockScores(grid: grid, values: values)
    }

    /// The rule, by a full sort of every row.
    static func expected(
        _ selection: BlockSelection, _ scores: BlockScores, within candidates: BlockMask? = nil
    ) throws -> BlockMask {
        let grid = scores.grid
        var kept: [Set<Int>] = []
        for head in 0..<scores.heads {
            for row in 0..<grid.blockRows {
                let columns = grid.reachableColumns(ofRow: row).filter {
                    !grid.key[$0].isEmpty && candidates?[candidates?.heads == 1 ? 0 : head, row, $0] ?? true
                }
                let diagonal = grid.diagonalColumns(ofRow: row)
                let recent = selection.recentBlocks
                let forced = Set(
                    columns.indices.filter {
                        let column = columns[$0]
                        return column < selection.sinkBlocks
                            || recent > 0 && column >= diagonal.lowerBound - (recent - 1) && column < diagonal.upperBound
                    })
                let values = columns.map { scores[head, row, $0] }
                let minimum = selection.minimumBlocks
                let positions: [Int]
                switch selection.rules[selection.rules.count == 1 ? 0 : head] {
                case .topP(let mass):
                    positions = sortedTopP(values, mass: mass, minimumCount: minimum, forced: forced)
                case .topK(let count):
                    positions = sortedTopP(
                        values, mass: 0, minimumCount: max(count, minimum), forced: forced)
                case .threshold(let threshold):
                    let above = values.indices.filter { values[$0] >= threshold && !forced.contains($0) }
                    positions = sortedTopP(
                        values, mass: 0, minimumCount: max(above.count + forced.count, minimum), forced: forced)
                }
                kept.append(Set(positions.map { columns[$0] }))
            }
        }
        return try BlockMask(grid: grid, heads: scores.heads) { kept[$0 * grid.blockRows + $1].contains($2) }
    }

    static func grids() throws -> [BlockGrid] {
        [
            try BlockGrid(queryLength: 1, keyLength: 1, isCausal: true),
            try BlockGrid(queryLength: 700, keyLength: 700, queryBlockSize: 64, keyBlockSize: 64, isCausal: true),
            try BlockGrid(queryLength: 130, keyLength: 900, queryBlockSize: 64, keyBlockSize: 32, isCausal: true),
            try BlockGrid(queryLength: 333, keyLength: 450, queryBlockSize: 128, keyBlockSize: 16, isCausal: false),
            try BlockGrid(queryLength: 90, keyLength: 30, queryBlockSize: 16, keyBlockSize: 16, isCausal: false),
            try BlockGrid(
                query: BlockPartition(sizes: [3, 0, 7, 20]), key: BlockPartition(sizes: [0, 5, 1, 0, 20, 9, 0]), isCausal: true),
            try BlockGrid(
                query: BlockPartition(sizes: [0, 4, 4]), key: BlockPartition(sizes: [2, 0, 3]), isCausal: false),
        ]
    }

    @Test("equals a full sort, with forced blocks and minima", arguments: rules)
    func fullSort(_ rule: BlockSelection.Rule) throws {
        for (index, grid) in try Self.grids().enumerated() {
            for (minimum, sink, recent) in [(0, 0, 0), (1, 1, 1), (4, 2, 3), (Int.max, 0, 0), (0, Int.max, 0), (2, 0, Int.max)]
            {
                let selection = try BlockSelection(rule, minimumBlocks: minimum, sinkBlocks: sink, recentBlocks: recent)
                for steps in [nil, 4] as [Float?] {
                    let scores = try Self.scores(grid, heads: 2, seed: UInt64(index), steps: steps)
                    let mask = try selection(scores)
                    #expect(
                        try mask == Self.expected(selection, scores), "grid \(index), \(minimum), \(sink), \(recent)")
                }
            }
        }
    }

    @Test("another mask restricts the choice, and the mass is a fraction of its blocks", arguments: rules)
    func within(_ rule: BlockSelection.Rule) throws {
        for (index, grid) in try Self.grids().enumerated() {
            let scores = try Self.scores(grid, heads: 3, seed: 40 + UInt64(index))
            for heads in [1, 3] {
                var generator = SplitMix64(seed: 9)
                let candidates = try BlockMask(grid: grid, heads: heads) { _, _, _ in generator.uniform() < 0.5 }
                let selection = try BlockSelection(rule, minimumBlocks: 2, sinkBlocks: 1, recentBlocks: 1)
                let mask = try selection(scores, within: candidates)
                #expect(try mask == Self.expected(selection, scores, within: candidates), "grid \(index)")
                for head in 0..<3 {
                    for row in 0..<grid.blockRows {
                        let allowed = Set(candidates.columns(head: heads == 1 ? 0 : head, row: row))
                        #expect(allowed.isSuperset(of: mask.columns(head: head, row: row)))
                    }
                }
            }
        }
    }

    @Test("every head has its rule")
    func perHead() throws {
        let grid = try BlockGrid(queryLength: 1000, keyLength: 1000, isCausal: true)
        let scores = try Self.scores(grid, heads: 3, seed: 3)
        let rules: [BlockSelection.Rule] = [.topP(0.3), .topK(2), .threshold(0.5)]
        let mask = try BlockSelection(perHead: rules)(scores)
        for (head, rule) in rules.enumerated() {
            let alone = try BlockSelection(rule)(scores)
            for row in 0..<grid.blockRows {
                #expect(mask.columns(head: head, row: row) == alone.columns(head: head, row: row)[...])
            }
        }
    }

    @Test("the mask is the same on 1, 2 and 7 threads")
    func threads() throws {
        // 3 heads × 300 × 300 blocks are above the cut-off, so that threads are woken.
        let grid = try BlockGrid(
            queryLength: 300 * 16, keyLength: 300 * 16, queryBlockSize: 16, keyBlockSize: 16, isCausal: true)
        let scores = try Self.scores(grid, heads: 3, seed: 8)
        #expect(8 * scores.values.count > WorkerPool.workCutoff)
        let selection = try BlockSelection(.topP(0.8), sinkBlocks: 1, recentBlocks: 2)
        let serial = try selection(scores, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<3 { #expect(try selection(scores, on: pool) == serial) }
        }
    }

    @Test("a row with NaN keeps everything it reaches and changes no other row")
    func nonFinite() throws {
        let grid = try BlockGrid(queryLength: 80, keyLength: 80, queryBlockSize: 16, keyBlockSize: 16, isCausal: true)
        let clean = try Self.scores(grid, heads: 1, seed: 4)
        for rule in [.topP(0.5), .topK(1), .threshold(0.9)] as [BlockSelection.Rule] {
            var values = clean.values
            values[flat: 3 * 5 + 1] = .nan
            // The block is past the diagonal, so its score is not read.
            values[flat: 1 * 5 + 4] = .nan
            let selection = try BlockSelection(rule)
            let mask = try selection(BlockScores(grid: grid, values: values))
            let expected = try selection(clean)
            for row in 0..<5 {
                #expect(
                    Array(mask.columns(head: 0, row: row))
                        == (row == 3 ? [0, 1, 2, 3] : Array(expected.columns(head: 0, row: row))))
            }
        }
        var values = clean.values
        values[flat: 4 * 5 + 1] = .infinity
        #expect(try BlockSelection(.topP(0.5))(BlockScores(grid: grid, values: values)).columns(head: 0, row: 4).count == 5)
        #expect(try BlockSelection(.topK(1))(BlockScores(grid: grid, values: values)).columns(head: 0, row: 4) == [1])
    }

    @Test("bad arguments are refused")
    func errors() throws {
        for mass in [-0.1, 1.5, .nan] {
            expectError(.invalidArgument, "rule.topP") { _ = try BlockSelection(.topP(mass)) }
            expectError(.invalidArgument, "rules[1].topP") {
                _ = try BlockSelection(perHead: [.topK(1), .topP(mass)])
            }
        }
        expectError(.invalidArgument, "rule.topK") { _ = try BlockSelection(.topK(-1)) }
        expectError(.invalidArgument, "rule.threshold") { _ = try BlockSelection(.threshold(.nan)) }
        expectError(.invalidShape, "rules") { _ = try BlockSelection(perHead: []) }
        expectError(.invalidArgument, "minimumBlocks") {
            _ = try BlockSelection(.topK(1), minimumBlocks: -1)
        }
        expectError(.invalidArgument, "sinkBlocks") { _ = try BlockSelection(.topK(1), sinkBlocks: -1) }
        expectError(.invalidArgument, "recentBlocks") {
            _ = try BlockSelection(.topK(1), recentBlocks: -1)
        }
        let grid = try BlockGrid(queryLength: 80, keyLength: 80, queryBlockSize: 16, keyBlockSize: 16, isCausal: true)
        let scores = try Self.scores(grid, heads: 3, seed: 4)
        expectError(.invalidShape, "rules") {
            _ = try BlockSelection(perHead: [.topK(1), .topK(2)])(scores)
        }
        let full = try BlockGrid(queryLength: 80, keyLength: 80, queryBlockSize: 16, keyBlockSize: 16, isCausal: false)
        expectError(.invalidShape, "candidates.grid") {
            _ = try BlockSelection(.topK(1))(scores, within: BlockMask(grid: full) { _, _, _ in true })
        }
        expectError(.invalidShape, "candidates.heads") {
            _ = try BlockSelection(.topK(1))(scores, within: BlockMask(grid: grid, heads: 2) { _, _, _ in true })
        }
        var values = scores.values
        values[flat: 25 + 2 * 5 + 1] = -0.5
        let negative = try BlockScores(grid: grid, values: values)
        expectError(.invalidArgument, "scores[1, 2, 1]") { _ = try BlockSelection(.topP(0.5))(negative) }
        _ = try BlockSelection(.topK(2))(negative)
    }
}

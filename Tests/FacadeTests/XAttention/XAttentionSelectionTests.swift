import SparseKernelsReference
import TestSupport
import Testing
import XAttention

/// The released selection, compared with the specification's vectors and a transcription with full sorts.
@Suite("XAttention: released selection")
struct XAttentionSelectionTests {
    /// One row of the released function as specified: sorted lists, prefix sums, and index 0 for rejected blocks.
    static func transcription(_ row: [Double], _ threshold: Double, current: Int, chunk: Int, i: Int, causal: Bool) -> [Int] {
        let n = row.count
        let required = row.reduce(0, +) * threshold
        func descending(_ keys: [Double]) -> [Int] { keys.indices.sorted { (keys[$0], -$0) > (keys[$1], -$1) } }
        var kept = [Bool](repeating: false, count: n)
        var masses: [Double]
        let order: [Int]
        if causal {
            var forced = [Bool](repeating: false, count: n)
            forced[0] = true
            for t in 0..<chunk { forced[current + t] = t == i }
            let others = (0..<n).map { forced[$0] ? 0 : row[$0] }.sorted(by: >)
            masses = [0, (0..<n).reduce(0) { $0 + (forced[$1] ? row[$1] : 0) }] + others.dropLast(2)
            order = descending((0..<n).map { forced[$0] ? 100_000 * (1 + row[$0]) : row[$0] })
            kept = forced
        } else {
            order = descending(row)
            masses = order.map { row[$0] }
        }
        var before = 0.0
        for (rank, index) in order.enumerated() {
            kept[before < required ? index : 0] = true
            before += masses[rank]
        }
        if causal { for column in current + chunk..<n { kept[column] = false } }
        return kept.indices.filter { kept[$0] }
    }

    /// Selects in a grid of one-token blocks: row `i` of the chunk from block `current` on is `values`, other rows are 0.
    static func select(
        _ values: [Float], _ threshold: Double, current: Int, chunk: Int, i: Int, causal: Bool = true
    ) throws -> [Int] {
        let n = values.count
        let rows = n - current
        let grid = try BlockGrid(queryLength: rows, keyLength: n, queryBlockSize: 1, keyBlockSize: 1, isCausal: causal)
        let scores = try BlockScores(
            grid: grid, values: Tensor([1, rows, n]) { $0 / n == i ? values[$0 % n] : 0 })
        let selection = try XAttentionSelection(thresholds: [threshold], blocksPerChunk: chunk)
        return try selection.blocksBeforePostProcessing(scores).columns(head: 0, row: i).map { Int($0) }
    }

    @Test(
        "a later chunk is a clean greedy rule with sink and diagonal",
        arguments: [(0.9, [0, 2, 3, 5]), (0.58, [0, 5]), (0, [0, 5]), (1, [0, 1, 2, 3, 4, 5])] as [(Double, [Int])])
    func laterChunk(_ threshold: Double, _ kept: [Int]) throws {
        let row: [Float] = [0.40, 0.05, 0.25, 0.10, 0.02, 0.18, 0, 0]
        #expect(try Self.select(row, threshold, current: 4, chunk: 4, i: 1) == kept)
    }

    @Test("the first chunk keeps one block more")
    func firstChunk() throws {
        let row: [Float] = [0.05, 0.30, 0.02, 0.08, 0.55, 0]
        #expect(try Self.select(row, 0.8, current: 0, chunk: 6, i: 4) == [0, 1, 3, 4])
    }

    @Test("equals the transcription", arguments: [true, false], [0, 0.3, 0.58, 0.8, 0.9, 1] as [Double])
    func equalsTranscription(_ causal: Bool, _ threshold: Double) throws {
        var generator = SplitMix64(seed: 77)
        for (chunks, chunk, prefix) in [(1, 1, 0), (1, 7, 0), (3, 4, 0), (2, 3, 3), (1, 5, 10), (4, 1, 1)] {
            let (rows, columns) = (chunks * chunk, chunks * chunk + prefix)
            // With a single block, the released lists are longer than the row.
            if causal && columns == 1 { continue }
            let grid = try BlockGrid(
                queryLength: rows, keyLength: columns, queryBlockSize: 1, keyBlockSize: 1, isCausal: causal)
            let values = try Tensor<Float>([2, rows, columns]) { index in
                let x = generator.uniform()
                let (row, column) = (index / columns % rows, index % columns)
                return row == rows - 1 && rows > 2 || causal && column > row + prefix ? 0 : x * x
            }
            let scores = try BlockScores(grid: grid, values: values)
            let selection = try XAttentionSelection(thresholds: [threshold], blocksPerChunk: chunk)
            let mask = try selection.blocksBeforePostProcessing(scores)
            for head in 0..<2 {
                for row in 0..<rows {
                    let line = (0..<columns).map { Double(scores[head, row, $0]) }
                    let expected = Self.transcription(
                        line, threshold, current: prefix + row / chunk * chunk, chunk: chunk, i: row % chunk, causal: causal)
                    #expect(
                        mask.columns(head: head, row: row).map { Int($0) } == expected,
                        "\(chunks)×\(chunk)+\(prefix), row \(row)")
                }
            }
        }
    }

    @Test("post-processing: lower triangle, row 0 for the sink, the diagonal for recent")
    func postProcessing() throws {
        let grid = try BlockGrid(queryLength: 4, keyLength: 6, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        let scores = try BlockScores(grid: grid, values: Tensor([1, 4, 6]) { _ in 1 })
        func rows(_ keepSink: Bool, _ keepRecent: Bool) throws -> [[Int32]] {
            let selection = try XAttentionSelection(
                thresholds: [0], blocksPerChunk: 2, keepSink: keepSink, keepRecent: keepRecent)
            let mask = try selection(scores)
            return (0..<4).map { Array(mask.columns(head: 0, row: $0)) }
        }
        #expect(try rows(false, false) == [[0, 2], [0, 3], [0, 4], [0, 5]])
        #expect(try rows(true, false) == [[0, 1, 2, 3, 4, 5], [0, 3], [0, 4], [0, 5]])
        let full = try BlockGrid(queryLength: 2, keyLength: 3, queryBlockSize: 1, keyBlockSize: 1, isCausal: false)
        let flat = try BlockScores(grid: full, values: Tensor([1, 2, 3]) { _ in 1 })
        let selection = try XAttentionSelection(thresholds: [0], blocksPerChunk: 1, keepRecent: true)
        let mask = try selection(flat)
        #expect((0..<2).map { Array(mask.columns(head: 0, row: $0)) } == [[0, 1], [0, 2]])
    }

    @Test("NaN leaves the forced blocks and column 0")
    func nonFinite() throws {
        let row: [Float] = [0.40, 0.05, .nan, 0.10, 0.02, 0.18, 0, 0]
        #expect(try Self.select(row, 0.9, current: 4, chunk: 4, i: 1) == [0, 5])
        #expect(try Self.select(row, 0.9, current: 0, chunk: 8, i: 3) == [0, 3])
        #expect(try Self.select(row, 0.9, current: 0, chunk: 8, i: 3, causal: false) == [0])
        #expect(try Self.select([.nan], 0.9, current: 0, chunk: 1, i: 0) == [0])
    }

    @Test("bad arguments are refused")
    func errors() throws {
        expectError(.invalidShape, "thresholds") {
            _ = try XAttentionSelection(thresholds: [], blocksPerChunk: 1)
        }
        expectError(.invalidArgument, "thresholds[1]") {
            _ = try XAttentionSelection(thresholds: [0, 1.1], blocksPerChunk: 1)
        }
        expectError(.invalidArgument, "blocksPerChunk") {
            _ = try XAttentionSelection(thresholds: [0], blocksPerChunk: 0)
        }
        let grid = try BlockGrid(queryLength: 4, keyLength: 6, queryBlockSize: 1, keyBlockSize: 1, isCausal: true)
        let scores = try BlockScores(grid: grid, values: Tensor([1, 4, 6]) { _ in 1 })
        expectError(.invalidShape, "thresholds") {
            _ = try XAttentionSelection(thresholds: [0, 1], blocksPerChunk: 2)(scores)
        }
        expectError(.invalidShape, "scores") {
            _ = try XAttentionSelection(thresholds: [0], blocksPerChunk: 3)(scores)
        }
        let wide = try BlockGrid(queryLength: 6, keyLength: 4, queryBlockSize: 1, keyBlockSize: 1, isCausal: false)
        expectError(.invalidShape, "scores") {
            _ = try XAttentionSelection(thresholds: [0], blocksPerChunk: 2)(
                BlockScores(grid: wide, values: Tensor([1, 6, 4]) { _ in 1 }))
        }
    }
}

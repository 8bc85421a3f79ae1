import SparseKernels
import SparseKernelsReference
import Testing

/// Visibility by the rules of Block-Sparse-Attention (mit-han-lab), from its formulas: row r, column c, D = Lk − Lq.
///
/// Visibility is observed from the operator's output and not from the schedule. With keys of zero, every visible key has the
/// same weight. With the value e_c for key c, the output of a row is 1/n where the row sees c, and exactly 0 elsewhere.
@Suite("Visibility rules of Block-Sparse-Attention")
struct BlockSparseVisibilityTests {
    /// The (row, column) pairs that a plan sees, observed in windows of `valueDim` columns.
    static func visiblePairs(_ patterns: [HeadPattern], queryLength: Int, keyLength: Int, isCausal: Bool) throws -> [[Bool]] {
        let channels = 256
        let shape = try AttentionShape(
            queryLength: queryLength, keyLength: keyLength, queryHeads: 1, kvHeads: 1, headDim: 1, valueDim: channels)
        let attention = try BlockSparseAttention(shape, heads: patterns, isCausal: isCausal)
        let zeros = try (Tensor<Float>(zeros: [1, queryLength, 1]), Tensor<Float>(zeros: [1, keyLength, 1]))
        var sees = Array(repeating: Array(repeating: false, count: keyLength), count: queryLength)
        for first in stride(from: 0, to: keyLength, by: channels) {
            let value = try Tensor<Float>([1, keyLength, channels]) { $0 / channels == first + $0 % channels ? 1 : 0 }
            let output = try attention(query: zeros.0, key: zeros.1, value: value).output.elements
            for row in 0..<queryLength {
                for column in first..<min(keyLength, first + channels) {
                    sees[row][column] = output[row * channels + column - first] != 0
                }
            }
        }
        return sees
    }

    /// The first pair that differs from the rule.
    static func firstDifference(_ sees: [[Bool]], _ rule: (Int, Int) -> Bool) -> String? {
        for (row, line) in sees.enumerated() {
            for (column, isSeen) in line.enumerated() where isSeen != rule(row, column) {
                return "(\(row), \(column)) \(isSeen)"
            }
        }
        return nil
    }

    struct Lengths: Sendable, CustomTestStringConvertible {
        var query: Int
        var key: Int
        var testDescription: String { "\(query)×\(key)" }
        var difference: Int { key - query }

        /// Equal lengths, ragged ones, and differences that are not multiples of a block.
        static let all = [
            Lengths(query: 512, key: 512), Lengths(query: 500, key: 500), Lengths(query: 300, key: 556),
            Lengths(query: 200, key: 430), Lengths(query: 1, key: 300), Lengths(query: 130, key: 131),
        ]
    }

    @Test("dense heads see c ≤ r + D", arguments: Lengths.all)
    func dense(_ lengths: Lengths) throws {
        let sees = try Self.visiblePairs([.dense], queryLength: lengths.query, keyLength: lengths.key, isCausal: true)
        #expect(Self.firstDifference(sees) { r, c in c <= r + lengths.difference } == nil)
        let all = try Self.visiblePairs([.dense], queryLength: lengths.query, keyLength: lengths.key, isCausal: false)
        #expect(Self.firstDifference(all) { _, _ in true } == nil)
    }

    @Test("block-sparse heads see mask[r/128, c/128] and c ≤ r + D", arguments: Lengths.all)
    func blockSparse(_ lengths: Lengths) throws {
        for isCausal in [true, false] {
            let grid = try BlockGrid(queryLength: lengths.query, keyLength: lengths.key, isCausal: isCausal)
            let mask = try BlockMask.random(grid, density: 0.5, seed: 3)
            let sees = try Self.visiblePairs(
                [.blockSparse(mask, head: 0)], queryLength: lengths.query, keyLength: lengths.key, isCausal: isCausal)
            let difference = Self.firstDifference(sees) { r, c in
                mask.columns(head: 0, row: r / 128).contains(Int32(c / 128)) && (!isCausal || c <= r + lengths.difference)
            }
            #expect(difference == nil)
        }
    }

    @Test(
        "token streaming sees c ≤ r + D with c < sink or c ≥ max(0, r + D − (local − 1))", arguments: Lengths.all,
        [(64, 256), (0, 1), (1, 1), (4, 100), (129, 128), (600, 3), (2, 600)])
    func tokenStreaming(_ lengths: Lengths, _ stream: (sink: Int, local: Int)) throws {
        let sees = try Self.visiblePairs(
            [.streaming(sink: stream.sink, local: stream.local)], queryLength: lengths.query, keyLength: lengths.key,
            isCausal: true)
        let difference = Self.firstDifference(sees) { r, c in
            let position = r + lengths.difference
            return c <= position && (c < stream.sink || c >= max(0, position - (stream.local - 1)))
        }
        #expect(difference == nil)
    }

    /// With query block i = r/128 and i0 = max((Lq − Lk)/128, 0) = 0 here, the last block is e = ceil(max(D, 0)/128) + (i −
    /// i0). Blocks 0 ..< sink and e − local + 1 ... e are visible below the token diagonal.
    @Test(
        "causal block streaming sees sink blocks and the local blocks that end at e", arguments: Lengths.all,
        [(1, 3), (0, 1), (1, 1), (2, 2), (3, 1), (9, 9)])
    func blockStreaming(_ lengths: Lengths, _ stream: (sink: Int, local: Int)) throws {
        func isKept(_ queryBlock: Int, _ keyBlock: Int) -> Bool {
            let last = (max(lengths.difference, 0) + 127) / 128 + queryBlock
            return keyBlock < stream.sink || (keyBlock >= last - stream.local + 1 && keyBlock <= last)
        }
        let grid = try BlockGrid(queryLength: lengths.query, keyLength: lengths.key, isCausal: true)
        // In our grids, the last block of a full row is its last reachable one.
        for row in 0..<lengths.query / 128 {
            #expect(grid.reachableColumns(ofRow: row).upperBound - 1 == (lengths.difference + 127) / 128 + row)
        }
        let mask = try BlockMask(grid: grid) { _, row, column in isKept(row, column) }
        let sees = try Self.visiblePairs(
            [.blockSparse(mask, head: 0)], queryLength: lengths.query, keyLength: lengths.key, isCausal: true)
        let difference = Self.firstDifference(sees) { r, c in c <= r + lengths.difference && isKept(r / 128, c / 128) }
        #expect(difference == nil)
        // Without a sink and with equal lengths, a window of whole blocks spans (local − 1)·128 + 1 to local·128 past tokens.
        if lengths.difference == 0 && stream.sink == 0 {
            for (row, line) in sees.enumerated() where row >= stream.local * 128 {
                let seen = line.count { $0 }
                #expect(seen > (stream.local - 1) * 128 && seen <= stream.local * 128)
            }
        }
    }

    @Test(
        "block streaming without a diagonal sees sink blocks and the last local blocks of the sequence",
        arguments: Lengths.all, [(1, 3), (0, 1), (2, 1), (9, 9)])
    func fullBlockStreaming(_ lengths: Lengths, _ stream: (sink: Int, local: Int)) throws {
        let grid = try BlockGrid(queryLength: lengths.query, keyLength: lengths.key, isCausal: false)
        let blocks = (lengths.key + 127) / 128
        func isKept(_ column: Int) -> Bool { column < stream.sink || column >= blocks - stream.local }
        let mask = try BlockMask(grid: grid) { _, _, column in isKept(column) }
        let sees = try Self.visiblePairs(
            [.blockSparse(mask, head: 0)], queryLength: lengths.query, keyLength: lengths.key, isCausal: false)
        #expect(Self.firstDifference(sees) { _, c in isKept(c / 128) } == nil)
    }
}

import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Mean-pool scoring")
struct MeanPoolScoringTests {
    /// The mean of a block in `Double`, padded to `size` tokens when given.
    static func mean<Element: AttentionElement>(
        _ tensor: Tensor<Element>, head: Int, tokens: Range<Int>, size: Int?
    ) -> [Double] {
        (0..<tensor.shape[2]).map { channel in
            tokens.reduce(0.0) {
                $0 + Double(tensor[flat: (head * tensor.shape[1] + $1) * tensor.shape[2] + channel].floatValue)
            } / Double(size ?? tokens.count)
        }
    }

    /// Compares every score with the oracle. A pooled value is off by 18u of the largest magnitude of its block (16 in sums, 2
    /// in padding), a product by λ·√headDim·u of its terms, and scaling adds one more u.
    static func expectMatches<Element: AttentionElement>(
        _ type: Element.Type, _ shape: AttentionShape, _ grid: BlockGrid, scale: Float, padding: MeanPoolScoring.Padding,
        _ set: InstructionSet
    ) throws {
        let query = try Tensor<Element>.normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1)
        let key = try Tensor<Element>.normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2)
        let scoring = try MeanPoolScoring(shape, grid: grid, scale: scale, padding: padding, instructionSet: set)
        let scores = try scoring(query: query, key: key)
        let softmax = try MeanPoolScoring(
            shape, grid: grid, scale: scale, normalizes: true, padding: padding, instructionSet: set)(query: query, key: key)
        func means(_ tensor: Tensor<Element>, _ partition: BlockPartition) -> [[[Double]]] {
            (0..<tensor.shape[0]).map { head in
                (0..<partition.count).map {
                    mean(tensor, head: head, tokens: partition[$0], size: padding == .zeros ? partition.blockSize : nil)
                }
            }
        }
        let (queries, keys) = (means(query, grid.query), means(key, grid.key))
        let u = AttentionErrorBound.unitRoundoff
        for head in 0..<shape.queryHeads {
            for row in 0..<grid.blockRows {
                let reachable = grid.reachableColumns(ofRow: row)
                var expected: [Double] = []
                var bound = 0.0
                for column in reachable {
                    let terms = zip(queries[head][row], keys[head / shape.queryHeadsPerKVHead][column]).map { $0 * $1 }
                    expected.append(Double(scale) * terms.reduce(0, +))
                    // The normally distributed values are below 6 here.
                    let magnitude =
                        Double(shape.headDim) * 18 * u * 2 * 36
                        + AttentionErrorBound.confidence * Double(shape.headDim).squareRoot() * u
                        * terms.reduce(0) { $0 + abs($1) }
                    bound = max(bound, Double(abs(scale)) * (magnitude + u * abs(terms.reduce(0, +))))
                    #expect(abs(Double(scores[head, row, column]) - expected[column]) <= bound)
                }
                let total = expected.reduce(0.0) { $0 + exp($1) }
                for column in reachable {
                    let p = exp(expected[column]) / total
                    #expect(abs(Double(softmax[head, row, column]) - p) <= p * (2 * bound + 2 * u))
                }
                for column in reachable.upperBound..<grid.blockColumns {
                    #expect(scores[head, row, column] == 0 && softmax[head, row, column] == 0)
                }
            }
        }
    }

    @Test("scores agree with the oracle", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for (queries, keys, heads, kvHeads, headDim, rows, columns, isCausal) in [
            (1, 1, 1, 1, 4, 64, 64, true), (200, 200, 4, 2, 20, 64, 64, true), (70, 300, 2, 1, 8, 32, 48, true),
            (300, 70, 1, 1, 16, 16, 7, false), (900, 900, 1, 1, 8, 4, 1, true),
        ] {
            let shape = try AttentionShape(
                queryLength: queries, keyLength: keys, queryHeads: heads, kvHeads: kvHeads, headDim: headDim)
            let grid = try BlockGrid(
                queryLength: queries, keyLength: keys, queryBlockSize: rows, keyBlockSize: columns, isCausal: isCausal)
            try Self.expectMatches(Float.self, shape, grid, scale: 1, padding: .none, set)
            if queries > 800 { continue }
            try Self.expectMatches(Float16.self, shape, grid, scale: 0.25, padding: .zeros, set)
            try Self.expectMatches(BFloat16.self, shape, grid, scale: -2, padding: .zeros, set)
        }
    }

    @Test("blocks may vary in size, and threads change no bit")
    func varyingBlocks() throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 90, queryHeads: 3, kvHeads: 3, headDim: 12)
        let grid = try BlockGrid(
            query: BlockPartition(sizes: [10, 0, 49, 1]), key: BlockPartition(sizes: [30, 30, 1, 0, 29]), isCausal: true)
        let query = try Tensor<Float>.normal([3, 60, 12], seed: 1)
        let key = try Tensor<Float>.normal([3, 90, 12], seed: 2)
        let scoring = try MeanPoolScoring(shape, grid: grid, normalizes: true)
        let expected = try scoring(query: query, key: key, on: .serial)
        for threads in [2, 7] {
            #expect(try scoring(query: query, key: key, on: WorkerPool(threads: threads)) == expected)
        }
        #expect(expected.values.bits[5..<10].allSatisfy { $0 == 0 }, "an empty row reaches nothing")
        let mass = (0..<5).reduce(0.0) { $0 + Double(expected[2, 3, $1]) }
        #expect(abs(mass - 1) < 5 * 0x1p-24)
    }

    @Test("bad input is an error that names it")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 60, keyLength: 90, queryHeads: 1, kvHeads: 1, headDim: 12)
        let grid = try BlockGrid(shape, isCausal: true)
        let varying = try BlockGrid(
            query: BlockPartition(sizes: [60]), key: BlockPartition(sizes: [90]), isCausal: true)
        expectError(.invalidShape, "grid") {
            _ = try MeanPoolScoring(shape, grid: BlockGrid(queryLength: 60, keyLength: 91, isCausal: true))
        }
        expectError(.invalidArgument, "scale") { _ = try MeanPoolScoring(shape, grid: grid, scale: .infinity) }
        expectError(.invalidArgument, "padding") { _ = try MeanPoolScoring(shape, grid: varying, padding: .zeros) }
        let operand = try Tensor<Float>(zeros: [1, 60, 12])
        expectError(.invalidShape, "key") { _ = try MeanPoolScoring(shape, grid: grid)(query: operand, key: operand) }
    }
}

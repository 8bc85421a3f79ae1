import Foundation
import SparseKernels
import SparseKernelsReference
import Testing

@Suite("Comparison of attention results")
struct AttentionComparisonTests {
    @Test("recall is the mass of the kept keys, and the error is relative to the dense output")
    func agrees() throws {
        let shape = try AttentionShape(queryLength: 40, keyLength: 70, queryHeads: 2, kvHeads: 1, headDim: 8)
        let query = try Tensor<Float>.normal([2, 40, 8], seed: 1)
        let key = try Tensor<Float>.normal([1, 70, 8], seed: 2)
        let value = try Tensor<Float>.normal([1, 70, 8], seed: 3)
        let grid = try BlockGrid(shape, blockSize: 16, isCausal: true)
        let mask = try BlockMask(grid: grid, heads: 2) { head, row, column in (row + column + head) % 2 == 0 || column == 0 }
        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        let sparse = try BlockSparseAttention(shape, mask: mask)(query: query, key: key, value: value)
        let comparison = try AttentionComparison(sparse, with: dense)

        let exact = try AntidiagonalScoring(shape, grid: grid, stride: 1, precision: .float32)(query: query, key: key)
        for head in 0..<2 {
            var kept = 0.0
            for row in 0..<grid.blockRows {
                for column in mask.columns(head: head, row: row) { kept += Double(exact[head, row, Int(column)]) }
            }
            #expect(abs(comparison.heads[head].recall - kept / 40) < 1e-5)
            var (difference, norm) = (0.0, 0.0)
            for index in head * 320..<(head + 1) * 320 {
                let (a, b) = (Double(sparse.output[flat: index]), Double(dense.output[flat: index]))
                difference += (a - b) * (a - b)
                norm += b * b
            }
            #expect(abs(comparison.heads[head].error - (difference / norm).squareRoot()) < 1e-12)
        }
        #expect(comparison.recall == (comparison.heads[0].recall + comparison.heads[1].recall) / 2)
        #expect(comparison.recall < 1 && comparison.error > 0)
    }

    @Test("a result compared with itself has recall 1 and error 0, also without keys")
    func same() throws {
        let state = try AttentionState(heads: 1, tokens: 3, valueDim: 2)
        let comparison = try AttentionComparison(state, with: state)
        #expect(comparison.recall == 1 && comparison.error == 0)
    }

    @Test("without rows, recall is 1 and error 0")
    func empty() throws {
        let empty = try AttentionState(heads: 2, tokens: 0, valueDim: 2)
        let comparison = try AttentionComparison(empty, with: empty)
        #expect(comparison.recall == 1 && comparison.error == 0 && comparison.heads.count == 2)
    }

    @Test("other shapes are errors")
    func errors() throws {
        let state = try AttentionState(heads: 1, tokens: 3, valueDim: 2)
        let other = try AttentionState(heads: 1, tokens: 4, valueDim: 2)
        for (a, b) in [(state, other), (other, state)] {
            let error = #expect(throws: SparseKernelsError.self) { try AttentionComparison(a, with: b) }
            #expect(error?.code == .invalidShape && error?.argument == "state.output")
        }
    }
}

import SparseKernels
import Testing

@Suite("Snippets of the antidiagonal scoring guide")
struct AntidiagonalScoringSnippets {
    @Test("scores, and the exact mass")
    func scores() throws {
        let query = try Tensor<Float>([4, 4096, 64]) { Float($0 % 7) / 7 }
        let key = try Tensor<Float>([1, 4096, 64]) { Float($0 % 5) / 5 }

        let shape = try AttentionShape(queryLength: 4096, keyLength: 4096, queryHeads: 4, kvHeads: 1, headDim: 64)
        let grid = try BlockGrid(shape, blockSize: 128, isCausal: true)

        let scores = try AntidiagonalScoring(shape, grid: grid, stride: 16)(query: query, key: key)
        print(scores[0, 31, 0])  // mass of the first 128 keys for the last 128 queries of head 0, in groups: 0…8

        // A stride of 1 gives the exact mass: what an estimate is measured against.
        let mass = try AntidiagonalScoring(shape, grid: grid, stride: 1, precision: .float32)(query: query, key: key)

        #expect(scores.values.shape == [4, 32, 32])
        #expect((0..<32).reduce(0) { $0 + mass[3, 31, $1] }.rounded() == 128)
    }
}

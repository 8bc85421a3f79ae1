import SparseKernels
import Testing

/// The snippets of Docs/Operators/Selection.md, with checks of their comments.
@Suite("Snippets: selection")
struct SelectionSnippets {
    @Test("blocks")
    func blocks() throws {
        let grid = try BlockGrid(queryLength: 384, keyLength: 384, queryBlockSize: 128, keyBlockSize: 128, isCausal: true)
        let values: [Float] = [8, 0, 0, 3, 5, 0, 1, 5, 2]  // [1 head, 3 rows, 3 columns]
        let scores = try BlockScores(grid: grid, values: Tensor([1, 3, 3], values))

        let mask = try BlockSelection(.topP(0.6), sinkBlocks: 1, recentBlocks: 1)(scores)
        print(mask.columns(head: 0, row: 2))  // [0, 1, 2]: sink and diagonal have 3 of 8, block 1 reaches 60%

        // Prune: of the blocks that another selector kept, those with half of their mass.
        let pruned = try BlockSelection(.topP(0.5))(scores, within: mask)
        print(pruned.columns(head: 0, row: 2))  // [1]

        #expect(Array(mask.columns(head: 0, row: 2)) == [0, 1, 2])
        #expect(Array(pruned.columns(head: 0, row: 2)) == [1])
    }

    @Test("weights")
    func weights() throws {
        let weights: [Float] = [0.1, 0.5, 0.2, 0.2]
        let kept = try TopP.select(weights: weights, mass: 0.6)
        print(kept)  // [1, 2]: equal weights, the lower index first

        #expect(kept == [1, 2])
    }

    @Test("numbers, and scores by angle")
    func numbers() throws {
        let scores: [Float] = [0.2, 0.9, 0.4, 0.9, 0.1]
        let best = try TopK.select(scores: scores.span, count: 2)
        print(best)  // [1, 3]
        let next = try TopK.select(scores: scores.span, count: 2, excluding: [false, true, false, true, false].span)
        print(next)  // [0, 2]

        let cosines = try CosineScores(channels: 3)
        let angles = try cosines(Tensor<Float>([2, 3], [3, 0, 0, 0, -2, 0]), Tensor([3], [1, 0, 0]))
        print(angles.elements)  // [1.0, 0.0]

        #expect(best == [1, 3] && next == [0, 2] && angles.elements == [1, 0])
    }
}

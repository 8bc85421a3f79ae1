import FrameFusion
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/FrameFusion.md, with checks of their comments.
@Suite("Snippets: FrameFusion")
struct FrameFusionSnippets {
    @Test("a prefill")
    func prefill() throws {
        var hidden = try Tensor<Float>.normal([14 + 16 * 49 + 20, 256], seed: 1)
        var positions = Array(0..<hidden.shape[0])
        func runLayer(_ hidden: inout Tensor<Float>, _ positions: [Int]) throws -> (Tensor<Float>, Tensor<Float>) {
            let tokens = hidden.shape[0]
            return (try .normal([4, tokens, 64], seed: 2), try .normal([2, tokens, 64], seed: 3))
        }

        var fusion = try FrameFusion(channels: 256)
        var tokens = try FrameFusionTokens(textBefore: 14, frames: 16, placesPerFrame: 49, textAfter: 20)
        var mass: Tensor<Float>?
        for _ in 0..<28 {
            let compaction = try fusion.reduce(&hidden, tokens: &tokens, columnMass: mass)
            positions = try compaction.positions(.kept, from: positions)
            let (q, k) = try runLayer(&hidden, positions)
            // The attention mass of the layer, when the next reduction ranks by it.
            if fusion.needsColumnMass {
                let shape = try AttentionShape(
                    queryLength: tokens.count, keyLength: tokens.count, queryHeads: 4, kvHeads: 2, headDim: 64)
                mass = try AttentionColumnMass(shape, reduction: .meanOfHeads)(query: q, key: k)
            }
        }

        // Nothing was alike, so that pruning met the budget: 28 · 0.3 − 1 layers for 27.
        #expect(fusion.isFinished && tokens.visualCount == Int((784 * 7.4 / 27).rounded()))
        #expect(positions == tokens.positions && hidden.shape == [tokens.count, 256])
    }
}

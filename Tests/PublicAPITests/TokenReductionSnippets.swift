import SparseKernels
import SparseKernelsReference
import Testing

/// The snippets of Docs/Operators/TokenReduction.md, with checks of their comments.
@Suite("Snippets: token reduction")
struct TokenReductionSnippets {
    @Test("mass and compaction")
    func mass() throws {
        let q = try Tensor<Float>.normal([8, 300, 64], seed: 1)
        let k = try Tensor<Float>.normal([2, 300, 64], seed: 2)

        // The attention that the last token pays to every key, mean over the heads.
        let shape = try AttentionShape(queryLength: 300, keyLength: 300, queryHeads: 8, kvHeads: 2, headDim: 64)
        let attention = try AttentionColumnMass(shape, queries: [299], reduction: .meanOfHeads)
        let mass = try attention(query: q, key: k)  // [1, 300]; sums to 1

        // The half of the keys that gets most of it.
        let kept = try TopK.select(scores: mass.span, count: 150)
        let compaction = try TokenCompaction(length: 300, keeping: kept)
        let fewer = try compaction(k)  // [2, 150, 64]
        let positions = compaction.positions(.kept)  // .renumbered: 0..<150

        #expect(mass.shape == [1, 300])
        #expect(abs(mass.elements.reduce(0, +) - 1) < 1e-5)
        #expect(fewer.shape == [2, 150, 64])
        #expect(positions == kept && compaction.positions(.renumbered) == Array(0..<150))
    }

    @Test("merging frames")
    func merge() throws {
        var hidden = try Tensor<Float>([16 * 49, 128]) { index in
            let (token, channel) = index.quotientAndRemainder(dividingBy: 128)
            return Float((token % 49 * 31 + channel * 7) % 17) - 8 + Float(token / 49) / 100
        }

        // Tokens of 16 frames; those that hardly change become one with the token before them.
        let chains = try FrameChains(frames: 16, places: 49)
        let merge = try FrameMerge(channels: 128)
        let similarities = try merge.similarities(hidden, chains)
        let still = try chains.tokens(withSimilarity: 0.6, of: similarities)
        let merged = try merge(&hidden, chains, merging: still)
        hidden = try merged(hidden)

        #expect(hidden.shape == [49, 128])
    }
}

import PyramidDrop
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/PyramidDrop.md, with checks of their comments.
@Suite("Snippets: PyramidDrop")
struct PyramidDropSnippets {
    @Test("stages of a prefill")
    func stages() throws {
        var hidden = try Tensor<Float>.normal([620, 16], seed: 1)
        func project(_ hidden: Tensor<Float>, _ sequences: [PyramidDropSequence]) throws -> (Tensor<Float>, Tensor<Float>) {
            (try .normal([8, 1, 64], seed: 2), try .normal([2, hidden.shape[0], 64], seed: 3))
        }

        let drop = try PyramidDrop(queryHeads: 8, kvHeads: 2, headDim: 64)
        var sequences = [try PyramidDropSequence(length: 620, imageTokens: 35..<611)]
        for layer in 0..<32 {
            if let stage = drop.configuration.stage(afterLayers: layer) {
                // q, k: the next layer's norm, projections and rotation, for the last instruction token and for all tokens.
                let (q, k) = try project(hidden, sequences)
                let step = try drop.step(stage: stage, query: q, key: k, sequences: sequences)
                hidden = try step.compaction(hidden)
                sequences = step.sequences
            }
            // The layer runs over the tokens that are left, with positions 0, 1, 2, …
        }
        print(sequences[0].imageTokens.count)  // 72

        #expect(sequences[0].imageTokens.count == 72 && hidden.shape == [116, 16])
    }
}

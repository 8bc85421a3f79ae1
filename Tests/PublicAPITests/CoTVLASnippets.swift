import CoTVLA
import Foundation
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/CoTVLA.md, with checks of their comments.
@Suite("Snippets: CoT-VLA")
struct CoTVLASnippets {
    @Test("limits of a sequence")
    func limits() throws {
        let shape = try AttentionShape(queryLength: 602, keyLength: 602, queryHeads: 2, kvHeads: 1, headDim: 16)
        let q = try Tensor<Float>.normal([2, 602, 16], seed: 1)
        let k = try Tensor<Float>.normal([1, 602, 16], seed: 2)
        let v = try Tensor<Float>.normal([1, 602, 16], seed: 3)

        let sequence = try CoTVLASequence([(.observation, 256), (.instruction, 20), (.subgoal, 256), (.actions, 70)])
        let limits = try sequence.limits(shape)
        let state = try DenseAttention(shape, limits: limits)(query: q, key: k, value: v)

        #expect(limits.ranges[531] == 0..<532 && limits.ranges[532] == 0..<602)
        #expect(state.output.shape == [2, 602, 16])
    }

    @Test("actions")
    func actions() throws {
        let demonstrations = try Tensor<Float>.normal([500, 7], seed: 4)
        let counts = (0..<1000).map { 1000 - $0 }
        let learned = try Tensor<Float>.normal([3, 8], seed: 5)
        let path = NSTemporaryDirectory() + "actions-\(UUID().uuidString).json"
        defer { try? FileManager.default.removeItem(atPath: path) }
        func model(_ rows: Tensor<Float>) throws -> Tensor<Float> { try .normal([rows.shape[0], 1000], seed: 6) }

        // Bins from demonstrations, [n, 7], and the 256 tokens that the corpus uses least.
        let bins = try ActionBins(percentilesOf: demonstrations)
        let tokenizer = try ActionTokenizer(bins, leastUsedOf: counts)
        try tokenizer.write(to: path)

        // One pass over 70 placeholders gives ten actions.
        let decoder = try ActionDecoder(tokenizer, placeholders: learned)  // [3, width]: position, rotation, gripper
        let actions = try decoder.decode { rows in try model(rows) }  // [70, width] in, [70, vocabulary] out
        print(actions.shape)  // [10, 7]

        #expect(actions.shape == [10, 7])
        #expect(tokenizer.vocabulary == (744..<1000).map { Int32($0) })
        #expect(try ActionTokenizer(path: path) == tokenizer)
    }
}

import DuoAttention
import LServe
import Testing

/// The snippets of Docs/Papers/LServe.md, with checks of their comments.
@Suite("Snippets: LServe")
struct LServeSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("a prompt and a step")
    func layer() throws {
        let (query, key) = try (Self.pattern([8, 300, 64], 7), Self.pattern([4, 300, 64], 11))
        let value = try Self.pattern([4, 300, 64], 13)
        let (q, k) = try (Self.pattern([8, 1, 64], 3), Self.pattern([4, 1, 64], 5))
        let v = k
        let text = "1.0\t0.2\t0.9\t0.0\n0.7\t0.1\t0.8\t0.3\n"

        // The gates are DuoAttention's: a line per layer, a value per key/value head.
        let heads = try DuoAttentionGates(tsv: text).heads(sparsity: 0.5)
        let layer = try LServeLayer(queryHeads: 8, headDim: 64, isRetrieval: heads[0], tokenCapacity: 4096)
        let sequence = try layer.makeSequence()
        let prompt = try layer.prefill(query: query, key: key, value: value, sequence: sequence)

        // One token per sequence: [heads, sequences, headDim].
        let next = try layer.decode(query: q, key: k, value: v, sequences: [sequence])
        print(next.output.shape)  // [8, 1, 64], in the order of the model's heads

        #expect(prompt.output.shape == [8, 300, 64] && next.output.shape == [8, 1, 64])
        #expect(try layer.length(of: sequence) == 301)

        var configuration = LServeConfiguration()
        configuration.tokenBudget = 2048
        configuration.format = .int4
        let small = try LServeLayer(
            queryHeads: 8, headDim: 64, isRetrieval: heads[1], configuration: configuration, tokenCapacity: 4096)
        print(configuration.streamingPagesPerSequence)  // 7: all that a streaming head holds of a sequence

        #expect(configuration.streamingPagesPerSequence == 7 && small.byteCount < layer.byteCount)
    }
}

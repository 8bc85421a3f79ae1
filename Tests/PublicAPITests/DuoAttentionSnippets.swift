import DuoAttention
import Testing

/// The snippets of Docs/Papers/DuoAttention.md, with checks of their comments.
@Suite("Snippets: DuoAttention")
struct DuoAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("from gates to attention, and a later chunk")
    func gates() throws {
        let (query, key) = try (Self.pattern([8, 400, 64], 7), Self.pattern([4, 400, 64], 11))
        let value = try Self.pattern([4, 400, 64], 13)
        let text = "1.0\t0.2\t0.9\t0.0\n0.7\t0.1\t0.8\t0.3\n"

        // full_attention_heads.tsv: a line per layer, a value per key/value head.
        let gates = try DuoAttentionGates(tsv: text)
        let heads = try gates.heads(sparsity: 0.5)
        let shape = try AttentionShape(queryLength: 400, keyLength: 400, queryHeads: 8, kvHeads: 4, headDim: 64)
        let attention = try DuoAttentionPrefill(shape, heads: heads[0])
        let state = try attention(query: query, key: key, value: value)

        #expect(Array(heads[0]) == [true, false, true, false] && state.output.shape == [8, 400, 64])

        let chunk = try AttentionShape(queryLength: 100, keyLength: 400, queryHeads: 8, kvHeads: 4, headDim: 64)
        let released = try DuoAttentionPrefill(chunk, heads: heads[0], window: .cachedChunk)
        print(DuoAttentionPrefill.cachedKeys(past: 300))  // [0..<300]: 64 + 256 tokens are not full yet

        #expect(released.shape == chunk && DuoAttentionPrefill.cachedKeys(past: 300) == [0..<300])
    }
}

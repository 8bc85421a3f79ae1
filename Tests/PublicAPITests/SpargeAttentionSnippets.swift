import SpargeAttention
import Testing

/// The snippets of Docs/Papers/SpargeAttention.md, with checks of their comments.
@Suite("Snippets: SpargeAttention")
struct SpargeAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("prediction and attention")
    func prefill() throws {
        let (query, key) = try (Self.pattern([4, 1000, 64], 7), Self.pattern([2, 1000, 64], 11))
        let value = try Self.pattern([2, 1000, 64], 13)

        let shape = try AttentionShape(queryLength: 1000, keyLength: 1000, queryHeads: 4, kvHeads: 2, headDim: 64)
        let sparge = try SpargeAttentionPrefill(shape, heads: [.keepRatio(0.3)], isCausal: true)
        let result = try sparge(query: query, key: key, value: value)
        print(result.state.output.shape, result.mask.density)

        // The mask alone, to use it more than once.
        let mask = try sparge.select(query: query, key: key)
        let state = try sparge.attention(over: mask)(query: query, key: key, value: value)

        var output = try Tensor<Float16>(zeros: [1000, 4, 64])  // [tokens, heads, channels]
        let kept = try sparge.run(
            query: query.view(), key: key.view(), value: value.view(), output: output.mutableView(layout: .nhd))
        print(kept.density)

        #expect(kept == mask && output[flat: 3 * 64] == Float16(state.output[flat: 3 * 1000 * 64]))
        #expect(mask == result.mask && state == result.state && mask.density < 1)
        // The guide states 673 attention runs.
        #expect(SpargeAttentionTuner.evaluationsPerHead == 673)
    }

    @Test("tuning")
    func tuning() throws {
        let (query, key) = try (Self.pattern([1, 200, 16], 7), Self.pattern([1, 200, 16], 11))
        let value = try Self.pattern([1, 200, 16], 13)
        let shape = try AttentionShape(queryLength: 200, keyLength: 200, queryHeads: 1, kvHeads: 1, headDim: 16)

        let sample = try SpargeAttentionTuner.Sample(query: query, key: key, value: value)
        let tuner = try SpargeAttentionTuner(.init(isCausal: true), relativeL1: 0.08, pvRelativeL1: 0.09)
        let tuned = try tuner([sample]) { print($0.head, $0.evaluations, "of at most", $0.maximumEvaluations) }
        let attention = try SpargeAttentionPrefill(shape, heads: tuned.map(\.settings), isCausal: true)

        #expect(try attention(query: query, key: key, value: value).state.output.shape == [1, 200, 16])
    }
}

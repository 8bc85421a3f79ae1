import Testing
import XAttention

/// The snippets of Docs/Papers/XAttention.md, with checks of their comments.
@Suite("Snippets: XAttention")
struct XAttentionSnippets {
    @Test("prefill")
    func prefill() throws {
        let query = try DenseAttentionSnippets.pattern([4, 1000, 64], 7)
        let key = try DenseAttentionSnippets.pattern([2, 1000, 64], 11)
        let value = try DenseAttentionSnippets.pattern([2, 1000, 64], 13)
        let newQuery = try DenseAttentionSnippets.pattern([4, 300, 64], 5)

        let shape = try AttentionShape(queryLength: 1000, keyLength: 1000, queryHeads: 4, kvHeads: 2, headDim: 64)
        let prefill = try XAttentionPrefill(shape, threshold: 0.9)
        let result = try prefill(query: query, key: key, value: value)
        print(result.state.output.shape)  // [4, 1000, 64]
        print(result.density <= 1)  // kept fraction of the causal blocks

        let later = try AttentionShape(queryLength: 300, keyLength: 1000, queryHeads: 4, kvHeads: 2, headDim: 64)
        let chunk = try XAttentionPrefill(later, .init(stride: 8), thresholds: [0.9, 0.8, 0.95, 0.9])
        let mask = try chunk.select(query: newQuery, key: key).mask
        print(mask.grid.blockRows, mask.grid.blockColumns)  // 3 8

        #expect(result.state.output.shape == [4, 1000, 64] && result.density <= 1)
        #expect(mask.grid.blockRows == 3 && mask.grid.blockColumns == 8)
    }

    @Test("the caller's memory")
    func views() throws {
        let query = try DenseAttentionSnippets.pattern([4, 1000, 64], 7)
        let (keys, values) = (Self.rows(11), Self.rows(13))
        let shape = try AttentionShape(queryLength: 1000, keyLength: 1000, queryHeads: 4, kvHeads: 2, headDim: 64)
        let prefill = try XAttentionPrefill(shape, threshold: 0.9)

        // Rows [tokens, heads, channels]; `keys` and `values` are arrays of Float16.
        var output = [Float](repeating: 0, count: 1000 * 4 * 64)
        let selected = try prefill.run(
            query: query.view(),
            key: TensorView(keys.span, heads: 2, tokens: 1000, channels: 64, layout: .nhd),
            value: TensorView(values.span, heads: 2, tokens: 1000, channels: 64, layout: .nhd),
            output: MutableTensorView(output.mutableSpan, heads: 4, tokens: 1000, channels: 64, layout: .nhd))
        print(selected.mask.density)

        #expect(selected.mask.heads == 4 && selected.density <= 1)
        // Token 0 sees key 0 alone, so each pair of heads has the value row of its KV head.
        #expect((0..<256).allSatisfy { output[$0] == Float(values[$0 / 128 * 64 + $0 % 64]) })
    }

    /// 1000 tokens × 2 heads × 64 channels.
    static func rows(_ step: Int) -> [Float16] { (0..<1000 * 2 * 64).map { Float16($0 * step % 31) / 16 - 1 } }

    @Test("thresholds")
    func thresholds() throws {
        let query = try DenseAttentionSnippets.pattern([4, 500, 64], 7)
        let key = try DenseAttentionSnippets.pattern([2, 500, 64], 11)
        let shape = try AttentionShape(queryLength: 500, keyLength: 500, queryHeads: 4, kvHeads: 2, headDim: 64)
        func accuracy(_ thresholds: [Double]) -> Double { thresholds[2] < 0.85 ? 0.5 : 1 }

        var profile = try ThresholdProfile(queryHeads: 4, stride: 8)
        try profile.add(query: query, key: key)  // one text; the largest threshold over texts counts
        let tuned = try XAttentionPrefill(shape, .init(stride: 8), thresholds: profile.thresholds)

        var search = try MinimumThresholdSearch(heads: 4, maximumReductions: 4)
        let outcome = search(maximumEvaluations: 100) { thresholds in
            .init(performance: accuracy(thresholds))
        }
        print(outcome.best.thresholds)

        #expect(tuned.thresholds == profile.thresholds)
        #expect(outcome.best.steps == [1, 1, 0, 1])
    }
}

import Testing
import XAttention

/// The snippets of Docs/XAttention.md, and what their comments promise.
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
        let chunk = try XAttentionPrefill(later, stride: 8, thresholds: [0.9, 0.8, 0.95, 0.9])
        let mask = try chunk.mask(query: newQuery, key: key)
        print(mask.grid.blockRows, mask.grid.blockColumns)  // 3 8

        #expect(result.state.output.shape == [4, 1000, 64] && result.density <= 1)
        #expect(mask.grid.blockRows == 3 && mask.grid.blockColumns == 8)
    }

    @Test("thresholds")
    func thresholds() throws {
        let query = try DenseAttentionSnippets.pattern([4, 500, 64], 7)
        let key = try DenseAttentionSnippets.pattern([2, 500, 64], 11)
        let shape = try AttentionShape(queryLength: 500, keyLength: 500, queryHeads: 4, kvHeads: 2, headDim: 64)
        func accuracy(_ thresholds: [Double]) -> Double { thresholds[2] < 0.85 ? 0.5 : 1 }

        var profile = try ThresholdProfile(queryHeads: 4, stride: 8)
        try profile.add(query: query, key: key)  // one text; the largest threshold over texts counts
        let tuned = try XAttentionPrefill(shape, stride: 8, thresholds: profile.thresholds)

        var search = try MinimumThresholdSearch(heads: 4, maximumReductions: 4)
        let outcome = search(maximumEvaluations: 100) { thresholds in
            .init(performance: accuracy(thresholds))
        }
        print(outcome.best.thresholds)

        #expect(tuned.thresholds == profile.thresholds)
        #expect(outcome.best.steps == [1, 1, 0, 1])
    }
}

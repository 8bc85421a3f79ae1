import SparseKernels
import Testing

/// The snippets of Docs/Operators/PageSelection.md, with checks of their comments.
@Suite("Snippets: page selection")
struct PageSelectionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("selecting pages, and reusing the choice")
    func selection() throws {
        let (key, value) = try (Self.pattern([2, 1000, 64], 7), Self.pattern([2, 1000, 64], 11))
        let (query, nextKey) = try (Self.pattern([8, 1, 64], 13), Self.pattern([2, 1, 64], 3))
        let nextValue = nextKey

        let metadata = PageMetadata(.minMax, logicalPageSize: 16)
        let configuration = try KVCacheConfiguration(
            kvHeads: 2, headDim: 64, pageSize: 64, pageCapacity: 16, metadata: metadata)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        try cache.append(key: key, value: value, to: sequence)  // 1000 tokens

        let selector = try PageSelector(queryHeads: 8, configuration: configuration, tokenBudget: 320)
        let selection = try selector.select(query: query, cache: cache, sequences: [sequence])
        print(selection.list(sequence: 0, head: 0).count)  // 5 pages of 64 tokens, the last page among them

        #expect(selection.list(sequence: 0, head: 0).count == 5 && selection.list(sequence: 0, head: 1).last == 15)

        var reusable = try ReusableSelection(selector, interval: 4)
        let pages = try reusable.select(query: query, cache: cache, sequences: [sequence])
        try cache.append(key: nextKey, value: nextValue, to: sequence)
        let visible = try pages.covering([1000..<1001])  // and the page of the token that was appended

        #expect(pages == selection && visible == pages)
    }

    @Test("the k largest")
    func topK() throws {
        let scores: [Float] = [0.5, 3, 2, 3, -1]
        let best = try TopK.select(scores: scores, count: 2)
        print(best)  // [1, 3]

        #expect(best == [1, 3])
    }
}

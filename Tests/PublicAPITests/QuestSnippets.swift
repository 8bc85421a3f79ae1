import Quest
import Testing

/// The snippets of Docs/Papers/Quest.md, with checks of their comments.
@Suite("Snippets: Quest")
struct QuestSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("a decoding step in a dense and in a sparse layer")
    func decode() throws {
        let (key, value) = try (Self.pattern([2, 600, 64], 7), Self.pattern([2, 600, 64], 11))
        let query = try Self.pattern([8, 1, 64], 13)

        let configuration = try QuestDecode.cache(layers: 4, kvHeads: 2, headDim: 64, pageCapacity: 64)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        for layer in 0..<4 { try cache.append(key: key, value: value, to: sequence, layer: layer) }

        let quest = try QuestDecode(queryHeads: 8, configuration: configuration, tokenBudget: 256)
        let dense = try quest(query: query, cache: cache, sequences: [sequence], layer: 0)  // layers 0 and 1 see everything
        let sparse = try quest(query: query, cache: cache, sequences: [sequence], layer: 2)

        let pages = try quest.select(query: query, cache: cache, sequences: [sequence], layer: 2)
        print(pages?.list(sequence: 0, head: 0).count ?? 0)  // 16 pages of 16 tokens

        #expect(dense.output.shape == [8, 1, 64] && sparse.output.shape == [8, 1, 64])
        #expect(pages?.list(sequence: 0, head: 0).count == 16)
        // Fewer keys have less mass.
        #expect(zip(sparse.logSumExp.elements, dense.logSumExp.elements).allSatisfy { $0 < $1 })
    }
}

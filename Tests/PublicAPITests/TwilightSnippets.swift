import Testing
import Twilight

/// The snippets of Docs/Papers/Twilight.md, with checks of their comments.
@Suite("Snippets: Twilight")
struct TwilightSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 8 - 2 }
    }

    @Test("decoding, and pruning alone")
    func decode() throws {
        let (keys, values) = try (Self.pattern([2, 400, 64], 7), Self.pattern([2, 400, 64], 11))
        let query = try Self.pattern([8, 1, 64], 13)

        let configuration = try TwilightDecode.cache(layers: 4, kvHeads: 2, headDim: 64, pageCapacity: 64)
        let cache = try PagedKVCache(configuration)
        let sequence = cache.makeSequence()
        for layer in 0..<4 { try cache.append(key: keys, value: values, to: sequence, layer: layer) }

        let twilight = try TwilightDecode(queryHeads: 8, configuration: configuration)
        let step = try twilight.decode(query: query, cache: cache, sequences: [sequence], layer: 2)
        print(step.state.output.shape)  // [8, 1, 64]: heads, sequences, channels
        print(step.meanTokens ?? 400)  // fewer than the 400 tokens of the sequence

        let mean = try #require(step.meanTokens)
        #expect(step.state.output.shape == [8, 1, 64] && mean >= 1 && mean < 400)

        let pages = try KVSelection(unit: 16, sequences: 1, heads: 2, offsets: [0, 3, 6], indices: [0, 3, 24, 0, 8, 24])
        let pruner = try TokenPruner(queryHeads: 8, configuration: configuration, topP: 0.85)
        let pruning = try pruner.prune(query: query, cache: cache, sequences: [sequence], within: pages)
        print(pruning.selection.list(sequence: 0, head: 0))  // positions of tokens in pages 0, 3 and 24
        print(pruning.masses)  // per query head: 0.85 or more

        let kept = pruning.selection.list(sequence: 0, head: 0)
        #expect(!kept.isEmpty && kept.allSatisfy { [0, 3, 24].contains($0 / 16) })
        #expect(pruning.masses.count == 8 && pruning.masses.allSatisfy { $0 > 0.8499 })
    }
}

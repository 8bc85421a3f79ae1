import SparseKernels
import Testing

/// The snippets of Docs/Operators/RowOperators.md, with checks of their comments.
@Suite("Snippets: row operators")
struct RowOperatorsSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("embedding, norm and activation")
    func layer() throws {
        let (table, weight) = try (Self.pattern([50, 64], 7), Self.pattern([64], 5))
        let (update, gate, up) = try (Self.pattern([3, 64], 3), Self.pattern([3, 96], 7), Self.pattern([3, 96], 11))

        let embedding = try TokenEmbedding(table: table)
        var hidden = try embedding([17, 4, 4])
        let norm = try RMSNorm(weight: weight, epsilon: 1e-6)
        var input = try norm(hidden)
        // After a layer: hidden += update, and the norm of the sums, in one pass.
        try norm.run(adding: update, to: &hidden, into: &input)
        let silu = try GatedActivation(.silu)
        let inner = try silu(gate: gate, up: up)
        print(input.shape, inner.shape)  // [3, 64] [3, 96]

        #expect(input.shape == [3, 64] && inner.shape == [3, 96])
        #expect(hidden[0, 3] == table[17, 3] + update[0, 3])
    }

    @Test("rotations of queries and keys")
    func rotary() throws {
        var (query, key) = try (Self.pattern([3, 4, 16], 7), Self.pattern([3, 2, 16], 5))
        let before = query

        // One table per step serves the queries and keys of all layers.
        let rotary = try RotaryEmbedding(
            headDim: 16, theta: 500_000,
            scaling: .llama3(factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalLength: 8192))
        let rotations = try rotary.table(positions: [4096, 4097, 4098])
        try rotations.rotate(&query, layout: .nhd)
        try rotations.rotate(&key, layout: .nhd)

        #expect(rotations.count == 3 && query != before)
    }

    @Test("statistics of logits")
    func logits() throws {
        let logits = try Self.pattern([2, 5000], 7)

        let statistics = try LogitStatistics(vocabulary: 5000, topK: 3)
        let summary = try statistics(logits)
        print(summary.argmax(0), summary.maximum(0) == summary.topValues[0, 0])  // the best token, true
        // The log probability of a token: its logit − ln Σ eˣ.
        print(summary.logProbability(ofValue: logits[0, 7], row: 0))

        #expect((0..<5000).allSatisfy { logits[0, $0] <= summary.maximum(0) })
        #expect(summary.logProbability(ofValue: logits[0, 7], row: 0) < 0)
    }
}

import SLA
import Testing

/// The snippets of Docs/Papers/SLA.md, with checks of their comments.
@Suite("Snippets: SLA")
struct SLASnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("classes and attention")
    func attention() throws {
        let (query, key) = try (Self.pattern([4, 1400, 32], 7), Self.pattern([4, 1400, 32], 11))
        let value = try Self.pattern([4, 1400, 32], 13)
        let (weight, bias) = try (Self.pattern([32, 32], 3), Self.pattern([32], 5))

        let shape = try AttentionShape(queryLength: 1400, keyLength: 1400, queryHeads: 4, kvHeads: 4, headDim: 32)
        let projection = try SparseLinearProjection(weight: weight, bias: bias)
        let sla = try SparseLinearAttention(shape, projection: projection)
        let result = try sla(query: query, key: key, value: value)
        print(result.critical.density, result.marginal.density, result.negligible.density)

        // A released branch, with the classes alone and the linear branch alone.
        let released = try SparseLinearAttention(
            shape, SparseLinearConfiguration(rule: .releasedSLA1(topK: 0.1), featureMap: .elu), projection: projection)
        let blocks = try released.select(query: query, key: key)
        let linear = try released.attention(over: blocks).linear(query: query, key: key, value: value)

        // 22 blocks of keys: 1 critical, 2 negligible.
        #expect(abs(result.density - 1.0 / 22) < 1e-9)
        #expect(abs(result.marginal.density - 19.0 / 22) < 1e-9)
        #expect(linear.shape == [4, 1400, 32] && blocks[0, 0, 0] != .negligible)
    }
}

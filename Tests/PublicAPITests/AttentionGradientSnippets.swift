import SparseKernels
import SparseKernelsTraining
import Testing

/// The snippets of Docs/Operators/AttentionGradient.md, with checks of their comments.
@Suite("Snippets: gradient of attention")
struct AttentionGradientSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("both passes over tensors")
    func tensors() throws {
        let query = try Self.pattern([8, 256, 64], 7)
        let key = try Self.pattern([2, 256, 64], 11)
        let value = try Self.pattern([2, 256, 64], 13)
        let outputGradient = try Self.pattern([8, 256, 64], 5)

        let shape = try AttentionShape(queryLength: 256, keyLength: 256, queryHeads: 8, kvHeads: 2, headDim: 64)
        let state = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)

        let backward = try AttentionGradient(shape, mask: .causal)
        let gradients = try backward(
            query: query, key: key, value: value, state: state, outputGradient: outputGradient)
        print(gradients.query.shape, gradients.key.shape)  // [8, 256, 64] [2, 256, 64]

        #expect(gradients.query.shape == [8, 256, 64])
        #expect(gradients.key.shape == [2, 256, 64] && gradients.value.shape == [2, 256, 64])
        #expect(gradients.value.elements.contains { $0 != 0 })

        var (dq, dk, dv) = (gradients.query, gradients.key, gradients.value)
        try backward.run(
            query: query, key: key, value: value, state: state, outputGradient: outputGradient, queryGradient: &dq,
            keyGradient: &dk, valueGradient: &dv)

        #expect(dq == gradients.query && dk == gradients.key && dv == gradients.value)
    }
}

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

    /// Views of such operands crash the compiler; see `TemporaryOperandTests`.
    @Test("operands that are temporaries")
    func temporaries() throws {
        let shape = try AttentionShape(queryLength: 6, keyLength: 9, queryHeads: 2, kvHeads: 1, headDim: 4)
        let attention = try DenseAttention(shape)
        let gradients = try AttentionGradient(shape)(
            query: Self.pattern([2, 6, 4], 7), key: Self.pattern([1, 9, 4], 11), value: Self.pattern([1, 9, 4], 13),
            state: attention(
                query: Self.pattern([2, 6, 4], 7), key: Self.pattern([1, 9, 4], 11), value: Self.pattern([1, 9, 4], 13)),
            outputGradient: Self.pattern([2, 6, 4], 5))
        #expect(gradients.query.elements.contains { $0 != 0 })
    }
}

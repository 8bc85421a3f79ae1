import SparseKernels
import Testing

/// The snippet of README.md.
@Suite("Snippets: README")
struct READMESnippets {
    @Test("ten lines")
    func tenLines() throws {
        let shape = try AttentionShape(queryLength: 4096, keyLength: 4096, queryHeads: 8, kvHeads: 2, headDim: 64)
        let attention = try DenseAttention(shape, mask: .causal)

        let query = try Tensor<Float>([8, 4096, 64]) { Float($0 % 97) / 97 - 0.5 }  // your tensors: [heads, tokens, headDim]
        let key = try Tensor<Float>([2, 4096, 64]) { Float($0 % 89) / 89 - 0.5 }
        let value = try Tensor<Float>([2, 4096, 64]) { Float($0 % 83) / 83 - 0.5 }

        let state = try attention(query: query, key: key, value: value)
        print(state.output.shape, state.logSumExp[flat: 0], attention.instructionSet)

        // Under a causal mask the first query sees the first key only.
        #expect(state.output[flat: 7] == value[flat: 7])
    }
}

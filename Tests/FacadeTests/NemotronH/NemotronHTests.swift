import NemotronH
import SparseKernelsReference
import Testing

@Suite("NemotronH")
struct NemotronHTests {
    @Test("is dense attention while every block is kept")
    func keepsEverything() throws {
        let shape = try AttentionShape(queryLength: 300, keyLength: 300, queryHeads: 2, kvHeads: 1, headDim: 16)
        let query = try Tensor<Float>.normal([2, 300, 16], seed: 1)
        let key = try Tensor<Float>.normal([1, 300, 16], seed: 2)
        let value = try Tensor<Float>.normal([1, 300, 16], seed: 3)
        let result = try NemotronHAttention(shape)(query: query, key: key, value: value)
        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)
        #expect(try AttentionComparison(result.state, with: dense).recall > 0.999)
        Issue.record("NemotronH has no rule of its own yet")
    }
}

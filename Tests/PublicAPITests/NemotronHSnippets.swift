import NemotronH
import Testing

@Suite("Snippets of the NemotronH guide")
struct NemotronHSnippets {
    @Test func attention() throws {
        let shape = try AttentionShape(queryLength: 256, keyLength: 256, queryHeads: 2, kvHeads: 1, headDim: 16)
        let query = try Tensor<Float>(zeros: [2, 256, 16])
        let key = try Tensor<Float>(zeros: [1, 256, 16])
        let value = try Tensor<Float>(zeros: [1, 256, 16])

        let nemotronH = try NemotronHAttention(shape)
        let result = try nemotronH(query: query, key: key, value: value)
        print(result.mask.density)
    }
}

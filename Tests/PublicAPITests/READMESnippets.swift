import Foundation
import Testing
import XAttention

/// The snippet of README.md.
@Suite("Snippets: README")
struct READMESnippets {
    @Test("ten lines")
    func tenLines() throws {
        let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../..")
        let path = package.appendingPathComponent("Benchmarks/Data/lm-layer3-8192.safetensors").path

        let file = try SafetensorsFile(path: path)  // tensors query, key and value, [heads, tokens, headDim]
        let (query, key, value) = try (file.floatTensor("query"), file.floatTensor("key"), file.floatTensor("value"))
        let shape = try AttentionShape(query: query, key: key, value: value)

        let sparse = try XAttentionPrefill(shape, threshold: 0.9)(query: query, key: key, value: value)
        let dense = try DenseAttention(shape, mask: .causal)(query: query, key: key, value: value)

        print(sparse.mask)  // a picture, and the density of the causal area
        let comparison = try AttentionComparison(sparse.state, with: dense)
        print(comparison.recall, comparison.error)  // attention mass kept, and ‖sparse − dense‖ / ‖dense‖

        #expect(comparison.recall > 0.9 && comparison.error < 0.06 && sparse.density < 0.14)
    }
}

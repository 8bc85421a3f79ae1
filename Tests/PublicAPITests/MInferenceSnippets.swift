import MInference
import Testing

/// The snippets of Docs/Papers/MInference.md, with checks of their comments.
@Suite("Snippets: MInference")
struct MInferenceSnippets {
    static func operands(_ tokens: Int) throws -> (Tensor<Float>, Tensor<Float>, Tensor<Float>) {
        func pattern(_ heads: Int, _ step: Int) throws -> Tensor<Float> {
            try Tensor([heads, tokens, 32]) { Float($0 * step % 31) / 16 - 1 }
        }
        return (try pattern(4, 7), try pattern(2, 11), try pattern(2, 13))
    }

    @Test("prefill in assigned patterns")
    func prefill() throws {
        let (query, key, value) = try Self.operands(1024)

        let shape = try AttentionShape(queryLength: 1024, keyLength: 1024, queryHeads: 4, kvHeads: 2, headDim: 32)
        let heads: [MInferenceHead] = [
            .verticalSlash(vertical: 100, slash: 200), .aShape(initial: 64, local: 256), .blockSparse(topK: 4), .dense,
        ]
        let prefill = try MInferencePrefill(shape, heads: heads)
        let result = try prefill(query: query, key: key, value: value)
        print(result.state.output.shape, result.patterns.count, result.density)  // [4, 1024, 32] 4 and a density below 1

        var output = try Tensor<Float16>(zeros: [1024, 4, 32])  // [tokens, heads, channels]
        let selected = try prefill.run(
            query: query.view(), key: key.view(), value: value.view(), output: output.mutableView(layout: .nhd))
        print(selected.patterns.count, selected.density)

        #expect(selected.patterns == result.patterns && selected.density == result.density)
        #expect(output[flat: 3 * 32] == Float16(result.state.output[flat: 3 * 1024 * 32]))
        #expect(result.state.output.shape == [4, 1024, 32] && result.patterns.count == 4)
        #expect(result.density > 0 && result.density < 1)
    }

    @Test("a released configuration")
    func configuration() throws {
        let configuration = try MInferenceConfiguration(
            json: #"[{"0": ["vertical_and_slash", 1000, 6096, 0.98], "1": ["stream_llm", 100, 800, 0.95]}]"#)
        let heads = try configuration.heads(layer: 0, queryHeads: 3)
        print(heads)  // 1000 and 6096; an A-shape of 100 and 800; and, without an entry, 1000 and 6096

        #expect(heads == [.standard, .aShape(initial: 100, local: 800), .standard])
    }

    @Test("search")
    func search() throws {
        let (query, key, value) = try Self.operands(512)
        let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 4, kvHeads: 2, headDim: 32)

        let search = try MInferenceSearch(shape, mode: .paper(initial: 16, local: 128, verticals: [30, 60]))
        let choices = try search(query: query, key: key, value: value)
        var configuration = MInferenceConfiguration(layers: [])
        configuration.layers.append(Dictionary(uniqueKeysWithValues: choices.map(\.entry).enumerated().map { ($0, $1) }))

        #expect(choices.count == 4 && configuration.layers[0].count == 4)
    }

    @Test("operators")
    func operators() throws {
        let (query, key, _) = try Self.operands(1024)
        let shape = try AttentionShape(queryLength: 1024, keyLength: 1024, queryHeads: 4, kvHeads: 2, headDim: 32)

        let scores = try VerticalSlashScoring(shape)(query: query, key: key)
        let lines = try VerticalSlashSelection(vertical: 100, slash: 200)(scores, head: 0)
        let index = try VerticalSlashIndex(lines, queryLength: 1024, keyLength: 1024)
        print(index.columns(block: 5), index.blockStarts(block: 5))  // single keys, first keys of blocks of 64
        let cover = try index.blockCover(BlockGrid(shape, blockSize: 128, isCausal: true))

        let grid = try BlockGrid(shape, blockSize: 64, isCausal: true)
        let blocks = try MeanPoolScoring(shape, grid: grid)(query: query, key: key)
        let mask = try BlockSelection(.topK(8))(blocks)

        #expect(cover.density > 0 && cover.density <= 1 && mask.heads == 4)
        #expect(index.blockStarts(block: 5).last == 320)
    }
}

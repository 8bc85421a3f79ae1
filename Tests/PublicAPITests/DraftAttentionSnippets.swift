import DraftAttention
import Testing

/// The snippets of Docs/Papers/DraftAttention.md, with checks of their comments.
@Suite("Snippets: DraftAttention")
struct DraftAttentionSnippets {
    @Test("draft and attention")
    func attention() throws {
        func pattern(_ step: Int) throws -> Tensor<Float> {
            try Tensor([2, 1576, 32]) { Float($0 * step % 31) / 16 - 1 }
        }
        let (query, key, value) = (try pattern(7), try pattern(11), try pattern(13))

        let video = try VideoGeometry(frames: 3, height: 16, width: 32, textTokens: 40, textPlacement: .after)
        let shape = try AttentionShape(
            queryLength: video.tokens, keyLength: video.tokens, queryHeads: 2, kvHeads: 2, headDim: 32)
        let draft = try DraftAttentionVideo(shape, geometry: video, .init(sparsity: 0.75))
        let result = try draft(query: query, key: key, value: value)
        print(result.state.output.shape, result.mask.density)  // [2, 1576, 32], and less than 1

        let map = try draft.draftMap(query: query, key: key)  // a softmax over 12 windows for each of them
        let mask = try draft.mask(map)
        let state = try draft.attention(over: mask)(query: query, key: key, value: value)

        #expect(result.state.output.shape == [2, 1576, 32] && result.mask.density < 1)
        #expect(map.values.shape == [2, 12, 12] && mask == result.mask && state == result.state)
    }
}

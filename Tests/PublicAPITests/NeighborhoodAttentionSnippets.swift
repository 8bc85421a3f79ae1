import NeighborhoodAttention
import Testing

/// The snippets of Docs/Papers/NeighborhoodAttention.md, with checks of their comments.
@Suite("Snippets: NeighborhoodAttention")
struct NeighborhoodAttentionSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("video with text")
    func video() throws {
        let (query, key) = try (Self.pattern([2, 496, 16], 7), Self.pattern([2, 496, 16], 11))
        let value = try Self.pattern([2, 496, 16], 13)

        let video = try VideoGeometry(frames: 6, height: 8, width: 10, textTokens: 16, textPlacement: .after)
        let shape = try AttentionShape(queryLength: 496, keyLength: 496, queryHeads: 2, kvHeads: 2, headDim: 16)
        let attention = try NeighborhoodAttention(shape, video, window: [4, 6, 6], stride: [2, 2, 2])
        let state = try attention(query: query, key: key, value: value)
        print(attention.density, state.output.shape)

        #expect(state.output.shape == [2, 496, 16] && attention.density < 0.4)
    }

    @Test("an image, and additional keys")
    func image() throws {
        let (query, key) = try (Self.pattern([2, 168, 16], 7), Self.pattern([2, 168, 16], 11))
        let value = try Self.pattern([2, 168, 16], 13)
        let (textKey, textValue) = try (Self.pattern([2, 9, 16], 3), Self.pattern([2, 9, 16], 5))
        let shape = try AttentionShape(queryLength: 168, keyLength: 168, queryHeads: 2, kvHeads: 2, headDim: 16)

        let image = try Neighborhood(size: [12, 14], window: [7, 6], stride: [1, 2], isCausal: [true, false])
        let attention = try NeighborhoodAttention(shape, image)
        let state = try attention(query: query, key: key, value: value, contextKey: textKey, contextValue: textValue)
        print(image.isNeighbor(query: 20, key: 6), image.neighbors(of: 20).count)

        #expect(state.output.shape == [2, 168, 16])
        #expect(image.isNeighbor(query: 20, key: 6) && image.neighbors(of: 20).count == 12)
    }
}

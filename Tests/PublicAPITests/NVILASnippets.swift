import NVILA
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/NVILA.md, with checks of their comments.
@Suite("Snippets: NVILA")
struct NVILASnippets {
    @Test("tiles, projector and video")
    func pictureAndVideo() throws {
        let features = try Tensor<Float>.normal([17, 64, 16], seed: 1)
        let weights = try NVILAProjectorWeights(
            norms: [.init(weight: .normal([192], seed: 2), bias: .normal([192], seed: 3))],
            linears: [
                .init(weight: .normal([40, 192], seed: 4, scale: 0.1), bias: .normal([40], seed: 5)),
                .init(weight: .normal([40, 40], seed: 6, scale: 0.2), bias: .normal([40], seed: 7)),
            ])
        let frames = try Tensor<Float>.normal([16, 16, 40], seed: 8)
        let newline = try Tensor<Float>.normal([1, 40], seed: 9)

        let tiles = try DynamicS2()
        let tiling = try tiles.tiling(width: 1920, height: 1080)
        print(tiling.blocks, tiling.count)  // [1 × 1, 2 × 2, 3 × 4] 17
        // The tower's features of the tiles: [17, 64 tokens, 16 channels].
        let merge = try DynamicS2Merge(tiles, images: [tiling.largest], tokens: GridSize(side: 8))
        let boards = try merge(features)
        print(boards.shape)  // [12, 64, 48]
        #expect("\(tiling.blocks)" == "[1 × 1, 2 × 2, 3 × 4]" && tiling.count == 17 && boards.shape == [12, 64, 48])

        let projector = try NVILAProjector(weights, .twoByTwo, grid: GridSize(side: 8), format: .w8a8)
        let tokens = try projector(boards)
        print(tokens.shape)  // [12, 16, 40]
        #expect(tokens.shape == [12, 16, 40])

        // 16 frames after the projector: means of 8, and a newline token after each.
        let encoder = try NVILAVideoEncoder(
            frames: 16, grid: GridSize(side: 4), channels: 40, pools: [PoolingWindow(frames: 8)], end: newline)
        let video = try encoder(frames)
        print(video.shape)  // [34, 40]
        #expect(video.shape == [34, 40])
    }
}

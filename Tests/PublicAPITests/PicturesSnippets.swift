import SparseKernels
import Testing

/// The snippets of Docs/Operators/Pictures.md.
@Suite("Snippets: pictures")
struct PicturesSnippets {
    @Test("resizing and pooling")
    func resizing() throws {
        let picture = try Tensor<Float>([3, 48, 64]) { Float($0 % 17) }
        let features = try Tensor<Float>([54, 54, 8]) { Float($0 % 13) }

        let resize = try ImageResize(GridSize(rows: 48, columns: 64), to: GridSize(side: 42), filter: .bicubic)
        let small = try resize(picture)  // [3, 42, 42]
        let pooling = try AdaptivePooling(GridSize(side: 54), to: GridSize(side: 27), .maximum)
        let pooled = try pooling(features, layout: .interleaved)  // [27, 27, 8]

        #expect(small.shape == [3, 42, 42] && pooled.shape == [27, 27, 8])
        #expect(pooled[0, 0, 0] == max(features[0, 0, 0], features[0, 1, 0], features[1, 0, 0], features[1, 1, 0]))
    }

    @Test("patches, all and some, and of a part")
    func patches() throws {
        let picture = try Tensor<Float>([3, 70, 84]) { Float($0 % 11) - 5 }
        let weight = try Tensor<Float>([16, 3, 14, 14]) { Float($0 % 7) - 3 }
        let bias = try Tensor<Float>(zeros: [16])

        let embedding = try PatchEmbedding(weight: weight, bias: bias)  // [width, channels, 14, 14], [width]
        let all = try embedding(picture)  // 5 × 6 patches: [30, 16]
        let some = try embedding(picture, patches: [3, 17])  // [2, 16]
        // The patches of the lower right corner, into the last rows of a matrix of tokens.
        let corner = try picture.pictureView().cropped(row: 42, column: 56, to: GridSize(side: 28))
        var tokens = try Tensor<Float>(zeros: [10, 16])
        var rows = try tokens.mutableMatrixView()
        try embedding.run(corner, into: rows.rows(6..<10))

        #expect(all.shape == [30, 16] && some[1, 5] == all[17, 5])
        #expect(tokens[6, 2] == all[3 * 6 + 4, 2] && tokens[9, 2] == all[29, 2] && tokens[5, 2] == 0)
    }

    @Test("pictures of bytes")
    func bytes() throws {
        let photo = try Tensor<UInt8>([3, 28, 28]) { UInt8(truncatingIfNeeded: $0) }
        let embedding = try PatchEmbedding(weight: Tensor<Float>([4, 3, 14, 14]) { Float($0 % 5) })

        let scale = PatchEmbedding.ByteScale(mean: [0.5, 0.5, 0.5], deviation: [0.5, 0.5, 0.5])
        let tokens = try embedding(photo, bytes: scale)  // byte / 127.5 − 1

        #expect(tokens.shape == [4, 4])
    }

    @Test("depthwise convolution")
    func depthwise() throws {
        let weight = try Tensor<Float>([8, 1, 7, 7]) { _ in 1 }
        let features = try Tensor<Float>([9, 9, 8]) { _ in 1 }

        let convolution = try DepthwiseConvolution(weight: weight)  // [channels, 1, 7, 7]
        let y = try convolution(features)  // [rows, columns, channels]

        #expect(y[4, 4, 0] == 49 && y[0, 0, 3] == 16)
    }
}

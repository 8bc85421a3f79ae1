import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

/// The snippets of Docs/Operators/VisionModel.md.
@Suite("Snippets: vision transformers")
struct VisionModelSnippets {
    @Test("a layer, with keys that are kept")
    func layer() throws {
        let configuration = VisionLayerConfiguration(width: 32, heads: 2, hidden: 48)
        let layerWeights = try VisionLayerWeights.normal(configuration, seed: 1)
        var tokens = try Tensor<Float>.normal([2 * 5, 32], seed: 2)
        var (low, high) = (try Tensor<Float>.normal([9, 32], seed: 3), try Tensor<Float>.normal([4, 32], seed: 4))
        let before = high

        let layer = try VisionLayer(configuration, layerWeights)
        var workspace = VisionWorkspace()
        try layer.run(&tokens, pictures: 2, workspace: &workspace)  // [2 · tokens, width], in place

        // The keys and values of a picture are kept, and other tokens attend to them and to each other.
        var keys = VisionKeys()
        try layer.run(&low, keeping: &keys, workspace: &workspace)
        try layer.run(&high, after: keys, workspace: &workspace)

        #expect(keys.tokens == 9 && high != before)
    }

    @Test("a model on a picture")
    func model() throws {
        let path = NSTemporaryDirectory() + "snippet-\(UUID().uuidString).png"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try Picture(GridSize(side: 40), filledWith: Picture.Colour(200, 100, 50)).writePNG(to: path)
        let configuration = VisionTransformerConfiguration(
            imageSize: 28, patchSize: 14, layer: VisionLayerConfiguration(width: 32, heads: 2, hidden: 48), layers: 2)

        let weights = try VisionTransformerWeights(configuration, seed: 1)  // or (folder: …), of a checkpoint
        let model = try VisionTransformer(weights, linear: .w8a8)
        let picture = try Picture(path: path)
        let output = try model(picture.planes(resizedTo: GridSize(side: 378)))
        print(output.tokens.shape)  // [729, width]

        #expect(output.tokens.shape == [729, 32])
    }
}

import PS3
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("PS3 on the weights of a vision transformer")
struct PS3VisionModelTests {
    private func weights(imageSize: Int = 20) throws -> VisionTransformerWeights {
        let c = VisionTransformerConfiguration(
            imageSize: imageSize, patchSize: 5, layer: VisionLayerConfiguration(width: 24, heads: 2, hidden: 40), layers: 3)
        return try VisionTransformerWeights(c, seed: 8)
    }

    @Test("the low resolution is the transformer itself, and every patch of the high ones can be encoded")
    func encoding() throws {
        for set in InstructionSet.available {
            let model = try PS3VisionModel(weights(), sides: [20, 40, 80], budget: 30, instructionSet: set)
            #expect(model.selectionLayer == 1 && model.encoder.layers.count == 3)
            let pixels = try Tensor<Float>.normal([3, 20, 20], seed: 4)
            let picture = try model.encoder.look(at: pixels)
            let transformer = try VisionTransformer(weights(), instructionSet: set)
            var (last, workspace) = (pixels, VisionWorkspace())
            _ = try transformer(pixels, workspace: &workspace) { _, tokens in last = tokens }
            #expect(picture.tokens == last, "\(set)")
            let encoding = try model.encoder.encode(
                picture, prompt: model.promptForWhatStandsOut(in: picture), request: PS3Request(.all))
            let tokens = try encoding.tokens()
            #expect(encoding.selection.count == 64 + 256 && tokens.shape == [16 + 320, 24])
            #expect(tokens.elements.allSatisfy { $0.isFinite })
        }
    }

    @Test("positions of another size of pictures are resized to the low resolution")
    func positions() throws {
        let model = try PS3VisionModel(weights(imageSize: 30), sides: [20, 40], budget: 10)
        let picture = try model.encoder.look(at: .normal([3, 33, 50], seed: 1))
        #expect(picture.tokens.shape == [16, 24] && picture.grids == [GridSize(rows: 4, columns: 8)])
    }

    @Test("CLIP models, layers and sides that do not fit are refused")
    func errors() throws {
        func expect(_ argument: String?, _ code: SparseKernelsError.Code, _ body: () throws -> Void) {
            let error = #expect(throws: SparseKernelsError.self) { try body() }
            #expect(error?.code == code && (argument == nil || error?.argument == argument), "\(error!)")
        }
        let tiny = try TinyVisionModel(isCLIP: true)
        expect("weights", .invalidArgument) {
            _ = try PS3VisionModel(VisionTransformerWeights(folder: tiny.folder), sides: [18, 36], budget: 4)
        }
        for layer in [-1, 3] {
            expect("selectionLayer", .invalidArgument) {
                _ = try PS3VisionModel(weights(), sides: [20, 40], budget: 4, selectionLayer: layer)
            }
        }
        expect(nil, .invalidArgument) { _ = try PS3VisionModel(weights(), sides: [40, 20], budget: 4) }
        expect(nil, .invalidArgument) { _ = try PS3VisionModel(weights(), sides: [20, 40], budget: 0) }
    }

    @Test("a checkpoint of SigLIP gives the same tokens by PS3 and alone")
    func checkpoint() throws {
        let tiny = try TinyVisionModel()
        let model = try PS3VisionModel(VisionTransformerWeights(folder: tiny.folder), sides: [18, 36], budget: 9)
        let pixels = try Tensor<Float>.normal([3, 18, 18], seed: 6)
        let picture = try model.encoder.look(at: pixels)
        let expected = try tiny.reference(pixels).hidden[3]
        for index in expected.values.indices {
            #expect(abs(Double(picture.tokens[flat: index]) - expected.values[index]) <= expected.errors[index])
        }
        let encoding = try model.encoder.encode(
            picture, prompt: model.prompt(like: PictureBox(x: 3, y: 3, width: 6, height: 6), in: picture))
        #expect(encoding.selection.count == 9)
    }
}

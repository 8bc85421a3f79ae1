import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("Loading a vision transformer")
struct VisionLoadingTests {
    private func expect(
        _ code: SparseKernelsError.Code, _ fragments: String..., folder: String
    ) {
        let error = #expect(throws: SparseKernelsError.self) { try VisionTransformer(folder: folder) }
        #expect(error?.code == code, "\(error!)")
        for fragment in fragments { #expect(error!.description.contains(fragment), "\(error!)") }
        #expect(!error!.description.contains("\n"))
    }

    private func configuration(
        isCLIP: Bool = false, _ changes: [String: String?]
    ) throws -> VisionTransformerConfiguration {
        let tiny = try TinyVisionModel(isCLIP: isCLIP, changes: changes)
        return try VisionTransformerConfiguration(path: tiny.folder + "/config.json")
    }

    @Test("sizes are those of the file, of a tower or in the object of a whole model, and defaults those of the library")
    func configurations() throws {
        let siglip = try configuration([:])
        #expect(siglip.family == .siglip && siglip.hasPoolingHead && siglip.projectionSize == nil)
        #expect(siglip.layer == VisionLayerConfiguration(width: 24, heads: 2, hidden: 40))
        #expect(siglip.mean == [0.5, 0.5, 0.5])
        let clip = try configuration(isCLIP: true, [:])
        #expect(clip.family == .clip && clip.projectionSize == 10 && clip.classTokens == 1 && !clip.hasPoolingHead)
        #expect(clip.layer.activation == .quickGELU && clip.layer.epsilon == 1e-5)
        #expect(try configuration(["vision_use_head": "false"]).hasPoolingHead == false)
        #expect(try configuration(["hidden_act": "\"gelu\""]).layer.activation == .gelu)
        let inner = TinyVisionModel.configuration(
            isCLIP: true, changes: ["model_type": "\"clip_vision_model\"", "projection_dim": nil])
        let whole = try TinyVisionModel(isCLIP: true)
        try whole.write(text: #"{"model_type": "clip", "projection_dim": 10, "vision_config": \#(inner)}"#, to: "config.json")
        #expect(try VisionTransformer(folder: whole.folder).configuration == clip)
        try whole.write(text: #"{"model_type": "siglip", "vision_config": {}}"#, to: "config.json")
        let defaults = try VisionTransformerConfiguration(path: whole.folder + "/config.json")
        #expect(defaults.layer == VisionLayerConfiguration(width: 768, heads: 12, hidden: 3072))
        #expect(defaults.layers == 12 && defaults.grid == GridSize(side: 14))
        let large = VisionTransformerConfiguration.so400m()
        #expect(large.layer.headDim == 72 && large.grid == GridSize(side: 27) && large.layers == 27)
    }

    @Test("keys that are wrong or request other arithmetic are named")
    func badConfigurations() throws {
        for (key, value, fragment) in [
            ("model_type", "\"vit\"", "siglip"), ("model_type", nil, "no such key"), ("hidden_size", "0", "whole number"),
            ("num_attention_heads", "5", "divisor"), ("patch_size", "21", "at most image_size"), ("num_channels", "4", "blue"),
            ("hidden_act", "\"relu\"", "quick_gelu"), ("layer_norm_eps", "-1", "0 or more"), ("image_size", "\"x\"", "whole"),
            ("num_hidden_layers", "1e9", "4096"), ("vision_use_head", "3", "true or false"),
            ("model_type", "\"siglip\"", "no such key"),
        ] as [(String, String?, String)] {
            let error = #expect(throws: SparseKernelsError.self, "\(key)") { try configuration([key: value]) }
            #expect(error?.code == .malformedFile && error!.description.contains(fragment), "\(error!)")
        }
    }

    @Test("a tower alone, a whole model, one inside another model, and parts of 16 bits by their index are the same model")
    func names() throws {
        let pictures = try Tensor<Float>.normal([3, 20, 20], seed: 1)
        for isCLIP in [false, true] {
            let tiny = try TinyVisionModel(isCLIP: isCLIP)
            let whole = try VisionTransformer(folder: tiny.folder)(pictures)
            for prefix in ["", "vision_tower.vision_model."] {
                let other = try TinyVisionModel(isCLIP: isCLIP, prefix: prefix)
                #expect(try VisionTransformer(folder: other.folder)(pictures).tokens == whole.tokens)
            }
            try tiny.shard()
            let parts = try VisionTransformer(folder: tiny.folder)(pictures)
            #expect(zip(parts.tokens.elements, whole.tokens.elements).allSatisfy { abs($0 - $1) < 0.02 })
        }
    }

    @Test("CLIP without a projection has only the pooled row")
    func withoutProjection() throws {
        let tiny = try TinyVisionModel(isCLIP: true)
        try tiny.write(replacing: "visual_projection.weight")
        let output = try VisionTransformer(folder: tiny.folder)(Tensor<Float>.normal([3, 20, 20], seed: 1))
        #expect(output.projected == nil && output.pooled?.shape == [1, 24])
    }

    @Test("every tensor that is missing, has another shape or a number that is not finite is named")
    func tensors() throws {
        for isCLIP in [false, true] {
            let tiny = try TinyVisionModel(isCLIP: isCLIP)
            for (name, weight) in tiny.weights where !name.contains("layers.2.") && !name.contains("layers.1.") {
                if name != "visual_projection.weight" {
                    try tiny.write(replacing: name)
                    expect(.notFound, name, folder: tiny.folder)
                }
                try tiny.write(replacing: name, by: Tensor(zeros: weight.shape.map { $0 + 1 }))
                expect(.invalidShape, name, "\(weight.shape)", folder: tiny.folder)
            }
            let name = "vision_model.encoder.layers.1.mlp.fc1.weight"
            var bad = tiny.weights[name]!
            bad[flat: 7] = .nan
            try tiny.write(replacing: name, by: bad)
            expect(.invalidArgument, "up.weight", "element 7", folder: tiny.folder)
        }
    }

    @Test("files that are cut off or missing give typed errors")
    func files() throws {
        let tiny = try TinyVisionModel()
        let url = URL(fileURLWithPath: tiny.folder + "/model.safetensors")
        let bytes = try Data(contentsOf: url)
        for count in [0, 7, 100, bytes.count / 2, bytes.count - 1] {
            try bytes.prefix(count).write(to: url)
            expect(.malformedFile, "model.safetensors", folder: tiny.folder)
        }
        try FileManager.default.removeItem(at: url)
        expect(.inputOutput, "model.safetensors", folder: tiny.folder)
        try tiny.write(text: "{", to: "config.json")
        expect(.malformedFile, "config.json", folder: tiny.folder)
    }
}

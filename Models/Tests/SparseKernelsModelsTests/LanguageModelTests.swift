import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

/// A folder with a Llama model of two layers and random weights. It is removed when the test ends.
final class TinyLlama {
    let folder = NSTemporaryDirectory() + "sparsekernels-llama-\(UUID().uuidString)"
    static let linearLayers = [
        "self_attn.q_proj": [16, 12], "self_attn.k_proj": [8, 12], "self_attn.v_proj": [8, 12], "self_attn.o_proj": [12, 16],
        "mlp.gate_proj": [20, 12], "mlp.up_proj": [20, 12], "mlp.down_proj": [12, 20],
    ]

    init(configuration: [String: Double] = [:], leavingOut missing: String? = nil, projection: Bool = false) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let sizes: [String: Double] = [
            "vocab_size": 32, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 4, "rope_theta": 1000, "rms_norm_eps": 1e-5,
        ].merging(configuration) { $1 }
        try JSONEncoder().encode(sizes).write(to: URL(fileURLWithPath: folder + "/config.json"))
        var shapes = ["model.embed_tokens.weight": [32, 12], "model.norm.weight": [12]]
        for layer in 0..<2 {
            for (name, shape) in Self.linearLayers { shapes["model.layers.\(layer).\(name).weight"] = shape }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes["model.layers.\(layer).\(norm).weight"] = [12]
            }
        }
        if projection { shapes["lm_head.weight"] = [32, 12] }
        var writer = SafetensorsWriter()
        for (index, name) in shapes.keys.sorted().enumerated() where name != missing {
            try writer.add(name, Tensor<Float>.normal(shapes[name]!, seed: UInt64(index), scale: 0.5))
        }
        try writer.write(to: folder + "/model.safetensors")
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// Replaces the text of `config.json`.
    func write(configuration: String) throws {
        try Data(configuration.utf8).write(to: URL(fileURLWithPath: folder + "/config.json"))
    }
}

@Suite("Running a language model without a cache")
struct LanguageModelTests {
    @Test("every linear layer shows its input, and later tokens change nothing before them")
    func layersAndCausality() throws {
        let tiny = try TinyLlama()
        let model = try LanguageModel(folder: tiny.folder)
        let tokens = [3, 1, 4, 1, 5, 9, 2, 6, 31, 0, 7]
        var seen: [String: [Int]] = [:]
        let logits = try model.logits(tokens) { layer, input in seen[layer] = input.shape }
        #expect(logits.shape == [11, 32] && logits.elements.allSatisfy(\.isFinite))
        let expected = (0..<2).flatMap { layer in
            TinyLlama.linearLayers.map { ("model.layers.\(layer).\($0.key)", [11, $0.value[1]]) }
        }
        #expect(seen == Dictionary(uniqueKeysWithValues: expected))
        let other = try model.logits(Array(tokens.dropLast()) + [8], on: .serial)
        #expect(other.elements.prefix(10 * 32) == logits.elements.prefix(10 * 32))
        #expect(other != logits)
    }

    @Test("folders and tokens that are no model's are refused")
    func refusals() throws {
        func expect(_ code: SparseKernelsError.Code, _ argument: String, _ body: () throws -> Void) throws {
            let error = try #require(throws: SparseKernelsError.self) { try body() }
            #expect(error.code == code && error.argument.contains(argument), "\(error)")
        }
        let tiny = try TinyLlama()
        let model = try LanguageModel(folder: tiny.folder)
        for tokens in [[], [32], [-1]] {
            try expect(.invalidArgument, "tokens") { _ = try model.logits(tokens) }
        }
        try expect(.inputOutput, "config.json") { _ = try LanguageModel(folder: tiny.folder + "/missing") }
        let uneven = try TinyLlama(configuration: ["num_key_value_heads": 3])
        try expect(.malformedFile, "config.json") { _ = try LanguageModel(folder: uneven.folder) }
        let wide = try TinyLlama(configuration: ["hidden_size": 13])
        try expect(.invalidShape, "model.") { _ = try LanguageModel(folder: wide.folder) }
        let lacking = try TinyLlama(leavingOut: "model.layers.1.mlp.up_proj.weight")
        try expect(.notFound, "model.layers.1.mlp.up_proj.weight") { _ = try LanguageModel(folder: lacking.folder) }
    }

    /// The same model in NumPy, in 64-bit floats with textbook loops, gives 197.822 bits for this text.
    @Test(
        "the trained model codes a text in as many bits as another implementation says",
        .enabled(if: ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] != nil))
    func trainedModel() throws {
        let data = try #require(ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"])
        let model = try LanguageModel(folder: data + "/models/code-lm")
        let text = """
            struct Point {
                var x: Int
                var y: Int

                func distance(to other: Point) -> Int {
                    abs(x - other.x) + abs(y - other.y)
                }
            }

            let points = [Point(x: 1, y: 2), Point(x: 3, y: 4)]
            for point in points {
                print(point.distance(to: points[0]))
            }

            """
        let tokens = text.utf8.map(Int.init)
        let bits = try LanguageModel.codeLength(model.logits(tokens), tokens)
        // Rounding in single precision changes each of 250 log-probabilities by about 10⁻⁵.
        #expect(abs(bits - 197.822) < 0.01, "\(bits)")
    }
}

@Suite("Sampling calibration tokens")
struct CalibrationRecorderTests {
    @Test("all tokens while there is room, then as many as there is room for: the same in each layer, by seed")
    func reservoir() throws {
        let tiny = try TinyLlama()
        let model = try LanguageModel(folder: tiny.folder)
        let sequences = (0..<5).map { start in (0..<9).map { (start * 7 + $0 * $0) % 32 } }
        var (all, some, again) = (
            try CalibrationRecorder(capacity: 100), try CalibrationRecorder(capacity: 8, seed: 1),
            try CalibrationRecorder(capacity: 8, seed: 1)
        )
        for sequence in sequences {
            try all.record(sequence, through: model)
            try some.record(sequence, through: model)
            try again.record(sequence, through: model, on: .serial)
        }
        #expect(all.layers.count == 14 && all.tokens == 45 && some.tokens == 45)
        func rows(_ recorder: CalibrationRecorder, _ layer: String) throws -> [[Float]] {
            let sample = try recorder.sample(of: layer)
            let width = sample.shape[1]
            return (0..<sample.shape[0]).map { Array(sample.elements[$0 * width..<($0 + 1) * width]) }
        }
        var positions: [[Int?]] = []
        for layer in ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"] {
            let (everything, sampled) = (try rows(all, layer), try rows(some, layer))
            #expect(everything.count == 45 && sampled.count == 8)
            #expect(try rows(again, layer) == sampled)
            positions.append(sampled.map { everything.firstIndex(of: $0) })
        }
        // Layer 0's q_proj reads only the embedding, so equal tokens have equal rows; after attention rows differ.
        #expect(!positions[1].contains(nil) && Set(positions[1]).count == 8)
        let tokens = sequences.flatMap { $0 }
        for (first, last) in zip(positions[0], positions[1]) {
            #expect(tokens[try #require(first)] == tokens[try #require(last)])
        }
    }

    @Test("the file has a tensor per layer, which quantize takes")
    func file() throws {
        let tiny = try TinyLlama()
        var recorder = try CalibrationRecorder(capacity: 4)
        try recorder.record([1, 2, 3, 4, 5, 6], through: LanguageModel(folder: tiny.folder))
        try recorder.write(to: tiny.folder + "/calibration.safetensors", source: "six tokens")
        let file = try SafetensorsFile(path: tiny.folder + "/calibration.safetensors")
        #expect(file.tensors.count == 14 && file.metadata["source"] == "six tokens")
        #expect(file["model.layers.1.mlp.down_proj"]?.shape == [4, 20])
        let error = try #require(throws: SparseKernelsError.self) { _ = try recorder.sample(of: "other") }
        #expect(error.code == .notFound)
        let none = try #require(throws: SparseKernelsError.self) { _ = try CalibrationRecorder(capacity: 0) }
        #expect(none.code == .invalidArgument && none.argument == "capacity")
    }
}

import Foundation
import SVDQuant
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import SparseLoRA
import Testing

@testable import SparseKernelsFineTuning

@Suite("Files of adapters")
struct AdapterFilesTests {
    private static func trainer(_ tiny: TinyTrainee, _ targets: [AdapterTarget] = AdapterTarget.allCases) throws -> LoRATrainer
    {
        var c = FineTuningConfiguration()
        (c.rank, c.alpha, c.batch, c.length, c.scored, c.targets) = (3, 6, 1, 9, 9, targets)
        let trainer = try LoRATrainer(FrozenModel(folder: tiny.folder, rank: c.rank, on: .serial), c, on: .serial)
        for place in trainer.adapters.factors.indices {
            trainer.adapters.factors[place].b = try .normal(
                trainer.adapters.factors[place].b.shape, seed: UInt64(place), scale: 0.3)
        }
        return trainer
    }

    @Test("are read by LoRAAdapter under PEFT's names, with the scale of the configuration")
    func reading() throws {
        let (tiny, folder) = (try TinyTrainee(), RunFolder())
        let trainer = try Self.trainer(tiny)
        try trainer.writeAdapter(to: folder.path)
        let file = try SafetensorsFile(path: folder.path + "/adapter_model.safetensors")
        #expect(file.tensors.count == 16)
        #expect(file["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"]?.shape == [16, 3])
        #expect(file["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"]?.shape == [3, 32])
        for place in trainer.adapters.factors.indices {
            let adapter = try LoRAAdapter(file: file, layer: trainer.adapters.layer(place))
            #expect(adapter.scale == 2 && adapter.factors.down == trainer.adapters.factors[place].a)
            #expect(adapter.factors.up == trainer.adapters.factors[place].b && adapter.bias == nil)
        }
    }

    @Test("make a model that has the loss of the training")
    func merging() throws {
        let (tiny, folder) = (try TinyTrainee(), RunFolder())
        let trainer = try Self.trainer(tiny)
        try trainer.writeAdapter(to: folder.path)
        let tokens = (0..<10).map { $0 * 7 % 40 }
        var batch = TrainingBatch(length: 9)
        batch.append(tokens[..<9], targets: tokens[1...])
        let expected = try trainer.validate([batch]).mean
        let model = try LanguageModel(folder: tiny.folder, linear: .float32, adapter: folder.path, on: .serial)
        let logits = try model.logits(Array(tokens[..<9]), on: .serial)
        var sum = 0.0
        for row in 0..<9 {
            let values = (0..<40).map { Double(logits[row, $0]) }
            sum += log(values.reduce(0) { $0 + exp($1) }) - values[tokens[row + 1]]
        }
        #expect(abs(sum / 9 - expected) < 1e-5)
        let plain = try LanguageModel(folder: tiny.folder, linear: .float32, on: .serial).logits(
            Array(tokens[..<9]), on: .serial)
        #expect(plain != logits)
        // Formats with fewer bits take the sum as they take a weight.
        for format in [LinearFormat.float16, .bfloat16, .fp8] {
            let narrow = try LanguageModel(folder: tiny.folder, linear: format, adapter: folder.path, on: .serial)
                .logits(Array(tokens[..<9]), on: .serial)
            func distance(_ other: Tensor<Float>) -> Float {
                zip(narrow.elements, other.elements).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
            }
            #expect(distance(logits) < 0.1 * distance(plain), "\(format)")
        }
    }

    @Test("of another model are errors")
    func refusals() throws {
        let (tiny, folder) = (try TinyTrainee(), RunFolder())
        let trainer = try Self.trainer(tiny, [.query, .value])
        try trainer.writeAdapter(to: folder.path)
        let c = trainer.model.configuration
        #expect(try ModelAdapter(folder: folder.path, for: c).layers.count == 4)
        func error(_ fields: [String: Any]) throws -> SparseKernelsError? {
            let other = try TinyTrainee(fields: fields)
            let configuration = try LanguageModelConfiguration(path: other.folder + "/config.json")
            return #expect(throws: SparseKernelsError.self) { _ = try ModelAdapter(folder: folder.path, for: configuration) }
        }
        let wide = try error(["num_key_value_heads": 4])
        #expect(wide?.code == .invalidShape && wide?.expected == "factors of the model's 32 × 24 weight")
        #expect(wide?.actual.hasPrefix("16 × 24") == true)
        let deep = try error(["num_hidden_layers": 3])
        #expect(deep?.code == .notFound && deep?.argument.contains("layers.2.self_attn") == true)
        let shallow = try error(["num_hidden_layers": 1])
        #expect(shallow?.code == .notFound && shallow?.expected.contains("blocks 0 to 0") == true)
        try FileManager.default.removeItem(atPath: folder.path + "/adapter_config.json")
        let missing = #expect(throws: SparseKernelsError.self) { _ = try ModelAdapter(folder: folder.path, for: c) }
        #expect(missing?.code == .inputOutput)
    }

    @Test("models that cannot be trained are refused by what they have")
    func models() throws {
        func error(_ fields: [String: Any]) throws -> SparseKernelsError? {
            let tiny = try TinyTrainee(fields: fields)
            return #expect(throws: SparseKernelsError.self) { _ = try FrozenModel(folder: tiny.folder, on: .serial) }
        }
        #expect(try error(["model_type": "qwen3"])?.actual == "one with them")
        #expect(try error(["model_type": "gemma2"])?.actual == "one with norms behind")
        #expect(try error(["mlp_bias": true])?.actual == "one with biases")
        let code = try #require(ModelData.code)
        let quantized = #expect(throws: SparseKernelsError.self) { _ = try FrozenModel(folder: code, on: .serial) }
        #expect(quantized?.actual == "weights of 4 bits" && quantized?.code == .invalidArgument)
    }
}

import Foundation
public import SparseKernels
import SparseKernelsModels
import SparseKernelsTraining

extension LoRATrainer {
    /// Saves the adapters as PEFT does: `adapter_model.safetensors` and `adapter_config.json`. `LoRAAdapter`, `ModelAdapter` and PEFT read
    /// them.
    ///
    /// - Parameter folder: is made if it is not there. Each file is replaced in one step.
    /// - Throws: `.inputOutput`.
    public func writeAdapter(to folder: String) throws(SparseKernelsError) {
        do {
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        } catch {
            throw SparseKernelsError(
                .inputOutput, folder, expected: "a folder that can be made", actual: error.localizedDescription)
        }
        var writer = SafetensorsWriter(metadata: ["format": "pt"])
        for (place, factors) in adapters.factors.enumerated() {
            let name = ModelAdapter.prefix + adapters.layer(place)
            try writer.add(name + ".lora_A.weight", factors.a)
            try writer.add(name + ".lora_B.weight", factors.b)
        }
        try writer.write(to: folder + "/adapter_model.safetensors")
        let settings = AdapterSettings(
            baseModel: URL(fileURLWithPath: model.name).lastPathComponent, alpha: configuration.alpha, rank: configuration.rank,
            targets: adapters.targets.map(\.rawValue))
        let path = folder + "/adapter_config.json"
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        do {
            try (encoder.encode(settings) + Data("\n".utf8)).write(to: URL(fileURLWithPath: path), options: .atomic)
        } catch {
            throw SparseKernelsError(
                .inputOutput, path, expected: "a file that can be written", actual: error.localizedDescription)
        }
    }
}

/// The members of `adapter_config.json` that PEFT needs.
private struct AdapterSettings: Encodable {
    let baseModel: String
    let alpha: Double
    let rank: Int
    let targets: [String]

    private enum Key: String, CodingKey {
        case baseModel = "base_model_name_or_path"
        case bias
        case isTransposed = "fan_in_fan_out"
        case isForInference = "inference_mode"
        case initialisation = "init_lora_weights"
        case alpha = "lora_alpha"
        case dropout = "lora_dropout"
        case kind = "peft_type"
        case rank = "r"
        case targets = "target_modules"
        case task = "task_type"
        case hasMagnitudes = "use_dora"
        case isRankStabilized = "use_rslora"
    }

    func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(baseModel, forKey: .baseModel)
        try values.encode("none", forKey: .bias)
        try values.encode(true, forKey: .isForInference)
        try values.encode(true, forKey: .initialisation)
        try values.encode(alpha, forKey: .alpha)
        try values.encode(0, forKey: .dropout)
        try values.encode("LORA", forKey: .kind)
        try values.encode(rank, forKey: .rank)
        try values.encode(targets, forKey: .targets)
        try values.encode("CAUSAL_LM", forKey: .task)
        for key in [Key.isTransposed, .hasMagnitudes, .isRankStabilized] { try values.encode(false, forKey: key) }
    }
}

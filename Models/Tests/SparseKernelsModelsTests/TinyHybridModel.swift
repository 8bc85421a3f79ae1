import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference

/// A folder with a hybrid model of random weights in half precision: hidden size 24, Mamba-2 with 4 heads of 6 channels in 2 groups and
/// states of 10, attention with 4 query and 2 KV heads of 8 channels, 48 tokens. It is removed when the test ends.
final class TinyHybridModel {
    let folder = NSTemporaryDirectory() + "sparsekernels-hybrid-\(UUID().uuidString)"
    let pattern: String
    let limits: ClosedRange<Double>
    let hasBiases: Bool
    private(set) var weights: [String: Tensor<Float16>] = [:]
    static let (hidden, inner, heads, kvHeads, headDim, vocabulary) = (24, 40, 4, 2, 8, 48)
    static let (mambaHeads, mambaHeadDim, groups, state, width) = (4, 6, 2, 10, 4)
    static let (innerWidth, convolved) = (mambaHeads * mambaHeadDim, mambaHeads * mambaHeadDim + 2 * groups * state)
    static let standardPattern = "M*-M-*M-"

    /// - Parameters:
    ///   - limits: of the time steps.
    ///   - hasBiases: of all linear layers.
    init(
        _ pattern: String = standardPattern, limits: ClosedRange<Double> = 0...Double.infinity, hasBiases: Bool = false
    ) throws {
        (self.pattern, self.limits, self.hasBiases) = (pattern, limits, hasBiases)
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try write(configuration: [:])
        for (index, (name, shape)) in shapes.sorted(by: { $0.key < $1.key }).enumerated() {
            let isNorm = name.contains("norm")
            let values = try Tensor<Float>.normal(shape, seed: UInt64(index), scale: isNorm ? 0.2 : 0.4)
            weights[name] = try Tensor<Float>(shape) { values[flat: $0] + (isNorm ? 1 : 0) }.converted(to: Float16.self)
        }
        try write(Array(weights.keys))
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    static func load(_ linear: LinearFormat = .float16) throws -> LanguageModel {
        let tiny = try TinyHybridModel()
        return try withExtendedLifetime(tiny) { try LanguageModel(folder: tiny.folder, linear: linear) }
    }

    /// Writes `config.json` with some keys changed; nil leaves a key out.
    func write(configuration changes: [String: String?]) throws {
        let limit = limits.upperBound == .infinity ? #""inf""# : "\(limits.upperBound)"
        var fields: [String: String?] = [
            "model_type": #""nemotron_h""#, "vocab_size": "48", "hidden_size": "24", "intermediate_size": "40",
            "num_hidden_layers": "\(pattern.count)", "hybrid_override_pattern": #""\#(pattern)""#, "num_attention_heads": "4",
            "num_key_value_heads": "2", "head_dim": "8", "mamba_num_heads": "4", "mamba_head_dim": "6", "n_groups": "2",
            "ssm_state_size": "10", "conv_kernel": "4", "expand": "2", "layer_norm_epsilon": "1e-5",
            "time_step_limit": "[\(limits.lowerBound), \(limit)]", "tie_word_embeddings": "false",
            "attention_bias": "\(hasBiases)", "mlp_bias": "\(hasBiases)", "use_bias": "\(hasBiases)",
        ]
        fields.merge(changes) { $1 }
        let text = fields.compactMap { key, value in value.map { "\"\(key)\": \($0)" } }.joined(separator: ", ")
        try Data("{\(text)}".utf8).write(to: URL(fileURLWithPath: folder + "/config.json"))
    }

    /// Multiplies a tensor of the file.
    func scale(_ name: String, by factor: Float) throws {
        let old = weights[name]!
        weights[name] = try Tensor<Float>(old.shape) { Float(old[flat: $0]) * factor }.converted(to: Float16.self)
        try write(Array(weights.keys))
    }

    func write(_ names: [String]) throws {
        var writer = SafetensorsWriter()
        for name in names.sorted() { try writer.add(name, weights[name]!) }
        try writer.write(to: folder + "/model.safetensors")
    }

    var shapes: [String: [Int]] {
        let (hidden, queries, keys) = (Self.hidden, Self.heads * Self.headDim, Self.kvHeads * Self.headDim)
        var shapes = [
            "backbone.embeddings.weight": [Self.vocabulary, hidden], "backbone.norm_f.weight": [hidden],
            "lm_head.weight": [Self.vocabulary, hidden],
        ]
        for (layer, letter) in pattern.enumerated() {
            let prefix = "backbone.layers.\(layer)."
            shapes[prefix + "norm.weight"] = [hidden]
            func linear(_ name: String, _ outFeatures: Int, _ inFeatures: Int) {
                shapes["\(prefix)mixer.\(name).weight"] = [outFeatures, inFeatures]
                if hasBiases { shapes["\(prefix)mixer.\(name).bias"] = [outFeatures] }
            }
            switch letter {
            case "M":
                linear("in_proj", Self.innerWidth + Self.convolved + Self.mambaHeads, hidden)
                linear("out_proj", hidden, Self.innerWidth)
                shapes[prefix + "mixer.conv1d.weight"] = [Self.convolved, 1, Self.width]
                shapes[prefix + "mixer.conv1d.bias"] = [Self.convolved]
                for name in ["dt_bias", "A_log", "D"] { shapes["\(prefix)mixer.\(name)"] = [Self.mambaHeads] }
                shapes[prefix + "mixer.norm.weight"] = [Self.innerWidth]
            case "*":
                linear("q_proj", queries, hidden)
                linear("k_proj", keys, hidden)
                linear("v_proj", keys, hidden)
                linear("o_proj", hidden, queries)
            default:
                linear("up_proj", Self.inner, hidden)
                linear("down_proj", hidden, Self.inner)
            }
        }
        return shapes
    }
}

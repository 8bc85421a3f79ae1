import Foundation
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference

/// What a tiny model has beyond the plain Llama architecture.
struct TinyOptions: Sendable, CustomStringConvertible {
    var name = "llama"
    var type = "llama"
    var qkvBias = false
    var outputBias = false
    var mlpBias = false
    var normalizesHeads = false
    var isTied = true
    var rotated = 8
    /// The text of `rope_scaling`, and the same rule for the oracle.
    var scaling: (json: String, frequencies: ReferenceRotary)?
    var softCap: Double?
    var logitCap: Double?
    var windows: [Int?] = [nil, nil, nil]
    var hasSinks = false
    var activation = "silu"
    /// Gemma's norms, scale of embeddings and scale of scores.
    var isGemma = false
    var isCausal = true
    /// Whether angles depend on the length of the sequence, so that steps differ from prompts.
    var dependsOnLength = false
    var configuration: [String] = []

    var description: String { name }

    static let plain = TinyOptions()

    /// Every option of an architecture, alone and as the architectures have them.
    static let all: [TinyOptions] = {
        func option(_ name: String, _ change: (inout TinyOptions) -> Void) -> TinyOptions {
            var options = TinyOptions()
            options.name = name
            change(&options)
            return options
        }
        return [
            plain,
            option("attention and MLP bias") {
                $0.qkvBias = true
                $0.outputBias = true
                $0.mlpBias = true
                $0.configuration = [#""attention_bias": true"#, #""mlp_bias": true"#]
            },
            option("separate projection") { $0.isTied = false },
            option("partial rotation") {
                $0.rotated = 4
                $0.configuration = [#""partial_rotary_factor": 0.5"#]
            },
            option("sinks") { $0.hasSinks = true },
            option("mistral") {
                $0.type = "mistral"
                $0.windows = [6, 6, 6]
                $0.configuration = [#""sliding_window": 6"#]
            },
            option("qwen2") {
                $0.type = "qwen2"
                $0.qkvBias = true
            },
            option("qwen2 with windows") {
                $0.type = "qwen2"
                $0.qkvBias = true
                $0.windows = [nil, nil, 4]
                $0.configuration = [#""use_sliding_window": true"#, #""sliding_window": 4"#, #""max_window_layers": 2"#]
            },
            option("qwen3") {
                $0.type = "qwen3"
                $0.normalizesHeads = true
                $0.isTied = false
            },
            option("gemma2") {
                $0.type = "gemma2"
                $0.isGemma = true
                $0.softCap = 2
                $0.logitCap = 5
                $0.windows = [7, nil, 7]
                $0.activation = "gelu_pytorch_tanh"
                $0.configuration = [
                    #""sliding_window": 7"#, #""attn_logit_softcapping": 2.0"#, #""final_logit_softcapping": 5.0"#,
                    #""query_pre_attn_scalar": 12"#,
                ]
            },
            option("layer types, GELU") {
                $0.windows = [nil, 3, nil]
                $0.activation = "gelu"
                $0.configuration = [
                    #""layer_types": ["full_attention", "sliding_attention", "full_attention"]"#, #""sliding_window": 3"#,
                ]
            },
            option("linear scaling") {
                $0.scaling = (
                    #"{"type": "linear", "factor": 3.0}"#,
                    ReferenceRotary { pairs, _ in (0..<pairs).map { pow(100, -Double($0) / Double(pairs)) / 3 } }
                )
            },
            option("dynamic scaling, beyond the length of training") {
                $0.scaling = (
                    #"{"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}"#,
                    ReferenceRotary { pairs, length in
                        // NTK-aware interpolation: the base grows so that the slowest pair is interpolated by the excess.
                        let base = 100 * pow(2 * Double(length) / 16 - 1, Double(2 * pairs) / Double(2 * pairs - 2))
                        return (0..<pairs).map { pow(base, -2 * Double($0) / Double(2 * pairs)) }
                    }
                )
                $0.dependsOnLength = true
            },
            option("YaRN") {
                // Pairs turn 64 · θ^(−i/4) / 2π times in training: 10.2, 3.2, 1.02 and 0.32.
                $0.scaling = (
                    #"{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8}"#,
                    ReferenceRotary(
                        frequencies: { pairs, _ in
                            func pair(_ turns: Double) -> Double { 8 * log(64 / (turns * 2 * Double.pi)) / (2 * log(100)) }
                            let (low, high) = (pair(8).rounded(.down), pair(1).rounded(.up))
                            return (0..<pairs).map { i in
                                let part = min(max((Double(i) - low) / (high - low), 0), 1)
                                let frequency = pow(100, -Double(i) / Double(pairs))
                                return frequency * (1 - part) + frequency / 4 * part
                            }
                        }, factor: 0.1 * log(4) + 1)
                )
            },
            option("Llama 3 scaling") {
                $0.scaling = (
                    #"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "#
                        + #""original_max_position_embeddings": 64}"#,
                    ReferenceRotary { pairs, _ in
                        (0..<pairs).map { i in
                            let frequency = pow(100, -Double(i) / Double(pairs))
                            let wavelength = 2 * Double.pi / frequency
                            if wavelength < 64 / 4 { return frequency }
                            if wavelength > 64 / 1 { return frequency / 8 }
                            let smooth = (64 / wavelength - 1) / (4 - 1)
                            return (1 - smooth) * frequency / 8 + smooth * frequency
                        }
                    }
                )
            },
            option("squared ReLU") { $0.activation = "relu2" },
            option("bidirectional") {
                $0.isCausal = false
                $0.configuration = [#""is_causal": false"#]
            },
        ]
    }()
}

/// A folder with a language model of three layers and random weights in half precision: hidden size 24, 4 query and 2 KV heads of
/// 8 channels, 48 tokens. It is removed when the test ends.
final class TinyLanguageModel {
    let folder = NSTemporaryDirectory() + "sparsekernels-language-\(UUID().uuidString)"
    let options: TinyOptions
    private(set) var weights: [String: Tensor<Float16>] = [:]
    static let (hidden, inner, heads, kvHeads, headDim, layers, vocabulary) = (24, 40, 4, 2, 8, 3, 48)

    init(_ options: TinyOptions = .plain) throws {
        self.options = options
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try write(configuration: configuration)
        for (index, (name, shape)) in Self.shapes(options).sorted(by: { $0.key < $1.key }).enumerated() {
            let isNorm = name.contains("norm")
            let values = try Tensor<Float>.normal(shape, seed: UInt64(index), scale: isNorm ? 0.2 : 0.4)
            // The weights of norms are about 1, or about 0 where they add to 1.
            weights[name] = try Tensor<Float>(shape) { values[flat: $0] + (isNorm && !options.isGemma ? 1 : 0) }
                .converted(to: Float16.self)
        }
        try write(Array(weights.keys), to: "model.safetensors")
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// A model, loaded.
    static func load(_ options: TinyOptions = .plain, linear: LinearFormat = .float16) throws -> LanguageModel {
        let tiny = try TinyLanguageModel(options)
        return try withExtendedLifetime(tiny) { try LanguageModel(folder: tiny.folder, linear: linear) }
    }

    private var configuration: String {
        var fields = [
            #""model_type": "\#(options.type)""#, #""vocab_size": 48"#, #""hidden_size": 24"#, #""intermediate_size": 40"#,
            #""num_hidden_layers": 3"#, #""num_attention_heads": 4"#, #""num_key_value_heads": 2"#, #""head_dim": 8"#,
            #""rope_theta": 100.0"#, #""rms_norm_eps": 1e-5"#, #""tie_word_embeddings": \#(options.isTied)"#,
            #""hidden_act": "\#(options.activation)""#, #""max_position_embeddings": 64"#,
        ]
        if let scaling = options.scaling { fields.append(#""rope_scaling": \#(scaling.json)"#) }
        return "{\((fields + options.configuration).joined(separator: ", "))}"
    }

    static func shapes(_ o: TinyOptions) -> [String: [Int]] {
        let (queries, keys) = (heads * headDim, kvHeads * headDim)
        var shapes = ["model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]]
        if !o.isTied { shapes["lm_head.weight"] = [vocabulary, hidden] }
        for layer in 0..<layers {
            let prefix = "model.layers.\(layer)."
            func linear(_ name: String, _ out: Int, _ inFeatures: Int, bias: Bool) {
                shapes["\(prefix)\(name).weight"] = [out, inFeatures]
                if bias { shapes["\(prefix)\(name).bias"] = [out] }
            }
            linear("self_attn.q_proj", queries, hidden, bias: o.qkvBias)
            linear("self_attn.k_proj", keys, hidden, bias: o.qkvBias)
            linear("self_attn.v_proj", keys, hidden, bias: o.qkvBias)
            linear("self_attn.o_proj", hidden, queries, bias: o.outputBias)
            linear("mlp.gate_proj", inner, hidden, bias: o.mlpBias)
            linear("mlp.up_proj", inner, hidden, bias: o.mlpBias)
            linear("mlp.down_proj", hidden, inner, bias: o.mlpBias)
            var norms = ["input_layernorm", "post_attention_layernorm"]
            if o.isGemma { norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] }
            for norm in norms { shapes["\(prefix)\(norm).weight"] = [hidden] }
            if o.normalizesHeads {
                for norm in ["q_norm", "k_norm"] { shapes["\(prefix)self_attn.\(norm).weight"] = [headDim] }
            }
            if o.hasSinks { shapes["\(prefix)self_attn.sinks"] = [heads] }
        }
        return shapes
    }

    /// Replaces the text of `config.json`.
    func write(configuration: String) throws { try write(text: configuration, to: "config.json") }

    func write(text: String, to name: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: "\(folder)/\(name)"))
    }

    /// Writes some of the weights to a file of the folder.
    func write(_ names: [String], to file: String) throws {
        var writer = SafetensorsWriter()
        for name in names.sorted() { try writer.add(name, weights[name]!) }
        try writer.write(to: "\(folder)/\(file)")
    }

    /// Puts two parts and an index in the place of the single file.
    func shard() throws {
        try FileManager.default.removeItem(atPath: folder + "/model.safetensors")
        let names = weights.keys.sorted()
        let parts = [Array(names[..<9]), Array(names[9...])]
        var entries: [String] = []
        for (index, part) in parts.enumerated() {
            let file = "model-0000\(index + 1)-of-00002.safetensors"
            try write(part, to: file)
            entries += part.map { #""\#($0)": "\#(file)""# }
        }
        try write(index: entries)
    }

    func write(index entries: [String]) throws {
        let text = #"{"metadata": {"total_size": 1}, "weight_map": {\#(entries.joined(separator: ", "))}}"#
        try write(text: text, to: "model.safetensors.index.json")
    }
}

import SparseKernels

/// How the keys of `config.json` are read.
extension LanguageModelConfiguration {
    static func architecture(_ file: ConfigurationFile) throws(SparseKernelsError) -> Architecture {
        guard let type = try file.text("model_type") else { return .llama }
        guard let architecture = Architecture(rawValue: type) else {
            let known = Architecture.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
            throw file.failure("model_type", expected: "one of \(known)", actual: "\"\(type.prefix(40))\"")
        }
        return architecture
    }

    static func activation(
        _ file: ConfigurationFile, isGemma: Bool
    ) throws(SparseKernelsError) -> GatedActivation.Function {
        let key = isGemma && file.has("hidden_activation") ? "hidden_activation" : "hidden_act"
        return try activation(file, key: key, default: isGemma ? "gelu_pytorch_tanh" : "silu")
    }

    static func activation(
        _ file: ConfigurationFile, key: String, default standard: String
    ) throws(SparseKernelsError) -> GatedActivation.Function {
        switch try file.text(key) ?? standard {
        case "silu", "swish": return .silu
        case "gelu": return .gelu
        case "gelu_pytorch_tanh", "gelu_new", "gelu_fast": return .geluTanh
        case "relu": return .relu
        case "relu2": return .reluSquared
        case let other:
            throw file.failure(
                key, expected: "\"silu\", \"gelu\", \"gelu_pytorch_tanh\", \"relu\" or \"relu2\"",
                actual: "\"\(other.prefix(40))\"")
        }
    }

    static func kvHeads(
        _ file: ConfigurationFile, of queryHeads: Int, default standard: Int
    ) throws(SparseKernelsError) -> Int {
        let kvHeads = try file.integer("num_key_value_heads", default: standard)
        guard queryHeads.isMultiple(of: kvHeads) else {
            throw file.failure(
                "num_key_value_heads", expected: "a divisor of num_attention_heads (\(queryHeads))", actual: "\(kvHeads)")
        }
        return kvHeads
    }

    // MARK: - Windows

    /// The windows of the layers: by `layer_types` where the file has it, else by the rule of the architecture.
    static func slidingWindows(
        _ file: ConfigurationFile, _ architecture: Architecture, layers: Int
    ) throws(SparseKernelsError) -> [Int?] {
        let standard: Int? = architecture == .gemma2 || architecture == .mistral ? 4096 : nil
        var window = file.contains("sliding_window") ? nil : standard
        if file.has("sliding_window") { window = try file.integer("sliding_window", in: 1...1 << 40) }
        if architecture == .qwen2 || architecture == .qwen3, try file.flag("use_sliding_window") != true { window = nil }
        if file.has("layer_types") {
            let types = try file.texts("layer_types")
            guard types.count == layers else {
                throw file.failure("layer_types", expected: "\(layers) texts, one per layer", actual: "\(types.count)")
            }
            var windows: [Int?] = []
            for type in types {
                switch type {
                case "full_attention": windows.append(nil)
                case "sliding_attention":
                    guard let window else {
                        throw file.failure(
                            "sliding_window", expected: "there, as layer_types names such layers", actual: "none")
                    }
                    windows.append(window)
                default:
                    throw file.failure(
                        "layer_types", expected: "\"full_attention\" or \"sliding_attention\"", actual: "\"\(type.prefix(40))\""
                    )
                }
            }
            return windows
        }
        switch architecture {
        case .gemma2: return (0..<layers).map { $0.isMultiple(of: 2) ? window : nil }
        case .qwen2, .qwen3:
            // The first layers see everything.
            let first = window == nil ? layers : try file.integer("max_window_layers", in: 0...4096, default: 28)
            return (0..<layers).map { $0 < first ? nil : window }
        case .mistral: return Array(repeating: window, count: layers)
        case .llama, .nemotronH: return Array(repeating: nil, count: layers)
        }
    }

    // MARK: - Rotation

    static func rotary(_ file: ConfigurationFile, headDim: Int) throws(SparseKernelsError) -> RotaryEmbedding {
        // Newer files keep the parameters of the rotation together.
        let newer = try file.object("rope_parameters")
        let theta =
            if let newer, newer.has("rope_theta") { try newer.positive("rope_theta") } else {
                try file.positive("rope_theta", default: 10_000)
            }
        let scaling = try Self.scaling(file, newer)
        let holder = newer.flatMap { $0.has("partial_rotary_factor") ? $0 : nil } ?? file
        let part = try holder.positive("partial_rotary_factor", default: 1)
        let rotated = Int(Double(headDim) * part)
        guard part <= 1, rotated >= 2, rotated.isMultiple(of: 2) else {
            throw holder.failure(
                part == 1 ? "head_dim" : "partial_rotary_factor", expected: "even, for the rotation of pairs",
                actual: part == 1 ? "\(headDim)" : "\(part), for \(rotated) of \(headDim) channels")
        }
        guard theta > 1 else {
            throw (newer?.has("rope_theta") == true ? newer! : file).failure(
                "rope_theta", expected: "a number above 1", actual: "\(theta)")
        }
        if case .dynamicNTK = scaling, rotated == 2 {
            throw file.failure("head_dim", expected: "more than 2 rotated channels for dynamic scaling", actual: "2")
        }
        return try RotaryEmbedding(headDim: headDim, rotatedChannels: rotated, theta: theta, scaling: scaling)
    }

    /// The rule by which frequencies are scaled for long contexts, of `rope_scaling` or, in newer files, `rope_parameters`.
    private static func scaling(
        _ file: ConfigurationFile, _ newer: ConfigurationFile?
    ) throws(SparseKernelsError) -> RotaryEmbedding.Scaling {
        for scaling in [try file.object("rope_scaling"), newer].compactMap({ $0 }) {
            let key = scaling.has("rope_type") ? "rope_type" : "type"
            let type = try scaling.text(key) ?? "default"
            if type == "default" { continue }
            guard ["linear", "dynamic", "yarn", "llama3"].contains(type) else {
                throw scaling.failure(
                    key, expected: "\"default\", \"linear\", \"dynamic\", \"yarn\" or \"llama3\"",
                    actual: "\"\(type.prefix(40))\"")
            }
            let factor = try scaling.positive("factor")
            guard factor >= 1 else { throw scaling.failure("factor", expected: "1 or more", actual: "\(factor)") }
            if type == "linear" { return .linear(factor: factor) }
            // The length that the model was trained for; files of most models have it as the longest context.
            let longest =
                file.has("max_position_embeddings") ? try file.integer("max_position_embeddings", in: 1...1 << 40) : nil
            let original = try scaling.integer("original_max_position_embeddings", in: 1...1 << 40, default: longest)
            switch type {
            case "dynamic": return .dynamicNTK(factor: factor, originalLength: original)
            case "llama3":
                let (low, high) = (try scaling.positive("low_freq_factor"), try scaling.positive("high_freq_factor"))
                guard low < high else {
                    throw scaling.failure("high_freq_factor", expected: "above low_freq_factor (\(low))", actual: "\(high)")
                }
                return .llama3(factor: factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalLength: original)
            default:
                var yarn = RotaryEmbedding.YaRN(factor: factor, originalLength: original)
                yarn.betaFast = try scaling.positive("beta_fast", default: yarn.betaFast)
                yarn.betaSlow = try scaling.positive("beta_slow", default: yarn.betaSlow)
                if scaling.has("attention_factor") { yarn.attentionFactor = try scaling.positive("attention_factor") }
                if scaling.has("mscale") { yarn.mscale = try scaling.positive("mscale", orZero: true) }
                if scaling.has("mscale_all_dim") { yarn.mscaleAllDim = try scaling.positive("mscale_all_dim", orZero: true) }
                yarn.truncates = try scaling.flag("truncate") ?? true
                return .yarn(yarn)
            }
        }
        return .none
    }

    // MARK: - Other arithmetic

    /// Throws for keys that change the arithmetic in ways that are not implemented.
    static func refuseOthers(_ file: ConfigurationFile) throws(SparseKernelsError) {
        for key in ["num_local_experts", "num_experts", "n_routed_experts"] where file.has(key) {
            guard try file.integer(key, in: 0...1 << 20) <= 1 else {
                throw file.failure(key, expected: "absent: mixtures of experts are not supported", actual: "more than one")
            }
        }
        try refuseFactors(file)
        if try file.flag("use_bidirectional_attention") == true {
            throw file.failure("use_bidirectional_attention", expected: "false: is_causal says this here", actual: "true")
        }
    }

    static func refuseFactors(_ file: ConfigurationFile) throws(SparseKernelsError) {
        for key in ["residual_multiplier", "embedding_multiplier", "logits_scaling", "logit_scale"] where file.has(key) {
            let factor = try file.positive(key)
            guard factor == 1 else {
                throw file.failure(key, expected: "1: such factors are not supported", actual: "\(factor)")
            }
        }
        for key in ["attention_multiplier", "no_rope_layers", "quantization_config"] where file.has(key) {
            throw file.failure(key, expected: "absent: it is not supported", actual: "a value")
        }
    }
}

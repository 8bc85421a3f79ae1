import Foundation
import NemotronH
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("config.json of hybrid models")
struct HybridConfigurationTests {
    private func read(_ changes: [String: String?] = [:], pattern: String = "M*-") throws -> LanguageModelConfiguration {
        let tiny = try TinyHybridModel(pattern)
        try tiny.write(configuration: changes)
        return try withExtendedLifetime(tiny) { try LanguageModelConfiguration(path: tiny.folder + "/config.json") }
    }

    private func expectError(_ key: String, _ fragments: String..., changes: [String: String?]) {
        let error = #expect(throws: SparseKernelsError.self) { try read(changes) }
        #expect(error?.code == .malformedFile && error?.argument.hasSuffix("key \"\(key)\"") == true, "\(error!)")
        for fragment in fragments { #expect(error!.description.contains(fragment), "\(error!)") }
        #expect(!error!.description.contains("\n") && error!.description.count < 300)
    }

    @Test("sizes are those of the file, and what it leaves out has the defaults of the library that writes it")
    func sizes() throws {
        let tiny = try read()
        #expect(tiny.architecture == .nemotronH && tiny.pattern?.description == "M*-" && tiny.layers == 3)
        #expect(tiny.attentionLayers == 1 && tiny.recurrentLayers == 1 && tiny.slidingWindows == [nil])
        #expect(tiny.rotary == nil && tiny.ropeTheta == nil && !tiny.gatesMLP && tiny.activation == .reluSquared)
        #expect(tiny.tiesWordEmbeddings == false && tiny.rmsNormEpsilon == 1e-5 && tiny.hasConvolutionBias)
        let mamba2 = try #require(tiny.mamba2)
        #expect(mamba2.heads == 4 && mamba2.headDim == 6 && mamba2.groups == 2 && mamba2.stateSize == 10)
        #expect(mamba2.innerWidth == 24 && mamba2.timeStepLimits == 0...Float.infinity && mamba2.epsilon == 1e-5)
        let silent = try read([
            "num_hidden_layers": nil, "mamba_head_dim": nil, "n_groups": nil, "mamba_num_heads": "16", "ssm_state_size": nil,
            "conv_kernel": nil, "time_step_limit": nil, "layer_norm_epsilon": nil, "head_dim": nil, "num_key_value_heads": nil,
            "num_attention_heads": "16", "tie_word_embeddings": nil, "use_bias": nil,
        ])
        #expect(silent.headDim == 128 && silent.kvHeads == 8 && silent.rmsNormEpsilon == 1e-5)
        #expect(
            try silent.mamba2 == Mamba2Configuration(heads: 16, headDim: 64, groups: 8, stateSize: 128) && silent.layers == 3)
        let others = try read(["rms_norm_eps": "1e-3", "layer_norm_epsilon": nil, "attention_head_dim": "12", "head_dim": nil])
        #expect(others.rmsNormEpsilon == 1e-3 && others.headDim == 12)
        let llama = try TinyLanguageModel.load().configuration
        #expect(llama.pattern == nil && llama.attentionLayers == 3 && llama.recurrentLayers == 0 && llama.gatesMLP)
    }

    @Test(
        "an infinite limit is a text or what Python writes",
        arguments: ["\"inf\"", "Infinity", "\"Infinity\"", "0.5", " Infinity "])
    func limits(_ upper: String) throws {
        let read = try read([
            "time_step_limit": "[0.0, \(upper)]", "comment": #""Infinity \" NaN""#, "unused": "[NaN, -Infinity]",
        ])
        #expect(read.mamba2?.timeStepLimits == 0...(upper == "0.5" ? 0.5 : .infinity))
    }

    @Test("layers may be named by words instead of letters")
    func words() throws {
        let read = try read([
            "hybrid_override_pattern": nil, "layers_block_type": #"["mamba", "attention", "mlp"]"#,
        ])
        #expect(read.pattern?.description == "M*-")
    }

    @Test("what no such model can have, or asks for other arithmetic, is named by its key")
    func refusals() {
        expectError("hybrid_override_pattern", "no such key", changes: ["hybrid_override_pattern": nil])
        expectError("hybrid_override_pattern", "mixture of experts", "[2]", changes: ["hybrid_override_pattern": #""M*E""#])
        expectError("hybrid_override_pattern", "3 layers", "got 2", changes: ["hybrid_override_pattern": #""M*""#])
        expectError("hybrid_override_pattern", "attention", changes: ["hybrid_override_pattern": #""M--""#])
        expectError(
            "layers_block_type", "\"moe\"",
            changes: ["hybrid_override_pattern": nil, "layers_block_type": #"["mamba", "moe", "mlp"]"#])
        expectError("n_groups", "a divisor of mamba_num_heads (4)", "got 3", changes: ["n_groups": "3"])
        expectError("conv_kernel", "2 to 4", changes: ["conv_kernel": "5"])
        expectError("ssm_state_size", "256", changes: ["ssm_state_size": "257"])
        expectError("mamba_num_heads", "no such key", changes: ["mamba_num_heads": nil])
        expectError("mamba_hidden_act", "\"silu\"", changes: ["mamba_hidden_act": #""gelu""#])
        expectError("mlp_hidden_act", "\"relu2\"", changes: ["mlp_hidden_act": #""elu""#])
        expectError("sliding_window", "absent", changes: ["sliding_window": "128"])
        expectError("rope_scaling", "absent", changes: ["rope_scaling": #"{"type": "linear"}"#])
        expectError("is_causal", "absent", changes: ["is_causal": "false"])
        expectError("residual_multiplier", "1", changes: ["residual_multiplier": "0.5"])
        expectError("quantization_config", "absent", changes: ["quantization_config": "{}"])
        for limit in ["[0.1]", "[0.5, 0.1]", "[-1, 1]", "[\"inf\", \"inf\"]", "[0, \"big\"]", "[NaN, 1]", "3", "[0, NaN]"] {
            expectError("time_step_limit", changes: ["time_step_limit": limit])
        }
        expectError("layer_norm_epsilon", "0 or more", changes: ["layer_norm_epsilon": "Infinity"])
    }

    @Test("every tensor of the names of Hugging Face is needed, and has its shape")
    func tensors() throws {
        let tiny = try TinyHybridModel("M*-", hasBiases: true)
        for name in tiny.shapes.keys {
            try tiny.write(tiny.weights.keys.filter { $0 != name })
            let error = #expect(throws: SparseKernelsError.self) { try LanguageModel(folder: tiny.folder) }
            #expect(error?.code == .notFound && error?.description.contains(name) == true, "\(error!)")
        }
        try tiny.write(Array(tiny.weights.keys))
        for (key, value, tensor) in [
            ("ssm_state_size", "11", "in_proj"), ("intermediate_size", "41", "up_proj"), ("head_dim", "6", "q_proj"),
            ("conv_kernel", "3", "conv1d.weight"),
        ] {
            try tiny.write(configuration: [key: value])
            let error = #expect(throws: SparseKernelsError.self) { try LanguageModel(folder: tiny.folder) }
            #expect(error?.code == .invalidShape && error?.argument.contains(tensor) == true, "\(error!)")
        }
    }
}

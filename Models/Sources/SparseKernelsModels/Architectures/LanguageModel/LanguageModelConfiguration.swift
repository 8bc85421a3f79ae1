public import NemotronH
public import SparseKernels

/// The sizes and the arithmetic of a language model, from the `config.json` of a Hugging Face checkpoint.
///
/// The architectures are those of `model_type`: `llama`, `mistral`, `qwen2`, `qwen3`, `gemma2` and `nemotron_h`; without the key, `llama`. Keys
/// that a checkpoint may omit have the defaults of the library that writes these files. Keys that request arithmetic which is not
/// done here are errors, because the result would be that of another model.
public struct LanguageModelConfiguration: Hashable, Sendable {
    /// The architectures whose files are read, by their `model_type`.
    public enum Architecture: String, Hashable, Sendable, CaseIterable {
        case llama
        case mistral
        case qwen2
        case qwen3
        case gemma2
        case nemotronH = "nemotron_h"
    }

    /// Where the norms of a block stand.
    public enum NormPlacement: Hashable, Sendable {
        /// Before attention and before the MLP.
        case before
        /// Before and after both, as in Gemma 2.
        case beforeAndAfter
    }

    public let architecture: Architecture
    public let vocabularySize: Int
    public let hiddenSize: Int
    public let intermediateSize: Int
    /// Layers as the file counts them: blocks of attention and an MLP, or those of `pattern`.
    public let layers: Int
    /// The mixers of the layers of a hybrid model; nil for blocks of attention and an MLP.
    public let pattern: HybridPattern?
    /// The sizes of recurrent layers; nil in models without.
    public let mamba2: Mamba2Configuration?
    public let queryHeads: Int
    /// `queryHeads` unless the file says otherwise.
    public let kvHeads: Int
    /// `hiddenSize / queryHeads` unless the file says otherwise.
    public let headDim: Int
    /// The longest context that the model was made for; nil if the file does not say. Longer ones are not refused.
    public let contextLength: Int?
    /// False for models that see the tokens after a position as well, such as masked-diffusion ones.
    public let isCausal: Bool
    /// The token of a position that is not filled yet, in masked-diffusion models; nil if the file does not say.
    public let maskToken: Int?
    /// The rotation of queries and keys; nil in models without an encoding of positions.
    public let rotary: RotaryEmbedding?
    /// The base of the rotation's frequencies, 10000 unless the file says otherwise; nil without a rotation.
    public var ropeTheta: Double? { rotary?.theta }
    /// The ε of RMSNorm, 10⁻⁶ unless the file says otherwise.
    public let rmsNormEpsilon: Float
    /// Whether norms multiply by 1 + weight.
    public let normAddsOne: Bool
    public let normPlacement: NormPlacement
    /// Whether queries and keys are normalised head by head before the rotation.
    public let normalizesQueriesAndKeys: Bool
    /// Whether the projections of queries, keys and values have biases.
    public let hasQKVBias: Bool
    /// Whether the output projection of attention has a bias.
    public let hasOutputBias: Bool
    /// Whether the linear layers of the MLP have biases.
    public let hasMLPBias: Bool
    /// Whether the projections of recurrent layers have biases.
    public let hasRecurrenceBias: Bool
    /// Whether the convolution of recurrent layers has a bias.
    public let hasConvolutionBias: Bool
    /// Whether the MLP is down(f(gate) · up), and not down(f(up)).
    public let gatesMLP: Bool
    /// The function of the gate in the MLP, or of all of it without a gate.
    public let activation: GatedActivation.Function
    /// Factor on q·k.
    public let softmaxScale: Float
    /// c in c·tanh(score / c); nil is none.
    public let attentionSoftCap: Float?
    /// c in c·tanh(logit / c); nil is none.
    public let logitSoftCap: Float?
    /// Factor on the embeddings of the tokens.
    public let embeddingScale: Float
    /// For every layer with attention, the number of tokens up to its own that a query sees; nil in layers that see all of them.
    public let slidingWindows: [Int?]
    /// Whether the output projection is the embedding; nil if the file does not say. The default is no, but a checkpoint
    /// without a tensor for the projection must mean yes.
    public let tiesWordEmbeddings: Bool?

    /// How many layers have attention, and keys and values to cache.
    public var attentionLayers: Int { pattern?.count(of: .attention) ?? layers }
    /// How many layers have a recurrence, and a state per sequence.
    public var recurrentLayers: Int { pattern?.count(of: .mamba2) ?? 0 }

    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, naming the key, when a size is missing or
    ///   impossible, or the file requests something that `LanguageModel` does not do.
    public init(path: String) throws(SparseKernelsError) {
        let file = try ConfigurationFile(path: path)
        switch try Self.architecture(file) {
        case .nemotronH: try self.init(hybrid: file)
        case let architecture: try self.init(file, architecture)
        }
    }

    /// A model of blocks of attention and an MLP.
    private init(_ file: ConfigurationFile, _ architecture: Architecture) throws(SparseKernelsError) {
        self.architecture = architecture
        (pattern, mamba2, gatesMLP, hasRecurrenceBias, hasConvolutionBias) = (nil, nil, true, false, false)
        let isGemma = architecture == .gemma2
        vocabularySize = try file.integer("vocab_size")
        hiddenSize = try file.integer("hidden_size")
        intermediateSize = try file.integer("intermediate_size")
        layers = try file.integer("num_hidden_layers", in: 1...4096)
        queryHeads = try file.integer("num_attention_heads")
        kvHeads = try Self.kvHeads(file, of: queryHeads, default: architecture == .mistral ? 8 : queryHeads)
        let standardHeadDim: Int? =
            switch architecture {
            case .gemma2: 256
            case .qwen3: 128
            default: hiddenSize.isMultiple(of: queryHeads) ? hiddenSize / queryHeads : nil
            }
        guard file.has("head_dim") || standardHeadDim != nil else {
            throw file.failure(
                "head_dim",
                expected: "there, as hidden_size (\(hiddenSize)) is no multiple of num_attention_heads (\(queryHeads))",
                actual: "no such key")
        }
        headDim = try file.integer("head_dim", in: 1...AttentionShape.maximumHeadDim, default: standardHeadDim)
        contextLength = file.has("max_position_embeddings") ? try file.integer("max_position_embeddings", in: 1...1 << 40) : nil
        isCausal = try file.flag("is_causal") ?? true
        maskToken = file.has("mask_token_id") ? try file.integer("mask_token_id", in: 0...1 << 40) : nil
        rotary = try Self.rotary(file, headDim: headDim)
        rmsNormEpsilon = Float(try file.positive("rms_norm_eps", orZero: true, default: 1e-6))
        normAddsOne = isGemma
        normPlacement = isGemma ? .beforeAndAfter : .before
        normalizesQueriesAndKeys = architecture == .qwen3
        let attentionBias = try file.flag("attention_bias") ?? false
        hasQKVBias = attentionBias || architecture == .qwen2
        hasOutputBias = attentionBias
        hasMLPBias = try file.flag("mlp_bias") ?? false
        activation = try Self.activation(file, isGemma: isGemma)
        softmaxScale = Float(
            1 / (try file.positive("query_pre_attn_scalar", default: isGemma ? 256 : Double(headDim))).squareRoot())
        attentionSoftCap = try file.cap("attn_logit_softcapping", absent: isGemma ? 50 : nil)
        logitSoftCap = try file.cap("final_logit_softcapping", absent: isGemma ? 30 : nil)
        embeddingScale = isGemma ? Float(hiddenSize).squareRoot() : 1
        slidingWindows = try Self.slidingWindows(file, architecture, layers: layers)
        tiesWordEmbeddings = try file.flag("tie_word_embeddings") ?? (isGemma ? true : nil)
        try Self.refuseOthers(file)
    }
    /// The layers of a pattern, as `NemotronHConfig` names their sizes.
    private init(hybrid file: ConfigurationFile) throws(SparseKernelsError) {
        architecture = .nemotronH
        let pattern = try Self.pattern(file)
        self.pattern = pattern
        layers = pattern.layers.count
        vocabularySize = try file.integer("vocab_size")
        hiddenSize = try file.integer("hidden_size")
        intermediateSize = try file.integer("intermediate_size")
        queryHeads = try file.integer("num_attention_heads")
        kvHeads = try Self.kvHeads(file, of: queryHeads, default: 8)
        let headKey = file.has("attention_head_dim") && !file.has("head_dim") ? "attention_head_dim" : "head_dim"
        headDim = try file.integer(headKey, in: 1...AttentionShape.maximumHeadDim, default: 128)
        contextLength = file.has("max_position_embeddings") ? try file.integer("max_position_embeddings", in: 1...1 << 40) : nil
        (isCausal, maskToken, rotary) = (true, nil, nil)
        let standard = file.has("rms_norm_eps") ? try file.positive("rms_norm_eps", orZero: true) : 1e-5
        rmsNormEpsilon = Float(try file.positive("layer_norm_epsilon", orZero: true, default: standard))
        (normAddsOne, normPlacement, normalizesQueriesAndKeys) = (false, .before, false)
        let attentionBias = try file.flag("attention_bias") ?? false
        (hasQKVBias, hasOutputBias) = (attentionBias, attentionBias)
        hasMLPBias = try file.flag("mlp_bias") ?? false
        hasConvolutionBias = try file.flag("use_conv_bias") ?? true
        let (all, own) = (try file.flag("use_bias") ?? false, try file.flag("mamba_proj_bias") ?? false)
        hasRecurrenceBias = all || own
        gatesMLP = false
        activation = try Self.activation(file, key: "mlp_hidden_act", default: "relu2")
        softmaxScale = Float(1 / Double(headDim).squareRoot())
        (attentionSoftCap, logitSoftCap, embeddingScale) = (nil, nil, 1)
        slidingWindows = Array(repeating: nil, count: pattern.count(of: .attention))
        tiesWordEmbeddings = try file.flag("tie_word_embeddings") ?? false
        mamba2 = pattern.count(of: .mamba2) > 0 ? try Self.mamba2(file, epsilon: rmsNormEpsilon) : nil
        try Self.refuseOthersOfHybrids(file)
    }
}

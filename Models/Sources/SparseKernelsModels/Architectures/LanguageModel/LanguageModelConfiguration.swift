public import SparseKernels

/// The sizes and the arithmetic of a language model, from the `config.json` of a Hugging Face checkpoint.
///
/// The architectures are those of `model_type`: `llama`, `mistral`, `qwen2`, `qwen3` and `gemma2`; without the key, `llama`. Keys
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
    public let layers: Int
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
    /// The rotation of queries and keys.
    public let rotary: RotaryEmbedding
    /// The base of the rotation's frequencies, 10000 unless the file says otherwise.
    public var ropeTheta: Double { rotary.theta }
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
    /// The function of the gate in the MLP.
    public let activation: GatedActivation.Function
    /// Factor on q·k.
    public let softmaxScale: Float
    /// c in c·tanh(score / c); nil is none.
    public let attentionSoftCap: Float?
    /// c in c·tanh(logit / c); nil is none.
    public let logitSoftCap: Float?
    /// Factor on the embeddings of the tokens.
    public let embeddingScale: Float
    /// For every layer, the number of tokens up to its own that a query sees; nil in layers that see all of them.
    public let slidingWindows: [Int?]
    /// Whether the output projection is the embedding; nil if the file does not say. The default is no, but a checkpoint
    /// without a tensor for the projection must mean yes.
    public let tiesWordEmbeddings: Bool?

    /// - Throws: `.inputOutput` when the file cannot be read; `.malformedFile`, naming the key, when a size is missing or
    ///   impossible, or the file requests something that `LanguageModel` does not do.
    public init(path: String) throws(SparseKernelsError) {
        let file = try ConfigurationFile(path: path)
        let architecture = try Self.architecture(file)
        self.architecture = architecture
        let isGemma = architecture == .gemma2
        vocabularySize = try file.integer("vocab_size")
        hiddenSize = try file.integer("hidden_size")
        intermediateSize = try file.integer("intermediate_size")
        layers = try file.integer("num_hidden_layers", in: 1...4096)
        queryHeads = try file.integer("num_attention_heads")
        kvHeads = try file.integer("num_key_value_heads", default: architecture == .mistral ? 8 : queryHeads)
        guard queryHeads.isMultiple(of: kvHeads) else {
            throw file.failure(
                "num_key_value_heads", expected: "a divisor of num_attention_heads (\(queryHeads))", actual: "\(kvHeads)")
        }
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
}

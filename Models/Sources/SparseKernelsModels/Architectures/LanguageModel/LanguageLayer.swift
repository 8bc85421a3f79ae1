import CATS
import NemotronH
import SparseKernels

/// A layer of a model: a norm, something that mixes tokens or channels, and the residual stream that this is added to.
///
/// A block of a transformer is two of them, attention and an MLP; a hybrid model has one mixer per layer of its file.
struct LanguageLayer: Sendable {
    enum Mixer: Sendable {
        case attention(AttentionMixer)
        case mlp(MLPMixer)
        case cats(CATSMixer)
        case mamba2(RecurrentMixer)
    }

    let norm: RMSNorm
    let mixer: Mixer
    /// The norm of what the mixer adds, in models that have it.
    let after: RMSNorm?

    var byteCount: Int {
        switch mixer {
        case .attention(let mixer): mixer.qkv.byteCount + mixer.output.byteCount
        case .mlp(let mixer): mixer.up.byteCount + mixer.down.byteCount
        case .cats(let mixer): mixer.layer.byteCount
        case .mamba2(let mixer): mixer.input.byteCount + mixer.mixer.byteCount + mixer.output.byteCount
        }
    }

    /// Whether a token's result depends on other tokens.
    var mixesTokens: Bool {
        switch mixer {
        case .mlp, .cats: false
        case .attention, .mamba2: true
        }
    }
}

/// The weights of attention.
struct AttentionMixer: Sendable {
    /// Which of the layers with attention it is: that of the cache.
    let index: Int
    /// The names of the linear layers in the file, for observers.
    let qkvNames: [String]
    let outputName: String
    /// Query, key and value, side by side.
    let qkv: ModelLinear
    let output: ModelLinear
    let queryNorm: RMSNorm?
    let keyNorm: RMSNorm?
    /// A learned logit per query head that takes part in the softmax without a value, where the file has them.
    let sinks: [Float]?

    /// - Parameter prefix: of the projections' names.
    init(_ source: LayerSource, prefix: String, index: Int) throws(SparseKernelsError) {
        let c = source.configuration
        self.index = index
        qkvNames = ["q_proj", "k_proj", "v_proj"].map { prefix + $0 }
        outputName = prefix + "o_proj"
        let (queries, keys) = (c.queryHeads * c.headDim, c.kvHeads * c.headDim)
        qkv = try source.linear(
            zip(qkvNames, [queries, keys, keys]).map { ModelLinear.Layer(name: $0, outFeatures: $1) },
            inFeatures: c.hiddenSize, hasBias: c.hasQKVBias)
        output = try source.linear(
            [ModelLinear.Layer(name: outputName, outFeatures: c.hiddenSize)], inFeatures: queries, hasBias: c.hasOutputBias)
        queryNorm = c.normalizesQueriesAndKeys ? try source.norm(prefix + "q_norm", c.headDim) : nil
        keyNorm = c.normalizesQueriesAndKeys ? try source.norm(prefix + "k_norm", c.headDim) : nil
        let name = prefix + "sinks"
        sinks = source.files.has(name) ? try source.files.tensor(name, [c.queryHeads]).elements : nil
    }
}

/// The weights of an MLP, with a gate or without.
struct MLPMixer: Sendable {
    let upNames: [String]
    let downName: String
    /// Gate and up, side by side, or up alone.
    let up: ModelLinear
    let down: ModelLinear

    init(_ source: LayerSource, prefix: String) throws(SparseKernelsError) {
        let c = source.configuration
        upNames = (c.gatesMLP ? ["gate_proj", "up_proj"] : ["up_proj"]).map { prefix + $0 }
        downName = prefix + "down_proj"
        up = try source.linear(
            upNames.map { ModelLinear.Layer(name: $0, outFeatures: c.intermediateSize) }, inFeatures: c.hiddenSize,
            hasBias: c.hasMLPBias)
        down = try source.linear(
            [ModelLinear.Layer(name: downName, outFeatures: c.hiddenSize)], inFeatures: c.intermediateSize,
            hasBias: c.hasMLPBias)
    }
}

/// What the layers of a model are read from.
struct LayerSource {
    let configuration: LanguageModelConfiguration
    let files: ModelFiles
    var format: LinearFormat
    let rank: Int?
    let pool: WorkerPool
    /// The thresholds of the MLPs; nil for dense ones.
    var cats: [Float]?

    func norm(_ name: String, _ count: Int) throws(SparseKernelsError) -> RMSNorm {
        try RMSNorm(
            weight: files.tensor(name + ".weight", [count]), epsilon: configuration.rmsNormEpsilon,
            addsOne: configuration.normAddsOne)
    }

    func linear(
        _ layers: [ModelLinear.Layer], inFeatures: Int, hasBias: Bool
    ) throws(SparseKernelsError) -> ModelLinear {
        try ModelLinear(layers, inFeatures: inFeatures, hasBias: hasBias, in: files, format: format, rank: rank, on: pool)
    }

    /// The layers that the file has under a number: two for a block of a transformer, one in a hybrid model.
    func layers(_ number: Int) throws(SparseKernelsError) -> [LanguageLayer] {
        guard let pattern = configuration.pattern else { return try block(number) }
        let (prefix, index) = ("backbone.layers.\(number).", pattern.ordinal(of: number))
        let norm = try norm(prefix + "norm", configuration.hiddenSize)
        let mixer: LanguageLayer.Mixer
        switch pattern.layers[number] {
        case .attention: mixer = .attention(try AttentionMixer(self, prefix: prefix + "mixer.", index: index))
        case .mlp: mixer = try mlp(prefix: prefix + "mixer.", index: index)
        case .mamba2: mixer = .mamba2(try RecurrentMixer(self, name: prefix + "mixer", index: index))
        }
        return [LanguageLayer(norm: norm, mixer: mixer, after: nil)]
    }

    /// - Parameter index: which of the MLPs it is.
    private func mlp(prefix: String, index: Int) throws(SparseKernelsError) -> LanguageLayer.Mixer {
        guard let cats else { return .mlp(try MLPMixer(self, prefix: prefix)) }
        return .cats(try CATSMixer(self, prefix: prefix, threshold: cats[index]))
    }

    private func block(_ number: Int) throws(SparseKernelsError) -> [LanguageLayer] {
        let (prefix, width) = ("model.layers.\(number).", configuration.hiddenSize)
        let attention = try AttentionMixer(self, prefix: prefix + "self_attn.", index: number)
        let mlp = try mlp(prefix: prefix + "mlp.", index: number)
        let first = try norm(prefix + "input_layernorm", width)
        switch configuration.normPlacement {
        case .before:
            return [
                LanguageLayer(norm: first, mixer: .attention(attention), after: nil),
                LanguageLayer(
                    norm: try norm(prefix + "post_attention_layernorm", width), mixer: mlp, after: nil),
            ]
        case .beforeAndAfter:
            return [
                LanguageLayer(
                    norm: first, mixer: .attention(attention), after: try norm(prefix + "post_attention_layernorm", width)),
                LanguageLayer(
                    norm: try norm(prefix + "pre_feedforward_layernorm", width), mixer: mlp,
                    after: try norm(prefix + "post_feedforward_layernorm", width)),
            ]
        }
    }
}

import SparseKernels

/// The weights of one block.
struct LanguageBlock: Sendable {
    /// The names of the linear layers in the file, for observers.
    let qkvNames: [String]
    let outputName: String
    let gateUpNames: [String]
    let downName: String
    /// Query, key and value, side by side.
    let qkv: ModelLinear
    let output: ModelLinear
    /// Gate and up, side by side.
    let gateUp: ModelLinear
    let down: ModelLinear
    let attentionNorm: RMSNorm
    let mlpNorm: RMSNorm
    /// The norms of what attention and MLP add, in models that have them.
    let afterAttention: RMSNorm?
    let afterMLP: RMSNorm?
    let queryNorm: RMSNorm?
    let keyNorm: RMSNorm?
    /// A learned logit per query head that takes part in the softmax without a value, where the file has them.
    let sinks: [Float]?

    init(
        _ c: LanguageModelConfiguration, layer: Int, in files: ModelFiles, linear format: LinearFormat, rank: Int? = nil,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let prefix = "model.layers.\(layer)."
        qkvNames = ["q_proj", "k_proj", "v_proj"].map { prefix + "self_attn." + $0 }
        outputName = prefix + "self_attn.o_proj"
        gateUpNames = ["gate_proj", "up_proj"].map { prefix + "mlp." + $0 }
        downName = prefix + "mlp.down_proj"
        func norm(_ name: String, _ count: Int) throws(SparseKernelsError) -> RMSNorm {
            try RMSNorm(
                weight: files.tensor(prefix + name + ".weight", [count]), epsilon: c.rmsNormEpsilon, addsOne: c.normAddsOne)
        }
        func linear(
            _ layers: [(String, Int)], inFeatures: Int, hasBias: Bool
        ) throws(SparseKernelsError) -> ModelLinear {
            try ModelLinear(
                layers.map { ModelLinear.Layer(name: prefix + $0.0, outFeatures: $0.1) }, inFeatures: inFeatures,
                hasBias: hasBias, in: files, format: format, rank: rank, on: pool)
        }
        let (queries, keys) = (c.queryHeads * c.headDim, c.kvHeads * c.headDim)
        qkv = try linear(
            [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)], inFeatures: c.hiddenSize,
            hasBias: c.hasQKVBias)
        output = try linear([("self_attn.o_proj", c.hiddenSize)], inFeatures: queries, hasBias: c.hasOutputBias)
        gateUp = try linear(
            [("mlp.gate_proj", c.intermediateSize), ("mlp.up_proj", c.intermediateSize)], inFeatures: c.hiddenSize,
            hasBias: c.hasMLPBias)
        down = try linear([("mlp.down_proj", c.hiddenSize)], inFeatures: c.intermediateSize, hasBias: c.hasMLPBias)
        attentionNorm = try norm("input_layernorm", c.hiddenSize)
        switch c.normPlacement {
        case .before:
            mlpNorm = try norm("post_attention_layernorm", c.hiddenSize)
            (afterAttention, afterMLP) = (nil, nil)
        case .beforeAndAfter:
            afterAttention = try norm("post_attention_layernorm", c.hiddenSize)
            mlpNorm = try norm("pre_feedforward_layernorm", c.hiddenSize)
            afterMLP = try norm("post_feedforward_layernorm", c.hiddenSize)
        }
        queryNorm = c.normalizesQueriesAndKeys ? try norm("self_attn.q_norm", c.headDim) : nil
        keyNorm = c.normalizesQueriesAndKeys ? try norm("self_attn.k_norm", c.headDim) : nil
        let sinkName = prefix + "self_attn.sinks"
        sinks = files.has(sinkName) ? try files.tensor(sinkName, [c.queryHeads]).elements : nil
    }

    var byteCount: Int { qkv.byteCount + output.byteCount + gateUp.byteCount + down.byteCount }
}

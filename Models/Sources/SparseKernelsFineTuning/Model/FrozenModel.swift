public import SparseKernels
public import SparseKernelsModels
import SparseKernelsTraining
import SparseLoRA

/// A language model in single precision whose weights stay as they are, with what the backward pass needs.
///
/// Models of the Llama family can be trained, also with windows of attention and biases of queries, keys and values. Others are
/// refused by what they have in addition.
public struct FrozenModel: Sendable {
    public let configuration: LanguageModelConfiguration
    /// The folder.
    public let name: String
    /// Rank of the adapters that are trained.
    public let rank: Int
    /// Tells models apart.
    public let digest: String
    let embedding: TokenEmbedding
    let blocks: [FrozenBlock]
    let finalNorm: RMSNorm
    let finalNormGradient: RMSNormGradient
    /// The output projection.
    let head: SparseLinear

    /// Reads `config.json` and the weights of a folder, of 16 or 32 bits.
    ///
    /// - Parameters:
    ///   - folder: of a model as it was trained.
    ///   - rank: of the adapters that are trained.
    ///   - pool: the threads to use.
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read; `.notFound`, `.invalidElementType` and
    ///   `.invalidShape` for a weight that is missing or does not fit; `.invalidArgument` for 4-bit weights, and for a model with
    ///   arithmetic that has no backward pass here.
    public init(folder: String, rank: Int = 32, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        let c = try LanguageModelConfiguration(path: folder + "/config.json")
        try Self.check(c, folder: folder)
        guard rank >= 1 else { throw SparseKernelsError(.invalidArgument, "rank", expected: "1 or more", actual: "\(rank)") }
        let files = try ModelFiles(folder: folder)
        guard !files.isQuantized else {
            throw SparseKernelsError(
                .invalidArgument, files.name, expected: "weights of 16 or 32 bits, to be trained in single precision",
                actual: "weights of 4 bits")
        }
        (configuration, name, self.rank) = (c, folder, rank)
        let (table, projection) = ("model.embed_tokens.weight", "lm_head.weight")
        let shape = [c.vocabularySize, c.hiddenSize]
        let embedded = try files.tensor(table, shape)
        embedding = try TokenEmbedding(table: embedded, scale: c.embeddingScale)
        var digest = RunDigest()
        digest.add(embedded.span.bytes)
        var blocks: [FrozenBlock] = []
        for index in 0..<c.layers {
            guard !files.has("model.layers.\(index).self_attn.sinks") else {
                throw Self.refusal(folder, "without learned logits beside those of the keys", "one with sinks")
            }
            blocks.append(try FrozenBlock(index, c, rank: rank, files, &digest, on: pool))
        }
        self.blocks = blocks
        let weight = try files.tensor("model.norm.weight", [c.hiddenSize])
        digest.add(weight.span.bytes)
        finalNorm = try RMSNorm(weight: weight, epsilon: c.rmsNormEpsilon, addsOne: c.normAddsOne)
        finalNormGradient = try RMSNormGradient(weight: weight, epsilon: c.rmsNormEpsilon, addsOne: c.normAddsOne)
        let isTied = c.tiesWordEmbeddings ?? !files.has(projection)
        let output = isTied ? embedded : try files.tensor(projection, shape)
        digest.add(output.span.bytes)
        head = try SparseLinear(weight: output, picking: .outputs, on: pool)
        self.digest = digest.text
    }

    private static func refusal(_ folder: String, _ expected: String, _ actual: String) -> SparseKernelsError {
        SparseKernelsError(.invalidArgument, folder, expected: "a model \(expected), to be trained", actual: actual)
    }

    /// Throws for arithmetic without a backward pass.
    private static func check(_ c: LanguageModelConfiguration, folder: String) throws(SparseKernelsError) {
        if c.pattern != nil { throw refusal(folder, "of blocks of attention and an MLP", "a hybrid model") }
        if c.normPlacement != .before {
            throw refusal(folder, "with norms before attention and MLP only", "one with norms behind")
        }
        if c.normalizesQueriesAndKeys { throw refusal(folder, "without norms of queries and keys", "one with them") }
        if c.attentionSoftCap != nil || c.logitSoftCap != nil {
            throw refusal(folder, "without soft caps", "one with a soft cap")
        }
        if c.hasMLPBias || c.hasOutputBias {
            throw refusal(folder, "without biases behind attention and in the MLP", "one with biases")
        }
        if !c.gatesMLP { throw refusal(folder, "with a gated MLP", "one without a gate") }
        guard let rotary = c.rotary else { throw refusal(folder, "with a rotary encoding of positions", "one without") }
        if case .dynamicNTK = rotary.scaling {
            throw refusal(folder, "whose rotation does not depend on the length of a sequence", "one with dynamic scaling")
        }
    }
}

/// A block: attention and an MLP, each behind a norm.
struct FrozenBlock: Sendable {
    let inputNorm: RMSNorm
    let inputNormGradient: RMSNormGradient
    let query: SparseProjection
    let key: SparseProjection
    let value: SparseProjection
    let output: SparseProjection
    let mask: AttentionMask
    let innerNorm: RMSNorm
    let innerNormGradient: RMSNormGradient
    let mlp: SparseMLP

    init(
        _ index: Int, _ c: LanguageModelConfiguration, rank: Int, _ files: ModelFiles, _ digest: inout RunDigest,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let prefix = "model.layers.\(index)."
        let shapes = c.linearShapes
        func read(_ name: String, _ shape: [Int], _ digest: inout RunDigest) throws(SparseKernelsError) -> Tensor<Float> {
            let tensor = try files.tensor(prefix + name, shape)
            digest.add(tensor.span.bytes)
            return tensor
        }
        func projection(
            _ name: String, _ side: SparseLinear.Side, hasBias: Bool, _ digest: inout RunDigest
        ) throws(SparseKernelsError) -> SparseProjection {
            let shape = shapes[name]!
            let weight = try read(name + ".weight", shape, &digest)
            let bias = hasBias ? try read(name + ".bias", [shape[0]], &digest) : nil
            return try SparseProjection(weight: weight, picking: side, bias: bias, loraRank: rank, on: pool)
        }
        let (epsilon, addsOne) = (c.rmsNormEpsilon, c.normAddsOne)
        let first = try read("input_layernorm.weight", [c.hiddenSize], &digest)
        inputNorm = try RMSNorm(weight: first, epsilon: epsilon, addsOne: addsOne)
        inputNormGradient = try RMSNormGradient(weight: first, epsilon: epsilon, addsOne: addsOne)
        query = try projection("self_attn.q_proj", .outputs, hasBias: c.hasQKVBias, &digest)
        key = try projection("self_attn.k_proj", .outputs, hasBias: c.hasQKVBias, &digest)
        value = try projection("self_attn.v_proj", .outputs, hasBias: c.hasQKVBias, &digest)
        output = try projection("self_attn.o_proj", .inputs, hasBias: false, &digest)
        mask =
            switch (c.isCausal, c.slidingWindows[index]) {
            case (true, nil): .causal
            case (true, let window?): .causal(window: window)
            case (false, nil): .full
            case (false, let window?): .full(window: window)
            }
        let second = try read("post_attention_layernorm.weight", [c.hiddenSize], &digest)
        innerNorm = try RMSNorm(weight: second, epsilon: epsilon, addsOne: addsOne)
        innerNormGradient = try RMSNormGradient(weight: second, epsilon: epsilon, addsOne: addsOne)
        let gate = try read("mlp.gate_proj.weight", shapes["mlp.gate_proj"]!, &digest)
        let up = try read("mlp.up_proj.weight", shapes["mlp.up_proj"]!, &digest)
        let down = try read("mlp.down_proj.weight", shapes["mlp.down_proj"]!, &digest)
        mlp = try SparseMLP(gate: gate, up: up, down: down, function: c.activation, on: pool)
    }
}

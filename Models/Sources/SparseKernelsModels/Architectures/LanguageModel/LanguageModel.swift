public import CATS
internal import NemotronH
public import PolarSparsity
public import SparseKernels

/// A language model, loaded from a folder: weights and the arithmetic of a pass, without state. Blocks of attention and an MLP, as in the
/// Llama family, or the layers of a hybrid, as in Nemotron-H.
///
/// ```swift
/// let model = try LanguageModel(folder: folder)
/// let session = try LanguageSession(model)
/// ```
///
/// `LanguageSession` holds the cache of keys and values, and runs the model over tokens in chunks and step by step. Copies of a
/// model share its weights.
///
/// - Results are bitwise equal for every number of threads.
public struct LanguageModel: Sendable {
    public let configuration: LanguageModelConfiguration
    /// The form of the linear layers in the blocks.
    public let linear: LinearFormat
    /// The rank of the low-rank branches that were made when the model was loaded; nil means that none were.
    public let rank: Int?
    /// Layers at each end whose weights are in bfloat16 where those of the others are in FP8.
    public let wideLayers: Int
    /// The thresholds of MLPs that skip small activations; nil for dense MLPs.
    public internal(set) var cats: CATSThresholds?
    /// Whether the weights of the blocks come from a file of 4-bit codes.
    public let isQuantized: Bool
    /// Bytes of all weights, as they are in memory.
    public let byteCount: Int

    /// Routers that choose heads in steps of decoding, one per layer with attention, for `DecodingMethod.polar`.
    public internal(set) var headRouters: [HeadRouter]?

    let embedding: TokenEmbedding
    var layers: [LanguageLayer]
    /// The last layer whose results depend on other tokens.
    let lastMixingLayer: Int
    /// The learned logits of each layer with attention.
    private let sinks: [[Float]?]
    let finalNorm: RMSNorm
    /// The output projection.
    let head: ModelLinear
    let activation: GatedActivation

    /// Loads `config.json` and the weights of a folder.
    ///
    /// - Parameters:
    ///   - folder: of a model as it was trained, or of one that `sparsekernels quantize` made.
    ///   - linear: the form of the linear layers in the blocks.
    ///   - rank: for 4-bit weights of a model as it was trained: the rank of a branch in 16 bits beside each layer, 0 or more. nil
    ///     means none, and no W4A4.
    ///   - wideLayers: for `.fp8`: so many layers from the first one on, and up to the last one, have weights in bfloat16, as Nemotron-H
    ///     was trained with four.
    ///   - cats: the thresholds of MLPs that skip small activations, one per MLP; nil for dense MLPs. `catsThresholds` finds them, with a
    ///     model that was loaded with `zeroThresholds`.
    ///   - adapter: a folder with a LoRA adapter of the model, as PEFT and `sparse-lm finetune` save it, which is added to the weights
    ///     (``ModelAdapter``).
    ///   - pool: the threads that pack and quantise.
    ///   - progress: called after each layer with the number of layers that are loaded, and of all.
    /// - Throws: `.inputOutput` and `.malformedFile` for files that cannot be read; `.notFound`, `.invalidElementType` and
    ///   `.invalidShape` for a weight that is missing or does not fit the configuration, and for an adapter of another model;
    ///   `.invalidArgument` for a format that the file cannot have, `wideLayers` below 0 or with another format, or thresholds for a model that cannot have them.
    public init(
        folder: String, linear: LinearFormat = .float16, rank: Int? = nil, wideLayers: Int = 0, cats: CATSThresholds? = nil,
        adapter: String? = nil, on pool: WorkerPool = .shared, progress: (_ loaded: Int, _ layers: Int) -> Void = { _, _ in }
    ) throws(SparseKernelsError) {
        let c = try LanguageModelConfiguration(path: folder + "/config.json")
        var files = try ModelFiles(folder: folder)
        if let adapter { files.adapter = try ModelAdapter(folder: adapter, for: c) }
        configuration = c
        self.linear = linear
        self.rank = rank
        isQuantized = files.isQuantized
        guard wideLayers == 0 || wideLayers > 0 && linear == .fp8 else {
            throw SparseKernelsError(
                .invalidArgument, "wideLayers", expected: "0, or more for fp8", actual: "\(wideLayers) for \(linear.rawValue)")
        }
        self.wideLayers = wideLayers
        if let cats {
            try CATSMixer.check(c, files, linear)
            try c.check(cats)
        }
        self.cats = cats
        let wide = BFloat16Layers(first: wideLayers, last: wideLayers)
        let isHybrid = c.pattern != nil
        let (table, projection) = (isHybrid ? "backbone.embeddings.weight" : "model.embed_tokens.weight", "lm_head.weight")
        let embedded = try files.embedding(table, [c.vocabularySize, c.hiddenSize], scale: c.embeddingScale)
        embedding = embedded.embedding
        activation = try GatedActivation(c.activation)
        var source = LayerSource(configuration: c, files: files, format: linear, rank: rank, pool: pool, cats: cats?.values)
        var layers: [LanguageLayer] = []
        for number in 0..<c.layers {
            source.format = wide.contains(number, of: c.layers) ? .bfloat16 : linear
            layers += try source.layers(number)
            progress(number + 1, c.layers)
        }
        self.layers = layers
        lastMixingLayer = layers.lastIndex(where: \.mixesTokens) ?? -1
        sinks = layers.compactMap { layer in
            if case .attention(let mixer) = layer.mixer { .some(mixer.sinks) } else { nil }
        }
        finalNorm = try source.norm(isHybrid ? "backbone.norm_f" : "model.norm", c.hiddenSize)
        let isTied = c.tiesWordEmbeddings ?? !files.has(projection)
        head = try ModelLinear(
            weight: isTied ? table : projection, shape: [c.vocabularySize, c.hiddenSize], in: files, format: linear, on: pool)
        byteCount = layers.reduce(embedded.byteCount + head.byteCount) { $0 + $1.byteCount }
    }

    /// How the scores of a layer become probabilities. Layers with attention are counted.
    func modifiers(layer: Int) -> ScoreModifiers {
        ScoreModifiers(
            softmaxScale: configuration.softmaxScale, logitsSoftCap: configuration.attentionSoftCap,
            sinkLogits: sinks[layer])
    }

    /// Whether a layer has learned logits beside those of the keys.
    var hasSinks: Bool { sinks.contains { $0 != nil } }

    /// Throws `.invalidArgument` for tokens outside the vocabulary.
    func check(_ tokens: [Int]) throws(SparseKernelsError) {
        let limit = configuration.vocabularySize
        guard tokens.allSatisfy({ $0 >= 0 && $0 < limit }) else {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "ids from 0 to \(limit - 1)",
                actual: "\(tokens.count), from \(tokens.min()!) to \(tokens.max()!)")
        }
    }

    // MARK: - Run

    /// The logits of every position of one sequence, `[tokens, vocabularySize]`, without a cache. For calibration and tests.
    ///
    /// - Parameters:
    ///   - tokens: one sequence that starts at position 0.
    ///   - pool: the threads to use.
    ///   - observe: called with the input of each linear layer of a block, by the layer's name in the file, just before it runs.
    /// - Throws: `.invalidArgument` for no tokens or one outside the vocabulary, and the errors of `observe`.
    /// - Complexity: memory O(tokens · (intermediateSize + vocabularySize)) beside the weights.
    public func logits(
        _ tokens: [Int], on pool: WorkerPool = .shared, observe: LayerObserver = { _, _ throws(SparseKernelsError) in }
    ) throws(SparseKernelsError) -> Tensor<Float> {
        guard !tokens.isEmpty else {
            throw SparseKernelsError(.invalidArgument, "tokens", expected: "one or more", actual: "none")
        }
        try check(tokens)
        var workspace = try LanguageWorkspace(configuration, rows: tokens.count, hasCATS: cats != nil)
        let attention = try WholeSequenceAttention(self, tokens: tokens.count)
        var stopwatch = Stopwatch()
        try run(
            PassTokens(tokens), needed: .all, attention: attention, workspace: &workspace,
            stopwatch: &stopwatch, on: pool, observe: observe)
        var logits = try Tensor<Float>(zeros: [tokens.count, configuration.vocabularySize])
        try project(workspace.normalized, rows: tokens.count, into: &logits, on: pool)
        return logits
    }
}

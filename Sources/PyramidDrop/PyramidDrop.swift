public import SparseKernels

/// A sequence of a prompt as PyramidDrop sees it: where its image tokens are now, and which token asks.
public struct PyramidDropSequence: Hashable, Sendable {
    /// Tokens that the next layer would see.
    public let length: Int
    /// The image tokens among them; empty for a sequence of text.
    public let imageTokens: Range<Int>
    /// The last token of the instruction, whose attention ranks.
    public let lastInstructionToken: Int
    /// The image tokens that the prompt began with.
    public let promptImageTokens: Int

    /// A sequence before any reduction.
    ///
    /// - Parameters:
    ///   - length: its tokens.
    ///   - imageTokens: the tokens of its picture.
    ///   - lastInstructionToken: the token whose attention ranks; the last one unless given.
    /// - Throws: `.invalidShape` for no tokens; `.invalidArgument` for tokens outside of the sequence, and for a last instruction token
    ///   inside of the picture.
    public init(
        length: Int, imageTokens: Range<Int>, lastInstructionToken: Int? = nil
    ) throws(SparseKernelsError) {
        try self.init(length, imageTokens, lastInstructionToken ?? length - 1, imageTokens.count)
    }

    init(
        _ length: Int, _ imageTokens: Range<Int>, _ lastInstructionToken: Int, _ promptImageTokens: Int
    ) throws(SparseKernelsError) {
        try require(length >= 1, .invalidShape, "length", expected: "at least 1", actual: "\(length)")
        try require(
            imageTokens.lowerBound >= 0 && imageTokens.upperBound <= length, .invalidArgument, "imageTokens",
            expected: "within the \(length) tokens", actual: "\(imageTokens)")
        try require(
            lastInstructionToken >= 0 && lastInstructionToken < length && !imageTokens.contains(lastInstructionToken),
            .invalidArgument, "lastInstructionToken", expected: "a token of the \(length) that is not one of \(imageTokens)",
            actual: "\(lastInstructionToken)")
        self.length = length
        self.imageTokens = imageTokens
        self.lastInstructionToken = lastInstructionToken
        self.promptImageTokens = promptImageTokens
    }

    /// The sequence with fewer image tokens.
    func keeping(_ count: Int) throws(SparseKernelsError) -> PyramidDropSequence {
        let dropped = imageTokens.count - count
        return try PyramidDropSequence(
            length - dropped, imageTokens.lowerBound..<imageTokens.upperBound - dropped,
            lastInstructionToken - (lastInstructionToken < imageTokens.lowerBound ? 0 : dropped), promptImageTokens)
    }
}

/// PyramidDrop: after some layers of a language model, the image tokens that the instruction attends to least are dropped, in stages.
///
/// At a stage, the caller norms the hidden states and projects and rotates keys of all tokens, and the query of the last instruction
/// token, with the weights of the layer that comes next. This operator ranks and says what stays.
///
/// ```swift
/// let drop = try PyramidDrop(queryHeads: 32, kvHeads: 8, headDim: 128)
/// if let stage = drop.configuration.stage(afterLayers: layer) {
///     let step = try drop.step(stage: stage, query: q, key: k, sequences: sequences)
///     hidden = try step.compaction(hidden)
///     positions = step.compaction.positions(.renumbered)
///     sequences = step.sequences
/// }
/// ```
///
/// The scores of a sequence are the probabilities of one row of attention: softmax over all keys up to the last instruction token,
/// mean over the heads. The best image tokens stay, of equal ones those with the lower index, in their order; all other tokens stay.
///
/// - Complexity: two passes over the keys, `2 · queryHeads · tokens · headDim` multiply-adds.
/// - Source: Xing et al., "PyramidDrop" (arXiv 2410.17247), section 3.2, and its released code, which renumbers positions.
public struct PyramidDrop: Sendable {
    public let configuration: PyramidDropConfiguration
    public let queryHeads: Int
    public let kvHeads: Int
    public let headDim: Int
    /// The factor on q·k; nil means 1/√headDim.
    public let softmaxScale: Float?
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    /// What a stage decided.
    public struct Step: Hashable, Sendable {
        /// The tokens that stay, for everything that has a row per token.
        public let compaction: TokenCompaction
        /// The sequences afterwards.
        public let sequences: [PyramidDropSequence]
    }

    /// - Parameters:
    ///   - configuration: the stages.
    ///   - queryHeads: query heads of the ranking layer, a multiple of `kvHeads`.
    ///   - kvHeads: its key/value heads.
    ///   - headDim: channels of a head.
    ///   - softmaxScale: the factor on q·k; 1/√headDim unless given.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: the errors of `PyramidDropConfiguration`, `AttentionShape` and `AttentionColumnMass`.
    public init(
        _ configuration: PyramidDropConfiguration = .standard, queryHeads: Int, kvHeads: Int, headDim: Int,
        softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try configuration.check()
        let shape = try AttentionShape(
            queryLength: 1, keyLength: 1, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim)
        _ = try AttentionColumnMass(shape, softmaxScale: softmaxScale, instructionSet: instructionSet)
        self.configuration = configuration
        self.queryHeads = queryHeads
        self.kvHeads = kvHeads
        self.headDim = headDim
        self.softmaxScale = softmaxScale
        self.instructionSet = try InstructionSet.resolve(instructionSet)
    }

    /// The attention of the last instruction token to every token of a sequence, mean over the heads.
    ///
    /// - Parameters:
    ///   - query: the rotated query of that token, `queryHeads` × 1 × `headDim`.
    ///   - key: the rotated keys of the sequence, `kvHeads` × tokens × `headDim`.
    ///   - sequence: its tokens.
    ///   - pool: the threads to use.
    /// - Returns: `[1, tokens]`, 0 for tokens after the last instruction token.
    /// - Throws: `.invalidShape` naming the operand of other extents.
    public func scores<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, _ sequence: PyramidDropSequence, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let shape = try AttentionShape(
            queryLength: 1, keyLength: sequence.length, queryHeads: queryHeads, kvHeads: kvHeads, headDim: headDim)
        let mass = try AttentionColumnMass(
            shape, limits: KeyLimits(below: [sequence.lastInstructionToken + 1]), reduction: .meanOfHeads,
            softmaxScale: softmaxScale, instructionSet: instructionSet)
        var result = try Tensor<Float>(zeros: [1, sequence.length])
        try mass.run(query: query, key: key, into: result.mutableMatrixView(named: "mass"), on: pool)
        return result
    }

    /// Ranks the image tokens of a batch and drops the rest.
    ///
    /// - Parameters:
    ///   - stage: a stage of the configuration.
    ///   - query: the rotated queries of the last instruction tokens, `queryHeads` × sequences × `headDim`.
    ///   - key: the rotated keys of all sequences, one after the other, `kvHeads` × Σ tokens × `headDim`.
    ///   - sequences: the sequences. One with fewer image tokens than the stage leaves keeps all.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` naming the operand of other extents; `.invalidArgument` for a stage that does not exist, and for scores
    ///   that are NaN.
    public func step<Q: AttentionElement, K: AttentionElement>(
        stage: Int, query: TensorView<Q>, key: TensorView<K>, sequences: [PyramidDropSequence], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Step {
        try require(
            configuration.stages.indices.contains(stage), .invalidArgument, "stage",
            expected: "one of \(configuration.stages.count)", actual: "\(stage)")
        var tokens = 0
        for sequence in sequences { tokens += sequence.length }
        try require(
            query.heads == queryHeads && query.tokens == sequences.count && query.channels == headDim, .invalidShape, "query",
            expected: "\(queryHeads) × \(sequences.count) × \(headDim)",
            actual: "\(query.heads) × \(query.tokens) × \(query.channels)")
        try require(
            key.heads == kvHeads && key.tokens == tokens && key.channels == headDim, .invalidShape, "key",
            expected: "\(kvHeads) × \(tokens) × \(headDim)", actual: "\(key.heads) × \(key.tokens) × \(key.channels)")
        var (lists, after, first) = ([[Int]](), [PyramidDropSequence](), 0)
        for (index, sequence) in sequences.enumerated() {
            let count = configuration.keptTokens(stage: stage, of: sequence.promptImageTokens)
            if count >= sequence.imageTokens.count {
                lists.append(Array(0..<sequence.length))
                after.append(sequence)
            } else {
                let scores = try scores(
                    query: query.tokens(index..<index + 1), key: key.tokens(first..<first + sequence.length), sequence, on: pool
                )
                let list = try Self.kept(scores, sequence, count, named: "scores of sequence \(index)")
                lists.append(list)
                after.append(try sequence.keeping(count))
            }
            first += sequence.length
        }
        return Step(
            compaction: try TokenCompaction(lengths: sequences.map(\.length), keeping: lists), sequences: after)
    }

    /// The same for tensors `[heads, tokens, headDim]`.
    /// - Throws: the errors of the call with views.
    public func step<Q: AttentionElement, K: AttentionElement>(
        stage: Int, query: Tensor<Q>, key: Tensor<K>, sequences: [PyramidDropSequence], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Step {
        try step(
            stage: stage, query: query.view(named: "query"), key: key.view(named: "key"), sequences: sequences, on: pool)
    }

    /// All tokens but the image tokens with the lowest scores.
    private static func kept(
        _ scores: Tensor<Float>, _ sequence: PyramidDropSequence, _ count: Int, named name: String
    ) throws(SparseKernelsError) -> [Int] {
        let images = sequence.imageTokens
        for token in images where scores[flat: token].isNaN {
            throw SparseKernelsError(.invalidArgument, name, expected: "numbers", actual: "NaN at token \(token)")
        }
        let best = try TopK.select(scores: scores.span.extracting(images), count: count)
        return Array(0..<images.lowerBound) + best.map { $0 + images.lowerBound }
            + Array(images.upperBound..<sequence.length)
    }
}

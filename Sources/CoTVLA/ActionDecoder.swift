public import SparseKernels

/// Parallel decoding of a chunk of actions: one pass of the model over placeholders gives all tokens.
///
/// Every number of every action has a row of its own, which begins as the learned placeholder of its kind. The rows see the whole
/// sequence before them and each other, so that they are one block over the cache, and no step waits for another.
///
/// ```swift
/// let decoder = try ActionDecoder(tokenizer, placeholders: learned)        // [3, width]: position, rotation, gripper
/// let actions = try decoder.decode { rows in try model.logits(of: rows) }   // [70, width] in, [70, vocabulary] out
/// print(actions.shape)                                                      // [10, 7]
/// ```
///
/// In each layer, append the keys and values of the 70 rows to the cache and attend with ``attention(queryHeads:over:_:instructionSet:)``.
///
/// - Source: Zhao et al., "CoT-VLA" (arXiv 2503.22020), section 3.3. No code was released.
public struct ActionDecoder: Sendable {
    /// What a number of an action is.
    public enum Kind: Int, Hashable, Sendable, CaseIterable {
        case position
        case rotation
        case gripper
    }

    /// Three positions, three angles and a gripper.
    public static let robotArm: [Kind] = [.position, .position, .position, .rotation, .rotation, .rotation, .gripper]

    public let tokenizer: ActionTokenizer
    /// The kinds of the numbers of an action.
    public let kinds: [Kind]
    /// Actions of a chunk.
    public let actions: Int
    /// The rows that the model's first layer sees, `[tokens, width]`.
    public let rows: Tensor<Float>

    /// - Parameters:
    ///   - tokenizer: bins and tokens; as many dimensions as there are kinds.
    ///   - placeholders: the learned rows, `[3, width]`, in the order of ``Kind``.
    ///   - kinds: the kinds of the numbers of an action.
    ///   - actions: actions of a chunk, at least 1.
    /// - Throws: `.invalidShape` for placeholders of another shape or other dimensions, `.invalidArgument` for no actions.
    public init(
        _ tokenizer: ActionTokenizer, placeholders: Tensor<Float>, kinds: [Kind] = robotArm, actions: Int = 10
    ) throws(SparseKernelsError) {
        try require(
            placeholders.shape.count == 2 && placeholders.shape[0] == Kind.allCases.count && placeholders.shape[1] >= 1,
            .invalidShape, "placeholders", expected: "[\(Kind.allCases.count), width]", actual: "\(placeholders.shape)")
        try require(
            kinds.count == tokenizer.bins.dimensions, .invalidShape, "kinds",
            expected: "\(tokenizer.bins.dimensions), the dimensions of the bins", actual: "\(kinds.count)")
        try require(
            actions >= 1 && actions <= 1 << 20, .invalidArgument, "actions", expected: "in 1...2²⁰", actual: "\(actions)")
        self.tokenizer = tokenizer
        self.kinds = kinds
        self.actions = actions
        let width = placeholders.shape[1]
        rows = try Tensor([actions * kinds.count, width]) { index in
            placeholders[flat: kinds[index / width % kinds.count].rawValue * width + index % width]
        }
    }

    /// Tokens of a chunk.
    public var tokenCount: Int { actions * kinds.count }

    /// The attention of the rows of a chunk, which see each other and all before them: a block of queries over the rows of a cache that
    /// has their keys and values at its end, or over tensors.
    ///
    /// ```swift
    /// let cached = try cache.rows(of: sequence, layer: layer)
    /// try decoder.attention(queryHeads: 32, over: cached.tokens, cache.configuration).run(
    ///     query: q.view(), key: cached.key, value: cached.value, output: output.mutableView())
    /// ```
    ///
    /// - Parameters:
    ///   - queryHeads: a multiple of the key/value heads.
    ///   - tokens: the keys, those of the chunk among them.
    ///   - configuration: key/value heads and channels.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for fewer keys than rows, and the errors of `AttentionShape` and `DenseAttention`.
    public func attention(
        queryHeads: Int, over tokens: Int, _ configuration: KVCacheConfiguration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) -> DenseAttention {
        try require(
            tokens >= tokenCount, .invalidShape, "tokens", expected: "at least \(tokenCount), the rows of a chunk",
            actual: "\(tokens)")
        let shape = try AttentionShape(
            queryLength: tokenCount, keyLength: tokens, queryHeads: queryHeads, kvHeads: configuration.kvHeads,
            headDim: configuration.headDim, valueDim: configuration.valueDim)
        return try DenseAttention(shape, mask: .full, instructionSet: instructionSet)
    }

    /// Decodes a chunk with one pass of a model.
    ///
    /// - Parameter logits: the model: ``rows`` in, `[tokenCount, vocabulary]` out.
    /// - Returns: `[actions, dimensions]`.
    /// - Throws: what `logits` throws, and the errors of ``actions(of:)``.
    public func decode(_ logits: (Tensor<Float>) throws -> Tensor<Float>) throws -> Tensor<Float> {
        let result = try logits(rows)
        return try actions(of: result)
    }

    /// The actions of the likeliest tokens of each row.
    ///
    /// - Parameter logits: `[tokenCount, vocabulary]`.
    /// - Throws: `.invalidShape` for other rows, and the errors of ``ActionTokenizer/likeliestTokens(_:)``.
    public func actions(of logits: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            logits.shape.first == tokenCount, .invalidShape, "logits", expected: "\(tokenCount) rows", actual: "\(logits.shape)"
        )
        return try tokenizer.actions(of: tokenizer.likeliestTokens(logits))
    }
}

public import SparseKernels

/// SpargeAttention (Zhang et al., 2025, arXiv 2502.18137): prefill and bidirectional attention over the blocks that block means predict
/// to matter, with the products P·V of negligible tiles left out.
///
/// ```swift
/// let sparge = try SpargeAttentionPrefill(shape, isCausal: true)
/// let result = try sparge(query: q, key: k, value: v)
/// print(result.mask.density)
/// ```
///
/// Prediction works on blocks of 128 queries and 64 keys: keys are taken less their mean token, blocks are reduced to their means, and
/// softmax over the products of means ranks the key blocks of every query block. Blocks whose tokens are unlike each other are computed
/// in any case. See `SelfSimilarity` and `SimilaritySelection`.
///
/// - Attention itself is single-precision and exact over the kept blocks: the released kernels' INT8 products are not reproduced. The
///   codes and scales that they start from are in `Int8BlockQuantization`.
/// - Causal grids are aligned at the end and causal inside the blocks of the diagonal. The released kernels align at the start, and
///   their Sage2 entry points are not causal inside blocks at all.
/// - Complexity: prediction O(tokens · headDim + blocks² · headDim) per head; attention as `BlockSparseAttention`.
public struct SpargeAttentionPrefill: Sendable {
    public let shape: AttentionShape
    public let grid: BlockGrid
    /// One setting for all heads or one per query head.
    public let heads: [SpargeAttentionHead]
    /// Whether keys are taken less their mean token before prediction.
    public let smoothsKeys: Bool
    /// Whether prediction rounds where the released code of 16-bit tensors rounds; see `SelfSimilarity`.
    public let roundsAsReleased: Bool
    public let modifiers: ScoreModifiers
    public let instructionSet: InstructionSet
    private let selection: SimilaritySelection

    /// What a call gives: the attention over the kept blocks, and which they were.
    public struct Result: Sendable {
        public let state: AttentionState
        public let mask: BlockMask
    }

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - heads: one setting for all heads or one per query head, such as `SpargeAttentionTuner` finds.
    ///   - isCausal: whether keys after a query are hidden.
    ///   - queryBlockSize: tokens of a block of queries.
    ///   - keyBlockSize: tokens of a block of keys.
    ///   - smoothsKeys: whether the mean key is subtracted before keys are coded.
    ///   - keepsFirstColumn: keeps the first key block for every query block (`attention_sink`).
    ///   - roundsAsReleased: whether means and codes are rounded as the released kernels round them.
    ///   - modifiers: of attention; prediction uses its `softmaxScale` alone.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for a wrong number of settings, or a block size below 1; `.invalidArgument` naming the setting outside its domain; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, heads: [SpargeAttentionHead] = [.recommended], isCausal: Bool = false,
        queryBlockSize: Int = 128, keyBlockSize: Int = 64, smoothsKeys: Bool = true, keepsFirstColumn: Bool = false,
        roundsAsReleased: Bool = false, modifiers: ScoreModifiers = ScoreModifiers(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        guard heads.count == 1 || heads.count == shape.queryHeads else {
            throw SparseKernelsError(
                .invalidShape, "heads", expected: "1 or queryHeads (\(shape.queryHeads)) settings", actual: "\(heads.count)")
        }
        for (index, head) in heads.enumerated() {
            if let threshold = head.pvSkipThreshold, !(threshold > 0 && threshold.isFinite) {
                throw SparseKernelsError(
                    .invalidArgument, "heads[\(index)].pvSkipThreshold", expected: "finite and positive",
                    actual: "\(threshold)")
            }
        }
        self.shape = shape
        self.heads = heads
        self.smoothsKeys = smoothsKeys
        self.roundsAsReleased = roundsAsReleased
        self.modifiers = modifiers
        grid = try BlockGrid(
            queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: queryBlockSize,
            keyBlockSize: keyBlockSize, isCausal: isCausal)
        selection = try SimilaritySelection(
            grid: grid, heads: heads.map(\.selection), keepsFirstColumn: keepsFirstColumn,
            softmaxScale: modifiers.softmaxScale, instructionSet: instructionSet)
        self.instructionSet = selection.instructionSet
    }

    /// The blocks that the prediction keeps, per query head.
    /// - Throws: `.invalidShape` naming the tensor that disagrees with the shape.
    public func mask<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try mask(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }

    /// The blocks that the prediction keeps, per query head.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func mask<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        return try mask(query: querySummary(query, on: pool), key: keySummary(key, on: pool), on: pool)
    }

    /// The blocks that the prediction keeps, from summaries that were made before.
    /// - Throws: `.invalidShape` naming the summary that disagrees with the shape.
    public func mask(
        query: BlockSummary, key: BlockSummary, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try selection(query: query, key: key, on: pool)
    }

    /// Block means and self-similarities of the queries.
    /// - Throws: `.invalidShape` when the operand disagrees with the shape.
    public func querySummary<Q: AttentionElement>(
        _ query: TensorView<Q>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try shape.check(query: query.geometry)
        return try SelfSimilarity.summary(
            query, blocks: grid.query, roundsAsReleased: roundsAsReleased, instructionSet: instructionSet,
            on: pool)
    }

    /// Block means and self-similarities of the keys, less their mean token.
    /// - Throws: `.invalidShape` when the operand disagrees with the shape.
    public func keySummary<K: AttentionElement>(
        _ key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try shape.check(key: key.geometry)
        var mean: Tensor<Float>?
        if smoothsKeys {
            mean = try SelfSimilarity.tokenMean(
                key, roundsAsReleased: roundsAsReleased, instructionSet: instructionSet, on: pool)
        }
        return try SelfSimilarity.summary(
            key, blocks: grid.key, subtracting: mean, roundsAsReleased: roundsAsReleased,
            instructionSet: instructionSet, on: pool)
    }

    /// The plan of attention over a mask, with the skip of P·V.
    /// - Throws: `.invalidShape` or `.invalidArgument` when the mask does not fit the shape.
    public func attention(over mask: BlockMask) throws(SparseKernelsError) -> BlockSparseAttention {
        let plan = try BlockSparseAttention(shape, mask: mask, modifiers: modifiers, instructionSet: instructionSet)
        return try plan.skippingPV(
            below: (0..<shape.queryHeads).map { heads[heads.count == 1 ? 0 : $0].naturalSkipThreshold })
    }

    /// Predicts, then attends into the caller's memory. No operand is copied.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. Any strides that keep channels adjacent, here and below.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - output: `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials over the computed keys of each row, `[queryHeads, queryLength]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the blocks that were attended to, one head per query head.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape; nothing is computed or written then.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        let mask = try mask(query: query, key: key, on: pool)
        try attention(over: mask).run(
            query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
        return mask
    }

    /// Scores, selects and attends with tensors `[heads, tokens, channels]` into a tensor that is reused from call to call.
    /// - Throws: as above.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, into output: inout Tensor<O>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), on: pool)
    }

    /// Predicts, then attends with tensors `[heads, tokens, channels]` into new memory.
    /// - Throws: as `run`.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Result {
        let (state, mask) = try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                output: output, logSumExp: logSumExp, on: pool)
        }
        return Result(state: state, mask: mask)
    }
}

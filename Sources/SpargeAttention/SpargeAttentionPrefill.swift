public import SparseKernels

/// SpargeAttention (Zhang et al., 2025, arXiv 2502.18137): prefill and bidirectional attention over blocks predicted from block
/// means, which skips the products P·V of negligible tiles.
///
/// ```swift
/// let sparge = try SpargeAttentionPrefill(shape, isCausal: true)
/// let result = try sparge(query: q, key: k, value: v)
/// print(result.mask.density)
/// ```
///
/// Prediction uses blocks of 128 queries and 64 keys: it subtracts their mean token from keys, reduces blocks to their means,
/// and ranks the key blocks of every query block by softmax over the products of means. Blocks of dissimilar tokens are always
/// computed. See `SelfSimilarity` and `SimilaritySelection`.
///
/// - Attention itself is in single precision and exact over the kept blocks. It does not reproduce the INT8 products of the
///   released kernels; `Int8BlockQuantization` computes the codes and scales that they use.
/// - Causal grids are aligned at the end and causal inside the diagonal blocks. The released kernels align at the start, and
///   their Sage2 entry points are not causal inside blocks.
/// - Complexity: prediction O(tokens · headDim + blocks² · headDim) per head; attention as `BlockSparseAttention`.
public struct SpargeAttentionPrefill: PredictiveAttention {
    public let shape: AttentionShape
    public let configuration: SpargeAttentionConfiguration
    public let grid: BlockGrid
    /// The settings: one for all heads, or one per query head.
    public let heads: [SpargeAttentionHead]
    public let instructionSet: InstructionSet
    private let selection: SimilaritySelection

    /// Makes a plan with the released defaults, causal or not. Errors are those of the initialiser with a configuration.
    public init(
        _ shape: AttentionShape, heads: [SpargeAttentionHead] = [.recommended], isCausal: Bool,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            shape, SpargeAttentionConfiguration(isCausal: isCausal), heads: heads, instructionSet: instructionSet)
    }

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - configuration: the settings that all heads share.
    ///   - heads: one setting for all heads, or one per query head, such as those from `SpargeAttentionTuner`.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for a wrong number of settings, or a block size below 1; `.invalidArgument` naming the setting
    ///   outside its domain; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, _ configuration: SpargeAttentionConfiguration = SpargeAttentionConfiguration(),
        heads: [SpargeAttentionHead] = [.recommended], instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            heads.count == 1 || heads.count == shape.queryHeads, .invalidShape, "heads",
            expected: "1 or queryHeads (\(shape.queryHeads)) settings", actual: "\(heads.count)")
        for (index, head) in heads.enumerated() {
            if let threshold = head.pvSkipThreshold, !(threshold > 0 && threshold.isFinite) {
                throw SparseKernelsError(
                    .invalidArgument, "heads[\(index)].pvSkipThreshold", expected: "finite and positive",
                    actual: "\(threshold)")
            }
        }
        self.shape = shape
        self.configuration = configuration
        self.heads = heads
        grid = try BlockGrid(
            queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: configuration.queryBlockSize,
            keyBlockSize: configuration.keyBlockSize, isCausal: configuration.isCausal)
        selection = try SimilaritySelection(
            grid: grid, heads: heads.map(\.selection), keepsFirstColumn: configuration.keepsFirstColumn,
            softmaxScale: configuration.modifiers.softmaxScale, instructionSet: instructionSet)
        self.instructionSet = selection.instructionSet
    }

    /// Predicts the blocks that every query head keeps.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        return try mask(query: querySummary(query, on: pool), key: keySummary(key, on: pool), on: pool)
    }

    /// Predicts the blocks from existing summaries.
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
            query, blocks: grid.query, roundsAsReleased: configuration.roundsAsReleased, instructionSet: instructionSet,
            on: pool)
    }

    /// Block means and self-similarities of the keys, after subtracting their mean token.
    /// - Throws: `.invalidShape` when the operand disagrees with the shape.
    public func keySummary<K: AttentionElement>(
        _ key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try shape.check(key: key.geometry)
        var mean: Tensor<Float>?
        if configuration.smoothsKeys {
            mean = try SelfSimilarity.tokenMean(
                key, roundsAsReleased: configuration.roundsAsReleased, instructionSet: instructionSet, on: pool)
        }
        return try SelfSimilarity.summary(
            key, blocks: grid.key, subtracting: mean, roundsAsReleased: configuration.roundsAsReleased,
            instructionSet: instructionSet, on: pool)
    }

    /// The plan of attention over a mask, with the skipping of P·V.
    /// - Throws: `.invalidShape` or `.invalidArgument` when the mask does not fit the shape.
    public func attention(over mask: BlockMask) throws(SparseKernelsError) -> BlockSparseAttention {
        let plan = try BlockSparseAttention(
            shape, mask: mask, modifiers: configuration.modifiers, instructionSet: instructionSet)
        return try plan.skippingPV(
            below: (0..<shape.queryHeads).map { heads[heads.count == 1 ? 0 : $0].naturalSkipThreshold })
    }
}

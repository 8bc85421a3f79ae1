public import SparseKernels

/// SLA, sparse-linear attention (2025, arXiv 2509.24006): exact attention over the few blocks that matter, linear attention
/// over those that matter a little, and nothing over the rest.
///
/// ```swift
/// let sla = try SparseLinearAttention(shape, projection: projection)
/// let result = try sla(query: q, key: k, value: v)
/// print(result.density, result.marginal.density)
/// ```
///
/// The output is o_s + W·o_l + b, where o_s is softmax attention over the critical blocks, o_l the linear branch over the marginal
/// ones, and W and b the projection. Without a projection, or with one of zeros as in a model that was not trained, the linear
/// branch is left out: the output is exactly block-sparse attention over the critical blocks.
///
/// Blocks are ranked by the products of mean queries and mean keys, the latter less the mean of all keys.
///
/// - Attention is not causal: the linear branch has no order of tokens.
/// - The LSE of results is that of o_s.
/// - A row of blocks with a NaN among its scores is critical as a whole. The mean of all keys carries a key that is not finite
///   into all scores of its head.
/// - Results are bitwise equal for every number of threads.
/// - Source: thu-ml/SLA, `get_block_map` and `SparseLinearAttention`, of the branches `main` and `SLA-1`; section 3 of the paper
///   for the three classes, which neither branch has.
/// - Complexity: per head, selection tokens · headDim + blocks² · headDim; attention as ``SparseLinearOperator``.
public struct SparseLinearAttention: PredictiveAttention {
    public let shape: AttentionShape
    public let configuration: SparseLinearConfiguration
    /// The layer after the linear branch; nil stands for zeros.
    public let projection: SparseLinearProjection?
    public let grid: BlockGrid
    public let instructionSet: InstructionSet

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - configuration: the blocks, their classes and the feature map.
    ///   - projection: the layer after the linear branch; nil means zeros.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for a block size below 1 or a projection that is not of `valueDim` channels, `.invalidArgument`
    ///   for a fraction outside 0…1 or a scale that is not finite, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, _ configuration: SparseLinearConfiguration = SparseLinearConfiguration(),
        projection: SparseLinearProjection? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try configuration.rule.validate()
        if let scale = configuration.softmaxScale {
            try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        }
        if let projection {
            try require(
                projection.bias.count == shape.valueDim, .invalidShape, "projection",
                expected: "of \(shape.valueDim) channels (valueDim)", actual: "\(projection.bias.count)")
        }
        self.shape = shape
        self.configuration = configuration
        self.projection = projection
        grid = try BlockGrid(
            queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: configuration.queryBlockSize,
            keyBlockSize: configuration.keyBlockSize, isCausal: false)
        self.instructionSet = try InstructionSet.resolve(instructionSet)
    }

    /// Puts the blocks of every query head into classes.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SparseLinearBlocks {
        let scores = try scores(query: query, key: key, on: pool)
        let (rule, columns) = (configuration.rule, grid.blockColumns)
        let critical = try BlockSelection(.topK(rule.criticalBlocks(of: columns)))(scores, on: pool)
        let negligible = rule.negligibleBlocks(of: columns)
        if negligible == 0 { return try SparseLinearBlocks(critical: critical) }
        // The order of both selections is the same, by score and then by column, so critical blocks are among the kept ones.
        let kept = try BlockSelection(.topK(columns - negligible))(scores, on: pool)
        return try SparseLinearBlocks(critical: critical, negligible: SparseLinearBlocks(critical: kept).marginal)
    }

    /// The scores by which blocks are ranked: mean query · (mean key − mean of all keys), without a factor.
    ///
    /// Means of released rules are rounded to the element types of the operands; the scores themselves are not.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func scores<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        let queries = try pooledQuery(query, on: pool)
        let keys = try pooledKey(key, on: pool)
        // Each mean is a token of its own here.
        let means = try AttentionShape(
            queryLength: grid.blockRows, keyLength: grid.blockColumns, queryHeads: shape.queryHeads, kvHeads: shape.kvHeads,
            headDim: shape.headDim)
        let scores = try MeanPoolScoring(
            means, grid: BlockGrid(means, blockSize: 1, isCausal: false), instructionSet: instructionSet)
        return try BlockScores(grid: grid, values: scores(query: queries, key: keys, on: pool).values)
    }

    /// The means of the blocks of queries, `[queryHeads, blockRows, headDim]`.
    /// - Throws: `.invalidShape` when the operand disagrees with the shape.
    public func pooledQuery<Q: AttentionElement>(
        _ query: TensorView<Q>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try shape.check(query: query.geometry)
        return try PooledBlocks.means(
            query, blocks: grid.query, isCentred: false, roundsAsReleased: configuration.rule.isReleased,
            instructionSet: instructionSet, on: pool)
    }

    /// The means of the blocks of keys, less the mean of all keys, `[kvHeads, blockColumns, headDim]`.
    /// - Throws: `.invalidShape` when the operand disagrees with the shape.
    public func pooledKey<K: AttentionElement>(
        _ key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try shape.check(key: key.geometry)
        return try PooledBlocks.means(
            key, blocks: grid.key, isCentred: true, roundsAsReleased: configuration.rule.isReleased,
            instructionSet: instructionSet, on: pool)
    }

    /// The plan of attention over classified blocks, which may come from elsewhere.
    /// - Throws: `.invalidShape` for blocks over other lengths, or neither 1, `kvHeads` nor `queryHeads` heads.
    public func attention(over selected: SparseLinearBlocks) throws(SparseKernelsError) -> SparseLinearOperator {
        try SparseLinearOperator(
            shape, blocks: selected, rule: configuration.rule, featureMap: configuration.featureMap,
            softmaxScale: configuration.softmaxScale, projection: projection, instructionSet: instructionSet)
    }
}

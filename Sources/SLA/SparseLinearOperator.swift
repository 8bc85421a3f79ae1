public import SparseKernels

/// Attention over blocks in classes: exact over the critical ones, plus the projected linear branch over the marginal ones.
///
///     o_s = softmax(scale·q·Kᵀ)·V over critical keys          o_l = φ(q)·H / (φ(q)·Z + ε)          o = o_s + W·o_l + b
///     H = Σ φ(k_j)·v_jᵀ,  Z = Σ φ(k_j) over marginal keys
///
/// The sums of every key block are computed once, and those of a row of blocks are a matrix product: the 0/1 matrix of its marginal
/// blocks times the sums of all blocks. The released kernel subtracts those of the kept blocks from the total, which cancels
/// when these dominate; a product of large matrices is also faster than sums of scattered blocks.
///
/// - A query without marginal keys, or whose φ(q)·Z + ε is 0, has o_l = 0.
/// - A key block whose sums are not finite makes o_l NaN in the rows of blocks that see it and in no others.
/// - The LSE is that of o_s: exact attention over the critical keys.
/// - Results are bitwise equal for every number of threads.
/// - Source: thu-ml/SLA, `SparseLinearAttention.forward`; section 3 of arXiv 2509.24006.
/// - Complexity: per query head, `critical pairs · (headDim + valueDim)` + 2 · tokens · headDim · valueDim + blockRows ·
///   blockColumns · headDim · valueDim multiply-adds. No matrix of tokens × tokens is made.
/// - Memory: the sums of one key/value head, blockColumns · headDim · (valueDim + 1) floats, and about as much as 8 MiB for a
///   group of rows; with a 16-bit output and a projection also a `Float` copy of the output. Scratch per thread: about 1.5 MB
///   and (2 · headDim + valueDim) floats per token of a key block.
public struct SparseLinearOperator: AttentionOperator {
    public let shape: AttentionShape
    public let blocks: SparseLinearBlocks
    public let rule: SparseLinearRule
    public let featureMap: LinearFeatureMap
    /// The layer after the linear branch; nil when it is zero, and then the linear branch is not computed.
    public let projection: SparseLinearProjection?
    /// Exact attention over the critical blocks.
    public let sparse: BlockSparseAttention
    public var instructionSet: InstructionSet { sparse.instructionSet }

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - blocks: the classes, over the tokens of the shape, with 1, `kvHeads` or `queryHeads` heads.
    ///   - rule: says which keys the linear branch sees, and ε. Its fractions are not used.
    ///   - featureMap: φ.
    ///   - softmaxScale: factor on q·k of the exact branch; nil means 1/√headDim.
    ///   - projection: W and b; nil means zeros.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` when blocks or projection disagree with the shape, `.invalidArgument` for a scale that is not
    ///   finite, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, blocks: SparseLinearBlocks, rule: SparseLinearRule = .paper,
        featureMap: LinearFeatureMap = .softmax, softmaxScale: Float? = nil, projection: SparseLinearProjection? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        if let projection {
            try require(
                projection.bias.count == shape.valueDim, .invalidShape, "projection",
                expected: "of \(shape.valueDim) channels (valueDim)", actual: "\(projection.bias.count)")
        }
        self.shape = shape
        self.blocks = blocks
        self.rule = rule
        self.featureMap = featureMap
        self.projection = projection.flatMap { $0.isZero ? nil : $0 }
        sparse = try BlockSparseAttention(
            shape, mask: blocks.critical, modifiers: ScoreModifiers(softmaxScale: softmaxScale), instructionSet: instructionSet)
    }

    /// The fraction of pairs whose attention is exact.
    public var density: Double { sparse.density }

    /// Computes attention into the caller's memory. See `AttentionOperator.run`.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        guard let projection else {
            try sparse.run(query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
            return
        }
        // The address is used only until this call returns, which owns the view or lends it to the exact branch.
        let rows = OutputRows(&output)
        let branch = LinearBranch(self, query: query, key: key, value: value)
        if rows.isSinglePrecision {
            try sparse.run(query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
            try branch.run(LinearBranch.Target(output: rows, projection: projection, base: .output), on: pool)
            return
        }
        // Sums are rounded to 16 bits once, so the exact part is kept in single precision. Its call checks the shapes of all
        // operands but the output.
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        var exact = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
        try sparse.run(
            query: query, key: key, value: value, output: exact.mutableView(named: "output"), logSumExp: logSumExp, on: pool)
        try branch.run(LinearBranch.Target(output: rows, projection: projection, base: .tensor(exact)), on: pool)
    }

    /// The linear branch alone, before the projection: o_l, `[queryHeads, queryLength, valueDim]`. Projections are fitted to it.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func linear<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var result = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
        var output = try result.mutableView(named: "output")
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry, logSumExpCount: nil)
        let branch = LinearBranch(self, query: query, key: key, value: value)
        try branch.run(LinearBranch.Target(output: OutputRows(&output), projection: nil, base: .none), on: pool)
        return result
    }

    /// The linear branch of tensors `[heads, tokens, channels]`.
    /// - Throws: as `linear` with views, and `.invalidShape` for another rank.
    public func linear<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try linear(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"), on: pool)
    }
}

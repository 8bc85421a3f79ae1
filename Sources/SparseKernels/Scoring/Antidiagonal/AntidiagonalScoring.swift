internal import KernelInterface

/// The arithmetic of a scoring operator.
public enum ScoringPrecision: String, Hashable, Sendable, CaseIterable {
    /// Single precision throughout.
    case float32
    /// Products of 6-bit codes (−31…31, one scale per row of a product), summed exactly in integers. The softmax is in `Float`.
    ///
    /// On recorded captures these masks keep the attention mass of the float masks to 0.02 percentage points at equal density.
    case int6
}

/// XAttention's estimate of the attention mass of every block: softmax over strided antidiagonals, summed over blocks.
///
/// Tokens are taken in groups of `stride`. The score of query group i and key group j is the sum over the antidiagonal of their
/// stride × stride square,
///
///     x_ij = softmaxScale / (stride · norm) · Σ_s q[i·stride + stride − 1 − s] · k[j·stride + s]
///
/// and the score of a block is Σ softmax_j(x_ij) over its groups, so that a full row of blocks adds up to its number of query
/// groups. A stride of 1 gives the exact attention mass of every block.
///
/// - A causal group i sees the key groups up to the one with the position of its last query: j ≤ i + ⌈(keyLength − queryLength)
///   / stride⌉. With more queries than keys the first groups may see none and have no mass. The last group may have fewer
///   tokens than `stride`; missing tokens count as zeros.
/// - Query head h reads key head h / (`queryHeads` / `kvHeads`).
/// - Results are bitwise equal for every number of threads.
/// - NaN and infinities make the rows that see them NaN.
/// - Source: XAttention (Xu et al., ICML 2025) §2.1 and algorithm 1; `flat_group_gemm_fuse_reshape` and
///   `softmax_fuse_block_sum` of the released code. Scores and block sums are `Float` here and have 16 bits there.
/// - Complexity: `queryHeads · queryLength · keyLength · headDim / stride` multiply-adds, half of them when causal.
/// - Scratch: `scratchByteCount` per thread, kept by the pool. With `.int6` also one byte per key channel during the call.
public struct AntidiagonalScoring: Sendable {
    public let shape: AttentionShape
    public let grid: BlockGrid
    /// Tokens per group.
    public let stride: Int
    public let precision: ScoringPrecision
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet
    /// Factor on the sums of products: softmaxScale / (stride · norm).
    let scale: Float
    let kernels: any KernelTable.Type
    /// The number of query tokens that count; later groups have no mass. Below `queryLength` for zero-padded operands.
    package var scoredQueryTokens: Int

    /// - Parameters:
    ///   - grid: uniform blocks over the tokens of `shape`, whose sizes are multiples of `stride`.
    ///   - norm: a further divisor of the scores; 1 in every released configuration.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - precision: the arithmetic of the products.
    ///   - shape: the sizes of the operands.
    ///   - stride: tokens per group.
    /// - Throws: `.invalidShape` when grid and shape disagree, `.invalidArgument` for a stride outside 1…1024 or that does not
    ///   divide the block sizes and for factors that are not finite or not positive, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, grid: BlockGrid, stride: Int = 16, norm: Float = 1, softmaxScale: Float? = nil,
        precision: ScoringPrecision = .int6, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            grid.query.length == shape.queryLength && grid.key.length == shape.keyLength, .invalidShape, "grid",
            expected: "over \(shape.queryLength) × \(shape.keyLength) tokens",
            actual: "\(grid.query.length) × \(grid.key.length)")
        try require(stride >= 1 && stride <= 1024, .invalidArgument, "stride", expected: "in 1...1024", actual: "\(stride)")
        for (name, partition) in [("grid.query", grid.query), ("grid.key", grid.key)] {
            try require(
                partition.blockSize.map { $0 % stride == 0 } ?? false, .invalidArgument, name,
                expected: "equal blocks whose size is a multiple of stride (\(stride))",
                actual: partition.blockSize.map { "blocks of \($0)" } ?? "blocks of various sizes")
        }
        try require(norm.isFinite && norm > 0, .invalidArgument, "norm", expected: "finite and positive", actual: "\(norm)")
        if let softmaxScale {
            try require(
                softmaxScale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(softmaxScale)")
        }
        self.shape = shape
        self.grid = grid
        self.stride = stride
        self.precision = precision
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        scale = (softmaxScale ?? 1 / Float(shape.headDim).squareRoot()) / (Float(stride) * norm)
        scoredQueryTokens = shape.queryLength
    }

    /// The number of query groups, and of key groups. The last group may be partial.
    var queryGroups: Int { (shape.queryLength + stride - 1) / stride }
    var keyGroups: Int { (shape.keyLength + stride - 1) / stride }
    var groupsPerQueryBlock: Int { grid.query.blockSize! / stride }
    var groupsPerKeyBlock: Int { grid.key.blockSize! / stride }

    /// Query blocks per task. Two panels of groups use a step of keys twice while it is in the second-level cache, where their
    /// packed queries (2 · 24 · 1024 floats are 192 KiB) leave it room. One panel where two give fewer than 32 tasks.
    var taskBlocks: Int {
        let panelBlocks = kernels.sizes.panelWidth / groupsPerQueryBlock
        let tasks = shape.queryHeads * grid.blockRows / max(1, 2 * panelBlocks)
        return max(1, tasks >= 32 ? 2 * panelBlocks : panelBlocks)
    }

    /// The number of key groups that query group 0 sees; below 1 when only later groups see any.
    var visibleTo: Int {
        if !grid.isCausal { return 1 << 60 }
        // ⌈offset / stride⌉; division rounds towards zero, which is up for a negative offset.
        let offset = grid.queryOffset
        return (offset > 0 ? (offset + stride - 1) / stride : offset / stride) + 1
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        let groups = min(queryGroups, taskBlocks * groupsPerQueryBlock)
        let scratch = AntidiagonalScratch(
            headDim: shape.headDim, stride: stride, groups: groups, keyGroups: keyGroups,
            groupsPerKeyBlock: groupsPerKeyBlock, usesCodes: precision == .int6)
        return scratch.byteCount
    }

    /// Scores all blocks: `[queryHeads, blockRows, blockColumns]`, with 0 for unreachable blocks.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan.
    public func run<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        var scores = try BlockScores(grid: grid, heads: shape.queryHeads)
        if grid.blockRows == 0 || grid.blockColumns == 0 { return scores }
        let codes = try precision == .int6 ? KeyCodes(self, AttentionOperand(key), on: pool) : nil
        var sums = scores.values.mutableSpan
        sums.withUnsafeMutableBufferPointer { sums in
            let call = AntidiagonalScoringCall(
                plan: self, query: AttentionOperand(query), key: AttentionOperand(key), codes: codes?.codePointer,
                scales: codes?.scalePointer, sums: sums.baseAddress!)
            call.run(on: pool)
        }
        withExtendedLifetime(codes) {}
        return scores
    }

    /// Scores of tensors `[heads, tokens, headDim]`.
    /// - Throws: the errors of `run(query:key:on:)`.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try run(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }
}

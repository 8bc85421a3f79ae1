internal import KernelInterface

/// Exact attention over all keys that the mask allows: softmax(scale·Q·Kᵀ)·V, tiled, without an N×N matrix.
///
/// Make one plan per shape and run it as often as needed. A plan is immutable and may be used from several threads.
///
/// ```swift
/// let shape = try AttentionShape(queryLength: 4096, keyLength: 4096, queryHeads: 8, kvHeads: 2, headDim: 64)
/// let attention = try DenseAttention(shape, mask: .causal)
/// let state = try attention(query: q, key: k, value: v)   // state.output, state.logSumExp
/// ```
///
/// - Non-finite input propagates, as in IEEE arithmetic, into the rows that see it and into no other row.
/// - A query that sees no key gives output 0 and LSE −∞.
/// - Results are bitwise equal for every number of threads.
/// - Source: online softmax as in FlashAttention-2 (Dao, 2023, algorithm 1), with queries along the vector lanes.
/// - Complexity: `queryHeads · visible pairs · (headDim + valueDim)` multiply-adds.
/// - Scratch: `scratchByteCount` per thread, kept by the pool; later calls allocate nothing.
public struct DenseAttention: AttentionOperator {
    public let shape: AttentionShape
    public let mask: AttentionMask
    /// The keys of each query, in place of a mask; nil for a plan with a mask.
    public let limits: KeyLimits?
    public let modifiers: ScoreModifiers
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    let softmaxScale: Float
    /// How `run` is cut into tasks, without and with a bias.
    let tiling: DenseTiling
    let plainTiling: DenseTiling
    /// The limits of the mask for query 0.
    let diagonals: (from: Int, to: Int)
    /// Bytes from the start of a task's scratch to the limits of its rows.
    let limitOffset: Int

    /// Makes the plan. A nil instruction set means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a scale, cap or slope that is not finite, and for a window below 1 or with a side below
    ///   0; `.invalidShape` for a wrong number of slopes; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, mask: AttentionMask = .full, modifiers: ScoreModifiers = ScoreModifiers(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try mask.validate()
        try self.init(shape, mask, limits: nil, modifiers, instructionSet)
    }

    /// Makes a plan whose queries see one range of keys each, over operands of any kind.
    ///
    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - limits: the keys of each query. `mask` is `.full` then.
    ///   - modifiers: how scores become probabilities.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` unless there is one range per query, and for 2³¹ keys or more; `.invalidArgument` for a range
    ///   that leaves the keys; the errors of ``init(_:mask:modifiers:instructionSet:)``.
    public init(
        _ shape: AttentionShape, limits: KeyLimits, modifiers: ScoreModifiers = ScoreModifiers(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try limits.validate(shape)
        try self.init(shape, .full, limits: limits, modifiers, instructionSet)
    }

    private init(
        _ shape: AttentionShape, _ mask: AttentionMask, limits: KeyLimits?, _ modifiers: ScoreModifiers,
        _ instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        try modifiers.validate(queryHeads: shape.queryHeads)
        self.shape = shape
        self.mask = mask
        self.limits = limits
        self.modifiers = modifiers
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        softmaxScale = modifiers.softmaxScale ?? 1 / Float(shape.headDim).squareRoot()
        diagonals = mask.limits(shape)
        var visible = 0..<shape.keyLength
        if shape.queryLength > 0 {
            let (first, last) = (mask.keys(ofQuery: 0, shape), mask.keys(ofQuery: shape.queryLength - 1, shape))
            visible = min(first.lowerBound, last.lowerBound)..<max(first.upperBound, last.upperBound)
        }
        if let limits {
            let seen = limits.ranges.filter { !$0.isEmpty }
            let low = seen.reduce(shape.keyLength) { min($0, $1.lowerBound) }
            visible = low..<max(low, seen.reduce(0) { max($0, $1.upperBound) })
        }
        // Slopes and sinks are those of one head, and so is a bias.
        tiling = DenseTiling(
            shape, visible: visible, stacks: modifiers.aliBiSlopes == nil && modifiers.sinkLogits == nil, kernels)
        plainTiling = DenseTiling(shape, visible: visible, stacks: false, kernels)
        limitOffset =
            AttentionScratch(
                headDim: shape.headDim, valueDim: shape.valueDim, queryRows: max(tiling.rows(shape), plainTiling.rows(shape)),
                stagesKeys: true, stagesValues: true
            ).byteCount
    }

    /// Query rows of a task: a multiple of the panel width, chosen to leave enough tasks to keep 16 threads busy to the end.
    ///
    /// Keys and values are read from the caches once per block of queries. With 192 rows these reads, and the conversion of
    /// 16-bit keys and values, cost next to nothing beside the products; 96 rows cost about 1%. Packed queries and accumulators
    /// of 192 rows take 192 KiB at 128 channels, which leaves room for a key block in a 512 KiB second-level cache. The choice
    /// depends on shape and level only, never on the threads.
    static func queryBlock(_ shape: AttentionShape, _ kernels: any KernelTable.Type) -> Int {
        func blocks(_ rows: Int) -> Int { shape.queryHeads * ((shape.queryLength + rows - 1) / rows) }
        let rows = blocks(192) >= 128 ? AttentionScratch.maximumQueryRows : blocks(96) >= 16 ? 96 : 48
        return rows / kernels.sizes.panelWidth * kernels.sizes.panelWidth
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { limitOffset + 2 * AttentionScratch.limitStride * 4 }

    /// Score entries that the mask or the limits leave, over all query heads.
    public var visiblePairs: Int {
        if let limits { return limits.ranges.reduce(0) { $0 + $1.count } * shape.queryHeads }
        let (rows, columns) = (shape.queryLength, shape.keyLength)
        let pairs =
            pairsBelowDiagonal(rows: rows, columns: columns, offset: diagonals.to)
            - pairsBelowDiagonal(rows: rows, columns: columns, offset: diagonals.from)
        return pairs * shape.queryHeads
    }

    /// The keys that a query sees.
    func keys(ofQuery query: Int) -> Range<Int> { limits.map { $0.ranges[query] } ?? mask.keys(ofQuery: query, shape) }

    /// Whether no key is hidden from any query by its position.
    var showsEverything: Bool { limits == nil && mask == .full }

    // MARK: - Run

    /// Computes attention into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. All operands may have any strides with adjacent channels.
    ///   - key: `kvHeads` × `keyLength` × `headDim`. `Float` rows that are adjacent are read in place; others are copied by
    ///     blocks into scratch.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - bias: 1 or `queryHeads` heads × `queryLength` × `keyLength`, added to the scores. −∞ hides a key, whatever its rows
    ///     contain.
    ///   - output: `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials of each row, `[queryHeads, queryLength]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, bias: TensorView<Float>,
        output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            bias.heads == 1 || bias.heads == shape.queryHeads, .invalidShape, "bias.heads",
            expected: "1 or queryHeads (\(shape.queryHeads))", actual: "\(bias.heads)")
        try shape.check("bias", bias.geometry, heads: bias.heads, tokens: shape.queryLength, channels: shape.keyLength)
        let buffers = try AttentionBuffers(
            shape, query: query, key: key, value: value, output: output, logSumExp: logSumExp)
        DenseAttentionCall(plan: self, buffers: buffers, bias: AttentionOperand(bias)).run(on: pool)
    }

    /// Computes attention without a bias. See ``run(query:key:value:bias:output:logSumExp:on:)``.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let buffers = try AttentionBuffers(
            shape, query: query, key: key, value: value, output: output, logSumExp: logSumExp)
        DenseAttentionCall(plan: self, buffers: buffers).run(on: pool)
    }
}

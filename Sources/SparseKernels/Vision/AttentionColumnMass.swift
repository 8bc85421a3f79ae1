internal import KernelInterface

/// The attention mass of every key: the sum of its probabilities over chosen queries and heads.
///
///     mass[k] = Σ_r p[r, k]      p[r, k] = e^(softmaxScale · q_r · k_k − LSE_r), over the keys that query r sees
///
/// Attention itself never has the matrix of probabilities. This is a second pass, which computes the scores of the chosen queries
/// again. With the LSE that attention returned it computes them once, without it twice.
///
/// ```swift
/// let mass = try AttentionColumnMass(shape, queries: [shape.queryLength - 1], reduction: .meanOfHeads)
/// let scores = try mass(query: q, key: k)      // [1, keyLength]; sums to 1
/// ```
///
/// - Non-finite input propagates, as in IEEE arithmetic, into the keys that the row with it sees, and into no other key.
/// - A query that sees no key adds nothing.
/// - Results are bitwise equal for every number of threads.
/// - Source: the ranking of PyramidDrop (arXiv 2410.17247) section 3.2 and FrameFusion (arXiv 2501.01986) section 3.3.
/// - Complexity: `heads · visible pairs · headDim` multiply-adds at the speed of attention, and twice that without an LSE.
/// - Scratch: `scratchByteCount` per thread; per call 8 bytes per chosen query and head, and as much again, up to 64 times for few
///   queries, without an LSE. Later calls allocate nothing.
public struct AttentionColumnMass: Sendable {
    /// What happens to the sums of the heads.
    public enum Reduction: Hashable, Sendable {
        /// Every head has its own row of the result.
        case none
        /// One row: the mean of the heads.
        case meanOfHeads
    }

    public let shape: AttentionShape
    /// The queries whose probabilities are summed, in the order of the call.
    public let queries: [Int]
    /// The query heads that take part.
    public let heads: [Int]
    public let reduction: Reduction
    /// The factor on q·k.
    public let softmaxScale: Float
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    /// The chosen queries as rows of a head.
    let tokens: [Int32]
    /// The first key that each chosen query sees, and the end of these keys.
    let limits: (from: [Int32], to: [Int32])
    let tiling: ColumnMassTiling

    /// Makes the plan for a mask.
    ///
    /// - Parameters:
    ///   - shape: the sizes; `valueDim` is not used. Query i has position i + `keyLength` − `queryLength`.
    ///   - queries: the queries whose probabilities are summed, each at most once; nil means all.
    ///   - heads: the query heads, each at most once; nil means all.
    ///   - mask: the keys that a query sees.
    ///   - reduction: whether heads have rows of their own.
    ///   - softmaxScale: the factor on q·k; 1/√headDim unless given.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a query or head that the shape does not have or that is named twice, a mask out of range, and a
    ///   scale that is not finite; `.invalidShape` for 2³¹ − 1 keys or more; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, queries: [Int]? = nil, heads: [Int]? = nil, mask: AttentionMask = .causal,
        reduction: Reduction = .none, softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try mask.validate()
        try self.init(
            shape, queries, heads, { mask.keys(ofQuery: $0, shape) }, reduction, softmaxScale, instructionSet)
    }

    /// Makes the plan for queries that see one range of keys each.
    ///
    /// - Parameters: those of ``init(_:queries:heads:mask:reduction:softmaxScale:instructionSet:)``; `limits` has one range per query
    ///   of the shape, chosen or not.
    /// - Throws: `.invalidShape` unless there is one range per query, `.invalidArgument` for a range that leaves the keys, and the
    ///   errors of the initialiser with a mask.
    public init(
        _ shape: AttentionShape, queries: [Int]? = nil, heads: [Int]? = nil, limits: KeyLimits, reduction: Reduction = .none,
        softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try limits.validate(shape)
        try self.init(shape, queries, heads, { limits.ranges[$0] }, reduction, softmaxScale, instructionSet)
    }

    private init(
        _ shape: AttentionShape, _ queries: [Int]?, _ heads: [Int]?, _ keys: (Int) -> Range<Int>, _ reduction: Reduction,
        _ softmaxScale: Float?, _ instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        let scale = softmaxScale ?? 1 / Float(shape.headDim).squareRoot()
        try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        // Kernels compare 32-bit numbers.
        try require(
            shape.keyLength < Int(Int32.max), .invalidShape, "keyLength", expected: "below 2³¹ − 1",
            actual: "\(shape.keyLength)")
        self.shape = shape
        self.queries = try distinct(queries, below: shape.queryLength, named: "queries")
        self.heads = try distinct(heads, below: shape.queryHeads, named: "heads")
        self.reduction = reduction
        self.softmaxScale = scale
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        tokens = self.queries.map { Int32(truncatingIfNeeded: $0) }
        let ranges = self.queries.map(keys)
        limits = (
            ranges.map { Int32(truncatingIfNeeded: $0.lowerBound) }, ranges.map { Int32(truncatingIfNeeded: $0.upperBound) }
        )
        tiling = ColumnMassTiling(shape, queries: self.queries.count, heads: self.heads, reduction)
    }

    /// Rows of the result: one per head, or one.
    public var rows: Int { reduction == .none ? heads.count : 1 }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { ColumnMassCall.scratchByteCount(headDim: shape.headDim) }

    // MARK: - Run

    /// Sums the probabilities into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`, of which the chosen rows are read. All operands may have any strides with
    ///     adjacent channels.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - logSumExp: the LSE of each row over the same keys with the same scale, `[queryHeads, queryLength]`, as attention returns
    ///     it; nil computes it.
    ///   - mass: ``rows`` × `keyLength`, overwritten. Row i is that of `heads[i]`, or the mean.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, logSumExp: MatrixView<Float>? = nil,
        into mass: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        var (known, knownStride) = (UnsafePointer<Float>?.none, 0)
        if let logSumExp {
            try requireMatrix(
                "logSumExp", rows: logSumExp.rows, columns: logSumExp.columns, expected: (shape.queryHeads, shape.queryLength))
            known = RowOperand(logSumExp).base.assumingMemoryBound(to: Float.self)
            knownStride = logSumExp.rowStride
        }
        try requireMatrix("mass", rows: mass.rows, columns: mass.columns, expected: (rows, shape.keyLength))
        if rows == 0 || shape.keyLength == 0 { return }
        // Pointers are used only until this call returns; operands and results outlive it.
        ColumnMassCall(
            plan: self, query: AttentionOperand(query), key: AttentionOperand(key), known: known,
            knownStride: knownStride, mass: RowTarget(&mass)
        ).run(on: pool)
    }

    /// Sums the probabilities of tensors `[heads, tokens, headDim]` into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views.
    public func run<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, logSumExp: Tensor<Float>? = nil, into mass: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let target = try mass.mutableMatrixView(named: "mass")
        if let logSumExp {
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"),
                logSumExp: logSumExp.matrixView(named: "logSumExp"), into: target, on: pool)
        } else {
            try run(query: query.view(named: "query"), key: key.view(named: "key"), into: target, on: pool)
        }
    }

    /// Sums the probabilities of tensors `[heads, tokens, headDim]`.
    /// - Returns: `[rows, keyLength]`.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, logSumExp: Tensor<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var mass = try Tensor<Float>(zeros: [rows, shape.keyLength])
        try run(query: query, key: key, logSumExp: logSumExp, into: &mass, on: pool)
        return mass
    }
}

/// The indices that a list names, or all: each below `count`, and none twice.
private func distinct(_ list: [Int]?, below count: Int, named name: String) throws(SparseKernelsError) -> [Int] {
    guard let list else { return Array(0..<count) }
    var isSeen = [Bool](repeating: false, count: count)
    for (position, index) in list.enumerated() {
        try require(
            index >= 0 && index < count && !isSeen[index], .invalidArgument, "\(name)[\(position)]",
            expected: "an index in 0..<\(count) that was not named before", actual: "\(index)")
        isSeen[index] = true
    }
    return list
}

internal import KernelInterface

/// Estimates the attention mass of every key and of every distance from the last queries of a sequence.
///
/// The last w = min(`lastQueries`, `queryLength`, `keyLength`) queries attend to all keys. The sums of their probabilities P
/// along columns and diagonals say which keys and which distances the whole head attends to:
///
///     P = softmax(softmaxScale · Q_last · Kᵀ)     causal, a triangle over the last w keys
///     vertical[c] = Σ_r P[r, c]                   slash[t] = Σ_r P[r, position_r − t]
///
/// - Non-finite input propagates, as in IEEE arithmetic, into the scores of the head that sees it.
/// - Results are bitwise equal for every number of threads.
/// - Source: MInference (arXiv 2407.02490) algorithm 2; `vertical_and_slash_kernel` of microsoft/MInference.
/// - Complexity: `heads · w · keyLength · headDim` multiply-adds, at the speed of `GEMM`. One head is one task of the pool.
/// - Scratch: `scratchByteCount` per thread, which holds the w × `keyLength` scores of a head.
public struct VerticalSlashScoring: Sendable {
    public let shape: AttentionShape
    /// The number of query rows that vote, w.
    public let lastQueries: Int
    /// The factor on q·k.
    public let softmaxScale: Float
    /// The query heads that are scored.
    public let heads: [Int]
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    private let layout: VerticalSlashScratch

    /// The most query rows that may vote, which is one block of the matrix product.
    public static let maximumLastQueries = GEMMScratch.rowBlock

    /// - Parameters:
    ///   - shape: the sizes; the sequences end together. Queries before the first key see nothing and do not vote.
    ///   - lastQueries: the number of queries that vote, clamped to `queryLength` and `keyLength`.
    ///   - softmaxScale: the factor on q·k; 1/√headDim unless given.
    ///   - heads: the query heads to score, in any order; nil scores all.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for `lastQueries` outside 1…`maximumLastQueries`, a scale that is not finite or a head that
    ///   the shape does not have, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, lastQueries: Int = 64, softmaxScale: Float? = nil, heads: [Int]? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            lastQueries >= 1 && lastQueries <= Self.maximumLastQueries, .invalidArgument, "lastQueries",
            expected: "in 1...\(Self.maximumLastQueries)", actual: "\(lastQueries)")
        let scale = softmaxScale ?? 1 / Float(shape.headDim).squareRoot()
        try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        for head in heads ?? [] {
            try require(
                head >= 0 && head < shape.queryHeads, .invalidArgument, "heads",
                expected: "query heads in 0..<\(shape.queryHeads)", actual: "\(head)")
        }
        self.shape = shape
        self.lastQueries = min(lastQueries, shape.queryLength, shape.keyLength)
        self.softmaxScale = scale
        self.heads = heads ?? Array(0..<shape.queryHeads)
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        layout = VerticalSlashScratch(rows: self.lastQueries, keys: shape.keyLength, headDim: shape.headDim)
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { layout.byteCount }

    /// Scores operands in any layout.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> VerticalSlashScores {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        var vertical = try Tensor<Float>(zeros: [heads.count, shape.keyLength])
        var slash = try Tensor<Float>(zeros: [heads.count, shape.keyLength])
        // Pointers are used only until this call returns; operands and results outlive it.
        let (queries, keys) = (AttentionOperand(query), AttentionOperand(key))
        var verticals = vertical.mutableSpan
        var slashes = slash.mutableSpan
        verticals.withUnsafeMutableBufferPointer { verticals in
            slashes.withUnsafeMutableBufferPointer { slashes in
                // Without a query that sees a key, or without a head, there is no mass.
                guard lastQueries > 0, let vertical = verticals.baseAddress, let slash = slashes.baseAddress else { return }
                let call = Call(
                    plan: self, kernels: instructionSet.kernels, query: queries, key: keys, vertical: vertical, slash: slash)
                call.run(on: pool)
            }
        }
        return try VerticalSlashScores(vertical: vertical, slash: slash)
    }

    /// Scores tensors `[heads, tokens, headDim]`.
    /// - Throws: the errors of the call with views.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> VerticalSlashScores {
        try self(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }

    /// The data that the tasks of one run share. A task is one head.
    private struct Call: PoolCall {
        let plan: VerticalSlashScoring
        let kernels: any KernelTable.Type
        let query: AttentionOperand
        let key: AttentionOperand
        let vertical: UnsafeMutablePointer<Float>
        let slash: UnsafeMutablePointer<Float>

        func run(on pool: WorkerPool) {
            let shape = plan.shape
            pool.run(
                self, tasks: plan.heads.count,
                work: plan.heads.count * plan.lastQueries * shape.keyLength * shape.headDim,
                scratchByteCount: plan.scratchByteCount)
        }

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let (layout, keys) = (plan.layout, plan.shape.keyLength)
            let sums = VerticalSlashSums(layout: layout, scratch: scratch, kernels: kernels)
            sums.clear()
            let head = plan.heads[task]
            let queries = query.rows(head: head, from: plan.shape.queryLength - layout.rows)
            kernels.stageRows(queries, first: 0, count: layout.rows, channels: layout.headDim, into: sums.query)
            for index in 0..<layout.rows * layout.headDim { sums.query[index] *= plan.softmaxScale }
            let rows = key.rows(head: head / plan.shape.queryHeadsPerKVHead)
            for first in stride(from: 0, to: keys, by: VerticalSlashScratch.columnBlock) {
                sums.scores(of: rows, columns: first..<min(keys, first + VerticalSlashScratch.columnBlock))
            }
            sums.exponentiate()
            sums.add()
            for index in 0..<keys {
                vertical[task * keys + index] = sums.vertical[index]
                slash[task * keys + index] = sums.diagonal[keys - 1 - index]
            }
        }
    }
}

/// The scores of every key and every distance of some heads, from the last queries.
public struct VerticalSlashScores: Sendable, Equatable {
    /// `[heads, keyLength]`: the attention mass of every key.
    public let vertical: Tensor<Float>
    /// `[heads, keyLength]`: the attention mass of every distance t = position of the query − key.
    public let slash: Tensor<Float>

    public var heads: Int { vertical.shape[0] }
    public var keyLength: Int { vertical.shape[1] }

    /// - Throws: `.invalidShape` unless both are `[heads, keyLength]`.
    public init(vertical: Tensor<Float>, slash: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            vertical.shape.count == 2, .invalidShape, "vertical", expected: "[heads, keyLength]", actual: "\(vertical.shape)")
        try require(
            slash.shape == vertical.shape, .invalidShape, "slash", expected: "\(vertical.shape), as vertical",
            actual: "\(slash.shape)")
        self.vertical = vertical
        self.slash = slash
    }
}

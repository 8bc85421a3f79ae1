internal import KernelInterface

/// Exact attention over the keys that a pattern keeps. Each head is dense, streaming, block-sparse or has runs of keys.
///
/// The plan turns patterns into a list of tasks once, and `run` costs only what the kept keys cost. Make one plan per mask and
/// run it as often as the mask is valid. A plan is immutable and may be used from several threads.
///
/// ```swift
/// let grid = try BlockGrid(shape, blockSize: 128, isCausal: true)
/// let mask = try BlockMask.streaming(grid, sinkBlocks: 1, localBlocks: 4)
/// let state = try BlockSparseAttention(shape, mask: mask)(query: q, key: k, value: v)
/// ```
///
/// - A query that sees no key gives output 0 and LSE −∞.
/// - Non-finite input propagates, as in IEEE arithmetic, into the rows that see it and into no other row. With a
///   `pvSkipThreshold` the values of skipped keys are not read.
/// - Results are bitwise equal for every number of threads.
/// - Source: block-sparse and streaming heads as in Block-Sparse-Attention (mit-han-lab), aligned at the end.
/// - Complexity: planning O(kept blocks); running `visiblePairs · (headDim + valueDim)` multiply-adds.
/// - Scratch: `scratchByteCount` per thread, kept by the pool; later calls allocate nothing.
public struct BlockSparseAttention: AttentionOperator {
    public let shape: AttentionShape
    /// The window around a query's position outside of which no pattern shows a key.
    public let window: AttentionWindow
    public let modifiers: ScoreModifiers
    /// The distance below the running maxima, in natural-log units, at which keys are left out; nil leaves out none.
    ///
    /// A step of up to 128 keys is left out when all its scores are this far or more below the running maxima of a query panel.
    ///
    /// A row then misses at most n·e^(−threshold) of its probability mass, where n is the number of keys left out.
    public let pvSkipThreshold: Float?
    /// One threshold per query head, in place of `pvSkipThreshold`. See ``skippingPV(below:)``.
    public private(set) var pvSkipThresholds: [Float]?
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet
    /// Bytes of scratch that each thread of the pool needs.
    public let scratchByteCount: Int

    let kernels: any KernelTable.Type
    let softmaxScale: Float
    let schedule: AttentionSchedule
    private let reachablePairs: Int

    /// One sequence of a packed batch: its position in the operands and the patterns of its heads.
    public struct PackedSequence: Sendable {
        public var queries: Range<Int>
        public var keys: Range<Int>
        /// One pattern for all heads, per KV head, or per query head.
        public var heads: [HeadPattern]

        public init(queries: Range<Int>, keys: Range<Int>, heads: [HeadPattern]) {
            self.queries = queries
            self.keys = keys
            self.heads = heads
        }
    }

    /// A plan from a mask of 1, `kvHeads` or `queryHeads` heads.
    ///
    /// - Parameters:
    ///   - mask: a mask over the shape's tokens. It also says whether attention is causal.
    ///   - window: hides keys further from a query's position, even in kept blocks. Blocks outside of it cost nothing.
    ///   - pvSkipThreshold: above 0. See `pvSkipThreshold`.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - modifiers: how scores become probabilities.
    ///   - shape: the sizes of the operands.
    /// - Throws: `.invalidShape` when mask and shape disagree, `.invalidArgument` for a threshold that is not finite and
    ///   positive, and the errors of ``DenseAttention``.
    public init(
        _ shape: AttentionShape, mask: BlockMask, window: AttentionWindow = .unlimited,
        modifiers: ScoreModifiers = ScoreModifiers(),
        pvSkipThreshold: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            shape, heads: (0..<mask.heads).map { .blockSparse(mask, head: $0) }, isCausal: mask.grid.isCausal, window: window,
            modifiers: modifiers, pvSkipThreshold: pvSkipThreshold, instructionSet: instructionSet)
    }

    /// A plan from one pattern for all heads, per KV head, or per query head.
    ///
    /// - Parameter isCausal: hides keys after the query's own position, which is aligned at the end of the keys.
    /// - Parameter window: hides keys further from that position in every pattern, sinks and single keys included.
    /// - Parameter heads: 1, `kvHeads` or `queryHeads` patterns.
    /// - Parameter instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Parameter pvSkipThreshold: in natural-log units, above 0; nil skips nothing.
    /// - Parameter modifiers: how scores become probabilities.
    /// - Parameter shape: the sizes of the operands.
    /// - Throws: `.invalidShape` or `.invalidArgument` naming the wrong pattern, and the errors of ``DenseAttention``.
    public init(
        _ shape: AttentionShape, heads: [HeadPattern], isCausal: Bool, window: AttentionWindow = .unlimited,
        modifiers: ScoreModifiers = ScoreModifiers(),
        pvSkipThreshold: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let sequence = PackedSequence(queries: 0..<shape.queryLength, keys: 0..<shape.keyLength, heads: heads)
        try self.init(
            shape, sequences: [sequence], isCausal: isCausal, window: window, modifiers: modifiers,
            pvSkipThreshold: pvSkipThreshold,
            instructionSet: instructionSet)
    }

    /// A plan for a batch of sequences of different lengths, packed one after the other in the operands.
    ///
    /// - Parameters:
    ///   - shape: the sizes of the packed operands.
    ///   - sequences: their queries follow each other and cover all of `queryLength`. Their keys may be anywhere, and may be
    ///     shared. A sequence without queries writes nothing; without keys its queries get output 0 and LSE −∞.
    ///   - isCausal: hides keys after the query's own position. Each sequence is aligned at its own end.
    ///   - window: applies to each sequence, around the positions that this alignment gives.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pvSkipThreshold: in natural-log units, above 0; nil skips nothing.
    ///   - modifiers: how scores become probabilities.
    /// - Throws: the errors of the other initialisers; `.invalidShape` for ranges outside the operands or gaps between queries.
    public init(
        _ shape: AttentionShape, sequences: [PackedSequence], isCausal: Bool, window: AttentionWindow = .unlimited,
        modifiers: ScoreModifiers = ScoreModifiers(), pvSkipThreshold: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try modifiers.validate(queryHeads: shape.queryHeads)
        try window.validate(named: "window")
        if let threshold = pvSkipThreshold {
            try require(
                threshold > 0 && threshold.isFinite, .invalidArgument, "pvSkipThreshold", expected: "finite and positive",
                actual: "\(threshold)")
        }
        self.shape = shape
        self.window = window
        self.modifiers = modifiers
        self.pvSkipThreshold = pvSkipThreshold
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        softmaxScale = modifiers.softmaxScale ?? 1 / Float(shape.headDim).squareRoot()

        var schedule = AttentionSchedule()
        let denseRows = AttentionSchedule.TaskRows(
            limit: DenseAttention.queryBlock(shape, kernels), panelWidth: kernels.sizes.panelWidth)
        let blockRows = AttentionSchedule.TaskRows(panelWidth: kernels.sizes.panelWidth)
        var (end, reachablePairs) = (0, 0)
        for (index, sequence) in sequences.enumerated() {
            let name = sequences.count == 1 ? "" : "sequences[\(index)]."
            try Self.check(sequence, shape, after: end, isCausal: isCausal, named: name)
            end = sequence.queries.upperBound
            let placement = AttentionSchedule.Sequence(
                queries: sequence.queries, keys: sequence.keys, isCausal: isCausal, window: window)
            reachablePairs += shape.queryHeads * placement.reachablePairs
            // A pattern serves all query heads, those of one KV head, or one: always adjacent ones.
            let headsPerPattern = shape.queryHeads / sequence.heads.count
            for (slot, pattern) in sequence.heads.enumerated() {
                schedule.append(
                    pattern, heads: slot * headsPerPattern..<(slot + 1) * headsPerPattern, sequence: placement,
                    denseRows: denseRows, blockRows: blockRows)
            }
        }
        try require(
            end == shape.queryLength, .invalidShape, "sequences",
            expected: "ranges of queries that end at queryLength (\(shape.queryLength))", actual: "an end at \(end)")
        schedule.order()
        self.schedule = schedule
        self.reachablePairs = reachablePairs
        scratchByteCount =
            AttentionScratch(
                headDim: shape.headDim, valueDim: shape.valueDim, queryRows: schedule.maximumRows, stagesKeys: true,
                stagesValues: true
            ).byteCount
    }

    private static func check(
        _ sequence: PackedSequence, _ shape: AttentionShape, after end: Int, isCausal: Bool, named name: String
    ) throws(SparseKernelsError) {
        let (queries, keys) = (sequence.queries, sequence.keys)
        try require(
            queries.lowerBound == end && queries.upperBound <= shape.queryLength, .invalidShape,
            "\(name)queries", expected: "a range that starts at \(end) and ends at or before \(shape.queryLength)",
            actual: "\(queries)")
        try require(
            keys.lowerBound >= 0 && keys.upperBound <= shape.keyLength, .invalidShape, "\(name)keys",
            expected: "a range from 0 or later that ends at or before keyLength (\(shape.keyLength))", actual: "\(keys)")
        let patterns = sequence.heads.count
        try require(
            [1, shape.kvHeads, shape.queryHeads].contains(patterns), .invalidShape, "\(name)heads",
            expected: "1, kvHeads (\(shape.kvHeads)) or queryHeads (\(shape.queryHeads)) patterns or mask heads",
            actual: "\(patterns)")
        for (index, pattern) in sequence.heads.enumerated() {
            try pattern.validate(
                queryLength: queries.count, keyLength: keys.count, isCausal: isCausal, named: "\(name)heads[\(index)]")
        }
    }

    /// This plan with one `pvSkipThreshold` per query head, as a tuner finds them. +∞ skips nothing.
    /// - Throws: `.invalidShape` unless there is one per query head, `.invalidArgument` for values that are not positive.
    public func skippingPV(below thresholds: [Float]) throws(SparseKernelsError) -> BlockSparseAttention {
        try require(
            thresholds.count == shape.queryHeads, .invalidShape, "pvSkipThresholds",
            expected: "one per query head (\(shape.queryHeads))", actual: "\(thresholds.count)")
        for (head, threshold) in thresholds.enumerated() {
            try require(
                threshold > 0, .invalidArgument, "pvSkipThresholds[\(head)]", expected: "positive", actual: "\(threshold)")
        }
        var plan = self
        plan.pvSkipThresholds = thresholds
        return plan
    }

    /// Score entries that the patterns, the causal limit and the window leave, over all query heads.
    public var visiblePairs: Int { schedule.visiblePairs }

    /// `visiblePairs` as a fraction of what the causal limit and the window alone leave; 1 when these leave nothing.
    public var density: Double { fraction(visiblePairs, of: reachablePairs) }

    /// Computes attention into the caller's memory. See ``AttentionOperator/run(query:key:value:output:logSumExp:on:)``.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let buffers = try AttentionBuffers(
            shape, query: query, key: key, value: value, output: output, logSumExp: logSumExp)
        schedule.run(schedule.tasks[...], of: self, buffers, on: pool)
    }
}

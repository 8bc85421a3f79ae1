/// Thresholds per head from example texts, by the heuristic that was released with XAttention.
///
/// For every text, head and block row I, with R the true attention mass of the blocks and X XAttention's estimate of it:
///
/// 1. Take the smallest set of blocks whose R reaches `mass` (0.9) of the row.
/// 2. Let t_I be the smallest X in that set. Keeping the blocks with X ≥ t_I then covers the set.
/// 3. The head's threshold is Σ_{X ≥ t_I} X / ΣX over all rows, the largest over the texts.
///
/// ```swift
/// var profile = try ThresholdProfile(queryHeads: 32)
/// for (query, key) in texts { try profile.add(query: query, key: key) }
/// let prefill = try XAttentionPrefill(shape, .init(stride: 8), thresholds: profile.thresholds)
/// ```
///
/// The search of the paper, whose code was not released, is `MinimumThresholdSearch`.
///
/// - Complexity: one full pass of exact scores (stride 1) per text: about half the work of dense attention.
/// - Source: `xattn/threshold/profile_threshold/profile_threshold.py` of mit-han-lab/x-attention.
public struct ThresholdProfile: Sendable {
    public let stride: Int
    public let blockSize: Int
    /// Fraction of the true mass that the kept blocks of a row reach.
    public let mass: Double
    /// The largest threshold over the texts so far, per query head; 0 before the first.
    public private(set) var thresholds: [Double]
    /// Number of texts so far.
    public private(set) var texts = 0
    private let instructionSet: InstructionSet

    /// - Parameters:
    ///   - queryHeads: heads of the queries.
    ///   - stride: stride of the estimate: 8 in the released script. Use the one of the prefill.
    ///   - blockSize: tokens per block of queries and of keys.
    ///   - mass: the fraction of the mass that a threshold must keep, 0…1.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for no heads or blocks below one token, `.invalidArgument` for a stride that does not divide
    ///   the block or a mass outside 0…1, `.unsupportedInstructionSet`.
    public init(
        queryHeads: Int, stride: Int = 8, blockSize: Int = 128, mass: Double = 0.9, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("queryHeads", queryHeads), ("blockSize", blockSize)] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        try require(
            stride >= 1 && blockSize % stride == 0, .invalidArgument, "stride",
            expected: "a divisor of blockSize (\(blockSize))", actual: "\(stride)")
        try require(mass >= 0 && mass <= 1, .invalidArgument, "mass", expected: "within 0...1", actual: "\(mass)")
        self.stride = stride
        self.blockSize = blockSize
        self.mass = mass
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        thresholds = Array(repeating: 0, count: queryHeads)
    }

    /// Adds one text, given by the queries and keys of one layer. Attention is causal.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, queryLength, headDim]`.
    ///   - key: `[kvHeads, keyLength, headDim]`.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Returns: the thresholds of this text alone.
    /// - Throws: `.invalidShape` for operands that disagree with each other or `queryHeads`; the profile is unchanged then.
    @discardableResult
    public mutating func add<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, softmaxScale: Float? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> [Double] {
        let (queries, keys) = try (query.view(named: "query").geometry, key.view(named: "key").geometry)
        try require(
            queries.heads == thresholds.count, .invalidShape, "query", expected: "\(thresholds.count) heads",
            actual: "\(queries.heads)")
        let shape = try AttentionShape(
            queryLength: queries.tokens, keyLength: keys.tokens, queryHeads: queries.heads, kvHeads: keys.heads,
            headDim: queries.channels)
        let grid = try BlockGrid(shape, blockSize: blockSize, isCausal: true)
        var scores: [BlockScores] = []
        for stride in [1, stride] {
            let scoring = try AntidiagonalScoring(
                shape, grid: grid, stride: stride, softmaxScale: softmaxScale, precision: .float32,
                instructionSet: instructionSet)
            scores.append(try scoring(query: query, key: key, on: pool))
        }
        let found = try Self.thresholds(masses: scores[0], estimates: scores[1], stride: stride, mass: mass)
        for (head, threshold) in found.enumerated() { thresholds[head] = max(thresholds[head], threshold) }
        texts += 1
        return found
    }

    /// Computes the thresholds, one per head, from true masses and estimates over the same grid.
    ///
    /// - Parameters:
    ///   - masses: true masses of the blocks.
    ///   - estimates: the estimated masses of the blocks.
    ///   - stride: stride of the estimates, whose rows sum to tokens / `stride`.
    ///   - mass: the fraction of the mass that a threshold must keep, 0…1.
    /// - Throws: `.invalidShape` when the two disagree, `.invalidArgument` for a mass outside 0…1, and for block masses that
    ///   are negative, infinite or NaN.
    public static func thresholds(
        masses: BlockScores, estimates: BlockScores, stride: Int, mass: Double = 0.9
    ) throws(SparseKernelsError) -> [Double] {
        let grid = masses.grid
        try require(
            estimates.grid == grid && estimates.heads == masses.heads, .invalidShape, "estimates",
            expected: "the grid and heads of the masses \(masses.values.shape)", actual: "\(estimates.values.shape)")
        var result: [Double] = []
        for head in 0..<masses.heads {
            var (kept, total) = (0.0, 0.0)
            for row in 0..<grid.blockRows {
                let start = (head * grid.blockRows + row) * grid.blockColumns
                let columns = grid.reachableColumns(ofRow: row)
                let truth = masses.values.span.extracting(start..<start + columns.upperBound)
                let needed = try TopP.select(weights: truth, mass: mass)
                var least = Float.infinity
                for column in needed { least = min(least, estimates[head, row, column]) }
                for column in columns {
                    let estimate = estimates[head, row, column]
                    total += Double(estimate)
                    if estimate >= least { kept += Double(estimate) }
                }
            }
            // The released code's estimates are in tokens when it adds 1e-8 to the total.
            result.append(kept * Double(stride) / (total * Double(stride) + 1e-8))
        }
        return result
    }
}

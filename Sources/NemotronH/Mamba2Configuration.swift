public import SparseKernels

/// The sizes and numbers of a Mamba-2 layer.
///
/// ```swift
/// // Nemotron-H 8B
/// let configuration = try Mamba2Configuration(heads: 128, headDim: 64, groups: 8, stateSize: 128)
/// print(configuration.innerWidth, configuration.projectedWidth)   // 8192 18560
/// ```
///
/// The width between the projections is `heads` × `headDim`. The key `expand` of checkpoints says it as a multiple of the hidden size,
/// and is wrong in some of them, so that nothing here reads it.
///
/// - Source: Dao and Gu, "Transformers are SSMs" (2024, arXiv 2405.21060), section 7; Nemotron-H (arXiv 2504.03624), table 1.
public struct Mamba2Configuration: Hashable, Sendable {
    /// Heads, each of which has a decay per token.
    public let heads: Int
    /// Channels of a head, P.
    public let headDim: Int
    /// Groups of heads that share B and C, a divisor of `heads`.
    public let groups: Int
    /// Channels of B and C, N: a state has `stateSize` × `headDim` numbers per head.
    public let stateSize: Int
    /// Tokens that the causal convolution of x, B and C sees.
    public let convolutionWidth: Int
    /// The least and the largest time step, after softplus.
    public let timeStepLimits: ClosedRange<Float>
    /// The ε of the gated norm.
    public let epsilon: Float

    /// - Parameters:
    ///   - heads: at least 1.
    ///   - headDim: 1…256.
    ///   - groups: a divisor of `heads`.
    ///   - stateSize: 1…256.
    ///   - convolutionWidth: 2, 3 or 4.
    ///   - timeStepLimits: 0 or more; the upper one may be infinite.
    ///   - epsilon: 0 or more, finite.
    /// - Throws: `.invalidShape` and `.invalidArgument` for numbers out of these ranges.
    public init(
        heads: Int, headDim: Int, groups: Int, stateSize: Int, convolutionWidth: Int = 4,
        timeStepLimits: ClosedRange<Float> = 0...Float.infinity, epsilon: Float = 1e-5
    ) throws(SparseKernelsError) {
        for (name, extent, range) in [
            ("heads", heads, 1...1 << 20), ("headDim", headDim, 1...RecurrenceShape.maximumDim),
            ("groups", groups, 1...1 << 20),
            ("stateSize", stateSize, 1...RecurrenceShape.maximumDim), ("convolutionWidth", convolutionWidth, 2...4),
        ] {
            try require(
                range.contains(extent), .invalidShape, name, expected: "\(range.lowerBound) to \(range.upperBound)",
                actual: "\(extent)")
        }
        try require(
            heads.isMultiple(of: groups), .invalidShape, "groups", expected: "a divisor of heads (\(heads))",
            actual: "\(groups)")
        try require(
            timeStepLimits.lowerBound >= 0 && timeStepLimits.lowerBound.isFinite, .invalidArgument, "timeStepLimits",
            expected: "from a finite number of 0 or more on", actual: "\(timeStepLimits)")
        try require(
            epsilon >= 0 && epsilon.isFinite, .invalidArgument, "epsilon", expected: "0 or more, and finite",
            actual: "\(epsilon)")
        self.heads = heads
        self.headDim = headDim
        self.groups = groups
        self.stateSize = stateSize
        self.convolutionWidth = convolutionWidth
        self.timeStepLimits = timeStepLimits
        self.epsilon = epsilon
    }

    // MARK: - Rows between the projections

    /// Channels of x, of z and of the output: `heads` × `headDim`.
    public var innerWidth: Int { heads * headDim }
    /// Channels of x, B and C, which the convolution mixes along the tokens.
    public var convolvedWidth: Int { innerWidth + 2 * groups * stateSize }
    /// Outputs of the first projection: z, then x, B and C, then a time step per head.
    public var projectedWidth: Int { innerWidth + convolvedWidth + heads }

    /// Where a row of the first projection has the gate z.
    public var gateColumns: Range<Int> { 0..<innerWidth }
    /// Where it has x, B and C.
    public var convolvedColumns: Range<Int> { innerWidth..<innerWidth + convolvedWidth }
    /// Where it has the time steps.
    public var timeStepColumns: Range<Int> { innerWidth + convolvedWidth..<projectedWidth }
}

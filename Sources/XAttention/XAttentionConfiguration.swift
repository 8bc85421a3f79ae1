/// How XAttention scores and selects. The defaults are those of the paper's clean rules.
public struct XAttentionConfiguration: Hashable, Sendable {
    /// Which rule turns scores into a mask.
    public enum Mode: Hashable, Sendable {
        /// Sink column and diagonal blocks first, when causal; then blocks by score until the mass is at least threshold × the
        /// row's total. Nothing is padded, and the mask does not depend on any chunk.
        case clean
        /// What the released code computes, in `.float32`: sequences padded with zeros to whole chunks, padded keys taking part in
        /// the softmax when not causal, and `XAttentionSelection` with its first-chunk rule. nil is the code's own choice of chunk,
        /// `XAttentionPrefill.releasedChunkSize(keyLength:)`.
        case released(chunkSize: Int? = nil)
    }

    /// Tokens per antidiagonal; the paper uses 8 and 16. Divides `blockSize`.
    public var stride: Int
    /// Tokens of a block, of queries and of keys.
    public var blockSize: Int
    /// False for video and other bidirectional models.
    public var isCausal: Bool
    /// Further divisor of the scores.
    public var norm: Float
    /// The clean rules, or those of the released code.
    public var mode: Mode
    /// Clean mode: every row keeps column 0. A causal plan does so in any case, so the flag matters only without the causal limit.
    /// Released mode: all blocks of query block 0 are kept.
    public var keepSink: Bool
    /// Clean mode: every row keeps its diagonal blocks. A causal plan does so in any case. Released mode: the diagonal of the padded
    /// grid is kept.
    public var keepRecent: Bool
    /// Blocks that every row keeps at least; clean mode only.
    public var minimumBlocks: Int
    /// Arithmetic of the scores in clean mode. The released mode always scores in `.float32`.
    public var precision: ScoringPrecision
    /// Factor on q·k of scores and attention; nil means 1/√headDim.
    public var softmaxScale: Float?
    /// Whether the scores are returned with the mask.
    public var keepsScores: Bool

    public init(
        stride: Int = 16, blockSize: Int = 128, isCausal: Bool = true, norm: Float = 1, mode: Mode = .clean,
        keepSink: Bool = false, keepRecent: Bool = false, minimumBlocks: Int = 1, precision: ScoringPrecision = .int6,
        softmaxScale: Float? = nil, keepsScores: Bool = false
    ) {
        self.stride = stride
        self.blockSize = blockSize
        self.isCausal = isCausal
        self.norm = norm
        self.mode = mode
        self.keepSink = keepSink
        self.keepRecent = keepRecent
        self.minimumBlocks = minimumBlocks
        self.precision = precision
        self.softmaxScale = softmaxScale
        self.keepsScores = keepsScores
    }
}

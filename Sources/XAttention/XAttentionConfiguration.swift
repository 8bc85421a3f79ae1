/// How XAttention scores and selects blocks. By default it follows the paper's clean rules.
public struct XAttentionConfiguration: Hashable, Sendable {
    /// The rule that turns scores into a mask.
    public enum Mode: Hashable, Sendable {
        /// Keeps the sink column and the diagonal blocks first, when causal, and then blocks by score until the mass is at
        /// least threshold × the row's total. There is no padding, and the mask does not depend on chunks.
        case clean
        /// The rules of the released code, in `.float32`: sequences are padded with zeros to whole chunks, padded keys take
        /// part in the softmax when not causal, and `XAttentionSelection` selects with its first-chunk rule. A nil chunk size
        /// means the released choice, `XAttentionPrefill.releasedChunkSize(keyLength:)`.
        case released(chunkSize: Int? = nil)
    }

    /// Tokens per antidiagonal, a divisor of `blockSize`. The paper uses 8 and 16.
    public var stride: Int
    /// Tokens per block of queries and of keys.
    public var blockSize: Int
    /// Whether attention is causal: false for video and other bidirectional models.
    public var isCausal: Bool
    /// An additional divisor of the scores.
    public var norm: Float
    /// The rule for the mask: the clean one or the released one.
    public var mode: Mode
    /// In clean mode every row keeps column 0, which matters only without causality, as causal plans always keep it. In
    /// released mode all blocks of query block 0 are kept.
    public var keepSink: Bool
    /// In clean mode every row keeps its diagonal blocks, as causal plans always do; in released mode those of the padded grid.
    public var keepRecent: Bool
    /// Smallest number of blocks that every row keeps, in clean mode only.
    public var minimumBlocks: Int
    /// Arithmetic of the scores in clean mode. The released mode always uses `.float32`.
    public var precision: ScoringPrecision
    /// Factor on q·k in scores and attention; nil means 1/√headDim.
    public var softmaxScale: Float?
    /// Whether results include the scores.
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

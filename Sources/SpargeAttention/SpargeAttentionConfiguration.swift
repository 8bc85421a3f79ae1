public import SparseKernels

/// The settings that all heads share, with the released defaults. `SpargeAttentionHead` has those of one head.
public struct SpargeAttentionConfiguration: Hashable, Sendable {
    /// Whether keys after a query are hidden.
    public var isCausal: Bool
    /// Tokens per block of queries.
    public var queryBlockSize: Int
    /// Tokens per block of keys.
    public var keyBlockSize: Int
    /// Whether prediction subtracts the mean token from keys.
    public var smoothsKeys: Bool
    /// Whether every query block keeps the first key block (`attention_sink`).
    public var keepsFirstColumn: Bool
    /// Whether prediction rounds where the released code for 16-bit tensors does; see `SelfSimilarity`.
    public var roundsAsReleased: Bool
    /// How scores become probabilities in attention. Prediction uses its `softmaxScale` alone.
    public var modifiers: ScoreModifiers

    public init(
        isCausal: Bool = false, queryBlockSize: Int = 128, keyBlockSize: Int = 64, smoothsKeys: Bool = true,
        keepsFirstColumn: Bool = false, roundsAsReleased: Bool = false, modifiers: ScoreModifiers = ScoreModifiers()
    ) {
        self.isCausal = isCausal
        self.queryBlockSize = queryBlockSize
        self.keyBlockSize = keyBlockSize
        self.smoothsKeys = smoothsKeys
        self.keepsFirstColumn = keepsFirstColumn
        self.roundsAsReleased = roundsAsReleased
        self.modifiers = modifiers
    }
}

public import SparseKernels

/// How SpargeAttention predicts blocks and attends, for all heads alike. The defaults are the released ones; what differs by head is
/// `SpargeAttentionHead`.
public struct SpargeAttentionConfiguration: Hashable, Sendable {
    /// Whether keys after a query are hidden.
    public var isCausal: Bool
    /// Tokens of a block of queries.
    public var queryBlockSize: Int
    /// Tokens of a block of keys.
    public var keyBlockSize: Int
    /// Whether keys are taken less their mean token before prediction.
    public var smoothsKeys: Bool
    /// Keeps the first key block for every query block (`attention_sink`).
    public var keepsFirstColumn: Bool
    /// Whether prediction rounds where the released code of 16-bit tensors rounds; see `SelfSimilarity`.
    public var roundsAsReleased: Bool
    /// Of attention; prediction uses its `softmaxScale` alone.
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

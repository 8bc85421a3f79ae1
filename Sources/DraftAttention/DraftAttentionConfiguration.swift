public import SparseKernels

/// The settings of DraftAttention, with the released defaults for HunyuanVideo.
public struct DraftAttentionConfiguration: Hashable, Sendable {
    /// The part of each head's draft map that is left out, 0…1: 0.9 for HunyuanVideo, 0.75 for Wan 2.1.
    public var sparsity: Double
    /// Rows of tokens in a window (`pool_h`).
    public var windowHeight: Int
    /// Tokens in a row of a window (`pool_w`).
    public var windowWidth: Int
    /// Whether entries are chosen exactly as in the released code; see ``DraftSelection``.
    public var isReleased: Bool
    /// How scores become probabilities in attention. The draft map uses its `softmaxScale` alone.
    public var modifiers: ScoreModifiers

    public init(
        sparsity: Double = 0.9, windowHeight: Int = 8, windowWidth: Int = 16, isReleased: Bool = false,
        modifiers: ScoreModifiers = ScoreModifiers()
    ) {
        self.sparsity = sparsity
        self.windowHeight = windowHeight
        self.windowWidth = windowWidth
        self.isReleased = isReleased
        self.modifiers = modifiers
    }
}

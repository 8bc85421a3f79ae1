/// The kernels of key/value caches.
public struct TokenKernels: Sendable {
    /// Attention of some query rows over a list of slots. See `AttendTokensArguments`.
    public var attend: @Sendable (UnsafePointer<AttendTokensArguments>) -> Void
    /// Scores against keys, estimates or page metadata. See `ScoreTokensArguments`.
    public var score: @Sendable (UnsafePointer<ScoreTokensArguments>) -> Void
    /// An output row from partial states. See `MergeTokensArguments`.
    public var merge: @Sendable (UnsafePointer<MergeTokensArguments>) -> Void
    /// Rows into slots. See `StoreTokensArguments`.
    public var store: @Sendable (UnsafePointer<StoreTokensArguments>) -> Void
    /// Slots as adjacent rows of floats: (tokens, first slot, count, destination).
    public var load: @Sendable (TokenOperand, Int, Int, UnsafeMutablePointer<Float>) -> Void
    /// Page metadata. See `SummarizeTokensArguments`.
    public var summarize: @Sendable (UnsafePointer<SummarizeTokensArguments>) -> Void
    /// Bits of the tokens that hold a fraction of the softmax mass of their scores. See `PruneArguments`.
    public var prune: @Sendable (UnsafePointer<PruneArguments>) -> Void

    public init(
        attend: @escaping @Sendable (UnsafePointer<AttendTokensArguments>) -> Void,
        score: @escaping @Sendable (UnsafePointer<ScoreTokensArguments>) -> Void,
        merge: @escaping @Sendable (UnsafePointer<MergeTokensArguments>) -> Void,
        store: @escaping @Sendable (UnsafePointer<StoreTokensArguments>) -> Void,
        load: @escaping @Sendable (TokenOperand, Int, Int, UnsafeMutablePointer<Float>) -> Void,
        summarize: @escaping @Sendable (UnsafePointer<SummarizeTokensArguments>) -> Void,
        prune: @escaping @Sendable (UnsafePointer<PruneArguments>) -> Void
    ) {
        self.attend = attend
        self.score = score
        self.merge = merge
        self.store = store
        self.load = load
        self.summarize = summarize
        self.prune = prune
    }
}

/// The settings of one query head: the rules for keeping blocks, and for skipping products P·V in them.
public struct SpargeAttentionHead: Hashable, Sendable {
    /// How many of the self-similar blocks are kept: a ratio of all blocks (released: `topk`) or mass (`cdfthreshd`).
    public var rule: SimilaritySelection.Rule
    /// Blocks with a self-similarity up to this one are always computed (`simthreshd1`).
    public var similarityThreshold: Float
    /// A tile whose scores are all this far below the running maximum is skipped (`pvthreshd`). In log2 units, as released: 50
    /// skips only weights below 2⁻⁵⁰, which has no practical effect. nil skips nothing.
    public var pvSkipThreshold: Float?

    public init(_ rule: SimilaritySelection.Rule, similarityThreshold: Float, pvSkipThreshold: Float? = 50) {
        self.rule = rule
        self.similarityThreshold = similarityThreshold
        self.pvSkipThreshold = pvSkipThreshold
    }

    /// Keeps a ratio of the blocks, with the released similarity threshold of the `…_topk_…` entry points.
    public static func keepRatio(_ ratio: Double) -> SpargeAttentionHead {
        SpargeAttentionHead(.keepRatio(ratio), similarityThreshold: -0.1)
    }

    /// Keeps half of the blocks, as the authors recommend for `spas_sage2_attn_meansim_topk_cuda`.
    public static let recommended = keepRatio(0.5)

    /// Keeps mass 0.98 of the self-similar blocks: the defaults of `spas_sage2_attn_meansim_cuda`.
    public static let cdf = SpargeAttentionHead(.cdfThreshold(0.98), similarityThreshold: 0.6)

    /// Keeps every block.
    public static let dense = SpargeAttentionHead(.cdfThreshold(1), similarityThreshold: 1, pvSkipThreshold: nil)

    var selection: SimilaritySelection.Head { SimilaritySelection.Head(rule, similarityThreshold: similarityThreshold) }

    /// The skip threshold in the natural units of `BlockSparseAttention`, 2⁻ᵗ = e^(−t·ln 2), and +∞ when off.
    var naturalSkipThreshold: Float { pvSkipThreshold.map { $0 * 0.693_147_18 } ?? .infinity }
}

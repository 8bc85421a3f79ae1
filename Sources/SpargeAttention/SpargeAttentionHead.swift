/// The settings of a query head: which blocks are kept, and which products P·V are skipped in them.
public struct SpargeAttentionHead: Hashable, Sendable {
    /// How many of the self-similar blocks are kept: a ratio of all (`topk` in the released code) or probability mass (`cdfthreshd`).
    public var rule: SimilaritySelection.Rule
    /// Self-similarity at or under which a block is computed in any case (`simthreshd1`).
    public var similarityThreshold: Float
    /// Tiles whose scores all lie this far below the running maximum add nothing (`pvthreshd`). In log2 units, as released: 50 leaves
    /// out weights below 2⁻⁵⁰ and is off for all purposes. nil is off.
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

    /// Half of the blocks: the authors' recommendation for `spas_sage2_attn_meansim_topk_cuda`.
    public static let recommended = keepRatio(0.5)

    /// Mass 0.98 of the self-similar blocks: the defaults of `spas_sage2_attn_meansim_cuda`.
    public static let cdf = SpargeAttentionHead(.cdfThreshold(0.98), similarityThreshold: 0.6)

    /// Every block.
    public static let dense = SpargeAttentionHead(.cdfThreshold(1), similarityThreshold: 1, pvSkipThreshold: nil)

    var selection: SimilaritySelection.Head { SimilaritySelection.Head(rule, similarityThreshold: similarityThreshold) }

    /// The skip threshold in the units of `BlockSparseAttention`, which are natural: 2⁻ᵗ = e^(−t·ln 2). +∞ when off.
    var naturalSkipThreshold: Float { pvSkipThreshold.map { $0 * 0.693_147_18 } ?? .infinity }
}

public import SparseKernels

/// The settings of ``SVGAttention``. The defaults are the clean rules at a density of 0.25 and 64 sampled rows.
///
/// Clean rules, with `released` nil, keep what the paper describes and leave out accidents of the released code:
///
/// - The band is the widest whose pairs, with those of text and sink, are at most `density` of all pairs, to the token.
/// - Prompt tokens see and are seen by all; padding of the text sees only itself, wherever text stands.
/// - Heads are profiled with the keys that attention will give them, on rows of the video.
public struct SVGConfiguration: Hashable, Sendable {
    /// The model whose released rules hold; nil means the clean rules.
    public var released: SVGModel?
    /// The fraction of pairs that is kept, above 0 and up to 1 (`--sparsity` of the released scripts, in spite of its name).
    public var density: Double
    /// Query rows per call on which heads are profiled (`num_sampled_rows`), at least 1.
    public var sampledRows: Int
    /// Rows are sampled from as many tokens, from the first on (`sample_mse_max_row`). nil means all video tokens under the
    /// clean rules; under the released ones all tokens for CogVideoX, and 10,000 for the others.
    public var sampleLimit: Int?
    /// The seed of the sample.
    public var seed: UInt64
    /// Whether all queries of spatial heads see the first frame under the clean rules. Temporal heads see their place in the
    /// first frame anyway. Without effect under released rules, of which only Wan's have such keys.
    public var keepsFirstFrame: Bool
    /// Half the width of the band in which heads are profiled, in frames and above 0. nil means the keys of attention under the
    /// clean rules, and under the released ones 2 frames for Wan and 1.5 for the others.
    public var profileFrames: Double?
    /// How scores become probabilities. ALiBi slopes have no meaning in token-major order and are refused.
    public var modifiers: ScoreModifiers

    public init(
        released: SVGModel? = nil, density: Double = 0.25, sampledRows: Int = 64, sampleLimit: Int? = nil, seed: UInt64 = 0,
        keepsFirstFrame: Bool = false, profileFrames: Double? = nil, modifiers: ScoreModifiers = ScoreModifiers()
    ) {
        self.released = released
        self.density = density
        self.sampledRows = sampledRows
        self.sampleLimit = sampleLimit
        self.seed = seed
        self.keepsFirstFrame = keepsFirstFrame
        self.profileFrames = profileFrames
        self.modifiers = modifiers
    }

    /// Throws unless every setting is in its domain and released rules fit the geometry.
    func validate(_ geometry: VideoGeometry) throws(SparseKernelsError) {
        // NaN fails the comparisons.
        try require(
            density > 0 && density <= 1, .invalidArgument, "density", expected: "above 0 and at most 1", actual: "\(density)")
        try require(sampledRows >= 1, .invalidArgument, "sampledRows", expected: "at least 1", actual: "\(sampledRows)")
        if let sampleLimit {
            try require(sampleLimit >= 1, .invalidArgument, "sampleLimit", expected: "at least 1", actual: "\(sampleLimit)")
        }
        if let profileFrames {
            try require(
                profileFrames > 0 && profileFrames.isFinite, .invalidArgument, "profileFrames",
                expected: "finite and above 0", actual: "\(profileFrames)")
        }
        try require(
            modifiers.aliBiSlopes == nil, .invalidArgument, "modifiers.aliBiSlopes",
            expected: "nil, because heads reorder their tokens", actual: "slopes")
        guard let released, geometry.textTokens > 0 else { return }
        switch released {
        case .cogVideoX, .hunyuanVideo:
            let placement: VideoGeometry.TextPlacement = released == .cogVideoX ? .before : .after
            try require(
                geometry.textPlacement == placement, .invalidArgument, "geometry.textPlacement",
                expected: "\(placement) under the released rules of \(released)", actual: "\(geometry.textPlacement)")
        case .wan:
            throw SparseKernelsError(
                .invalidArgument, "geometry.textTokens", expected: "0 under the released rules of \(released)",
                actual: "\(geometry.textTokens)")
        }
    }
}

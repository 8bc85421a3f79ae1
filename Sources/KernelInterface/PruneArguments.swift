/// Pruning of scored tokens by their softmax mass, for the query heads that share a list of tokens.
///
/// Per row, w = softmax(scores), a threshold t by Twilight's bisection, and a bit for every w > t.
public struct PruneArguments {
    /// One row per query head, `scoreStride` floats apart. −∞ hides a token from a row. Weights on return, of the padding too.
    public var scores: UnsafeMutablePointer<Float>
    /// At least `PruneScratch.padded(count)`.
    public var scoreStride: Int
    public var rows: Int
    /// Tokens of a row.
    public var count: Int

    /// The mass to reach, 0…1.
    public var topP: Float
    /// The bisection ends when the weights between its bounds differ by no more than this; not negative.
    public var epsilon: Float
    /// The search starts below the largest weight; otherwise below the weight of the token `first`.
    public var startsAtMaximum: Bool
    /// Index of the token whose weight bounds the search, or −1 for a weight of 0.
    public var first: Int

    /// A bit per token, lowest first, in whole words: `PruneScratch.padded(count) / 64` of them, bits beyond the last token clear.
    public var kept: UnsafeMutablePointer<UInt64>
    /// Words from row to row, or 0 for the union of all rows.
    public var keptStride: Int
    /// Per row: the threshold; 0 for a row of hidden tokens, NaN for one with NaN or +∞.
    public var thresholds: UnsafeMutablePointer<Float>
    /// Per row: the sum of the weights above the threshold; 0 or NaN as above.
    public var masses: UnsafeMutablePointer<Float>

    /// `PruneScratch.byteCount(count:)` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        scores: UnsafeMutablePointer<Float>, scoreStride: Int, rows: Int, count: Int, topP: Float, epsilon: Float,
        startsAtMaximum: Bool, first: Int, kept: UnsafeMutablePointer<UInt64>, keptStride: Int,
        thresholds: UnsafeMutablePointer<Float>, masses: UnsafeMutablePointer<Float>, scratch: UnsafeMutableRawPointer
    ) {
        self.scores = scores
        self.scoreStride = scoreStride
        self.rows = rows
        self.count = count
        self.topP = topP
        self.epsilon = epsilon
        self.startsAtMaximum = startsAtMaximum
        self.first = first
        self.kept = kept
        self.keptStride = keptStride
        self.thresholds = thresholds
        self.masses = masses
        self.scratch = scratch
    }
}

/// Sizes of pruning, in tokens.
public enum PruneScratch {
    /// Whole words of the bit mask, which are whole registers on every level.
    public static func padded(_ count: Int) -> Int { (count + 63) / 64 * 64 }

    /// Room for a copy of the weights, of which most rounds read the first few.
    public static func byteCount(count: Int) -> Int { padded(count) * 4 }
}

/// Prunes scored tokens by their softmax mass, for the query heads that share a list of tokens.
///
/// Per row: w = softmax(scores), a threshold t by Twilight's bisection, and a bit for every w > t.
public struct PruneArguments {
    /// One row per query head, `scoreStride` floats apart. −∞ hides a token from a row. Replaced by weights, also in the
    /// padding.
    public var scores: UnsafeMutablePointer<Float>
    /// At least `PruneScratch.padded(count)`.
    public var scoreStride: Int
    public var rows: Int
    /// Tokens per row.
    public var count: Int

    /// The mass to reach, 0…1.
    public var topP: Float
    /// The bisection ends when the weights between its bounds differ by no more than this. Not negative.
    public var epsilon: Float
    /// Whether the search starts below the largest weight. Otherwise it starts below the weight of the token `first`.
    public var startsAtMaximum: Bool
    /// Index of the token whose weight bounds the search, or −1 for a weight of 0.
    public var first: Int

    /// One bit per token, lowest first: `PruneScratch.padded(count) / 64` words. Bits past the last token are clear.
    public var kept: UnsafeMutablePointer<UInt64>
    /// The distance between rows in words, or 0 for the union of all rows.
    public var keptStride: Int
    /// The threshold of each row; 0 for a row of hidden tokens, NaN for one with NaN or +∞.
    public var thresholds: UnsafeMutablePointer<Float>
    /// The sum of the weights above the threshold of each row; 0 or NaN in the same rows as `thresholds`.
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

/// The sizes of pruning, in tokens.
public enum PruneScratch {
    /// Rounds up to whole words of the bit mask, which are whole registers on every level.
    public static func padded(_ count: Int) -> Int { (count + 63) / 64 * 64 }

    /// Bytes for a copy of the weights. Most rounds read only the first few of them.
    public static func byteCount(count: Int) -> Int { padded(count) * 4 }
}

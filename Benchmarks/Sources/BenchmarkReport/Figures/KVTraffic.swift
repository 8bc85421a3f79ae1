/// Bytes that a decode step must read from a paged cache, and what a token takes in it.
///
/// Counted per KV head: keys and values of the tokens that are attended to, the summary of every logical page, the key estimates
/// of the tokens that compete for a place. Codes of 8 bits and less have a scale and a zero point in half precision for every row.
public struct KVTraffic: Sendable, Equatable {
    /// Of one token and KV head.
    public var keyRow: Int
    public var valueRow: Int
    /// Of one logical page and KV head; 0 when the cache has no metadata.
    public var summary: Int
    /// Of one token and KV head; 0 when the cache has no estimates.
    public var estimateRow: Int
    /// Tokens of a logical page.
    public var logicalPageSize: Int

    public init(keyRow: Int, valueRow: Int, summary: Int = 0, estimateRow: Int = 0, logicalPageSize: Int = 1) {
        self.keyRow = keyRow
        self.valueRow = valueRow
        self.summary = summary
        self.estimateRow = estimateRow
        self.logicalPageSize = logicalPageSize
    }

    /// A row of elements, with scale and zero point where the elements are codes.
    public static func rowBytes(channels: Int, bits: Int) -> Int {
        (channels * bits + 7) / 8 + (bits <= 8 ? 4 : 0)
    }

    /// Keys and values of `rows` tokens, counted over KV heads and sequences.
    public func attention(rows: Int) -> Int { rows * (keyRow + valueRow) }

    /// Summaries of all logical pages of `tokens` tokens, for one KV head.
    public func summaries(tokens: Int) -> Int {
        (tokens + logicalPageSize - 1) / logicalPageSize * summary
    }

    /// Key estimates of `rows` candidates, counted over KV heads and sequences.
    public func estimates(rows: Int) -> Int { rows * estimateRow }

    /// Memory of a token over `kvHeads` heads, its share of the summary included.
    public func bytesPerToken(kvHeads: Int) -> Double {
        Double(kvHeads) * (Double(keyRow + valueRow + estimateRow) + Double(summary) / Double(logicalPageSize))
    }
}

/// The bytes that a decode step must read from a paged cache, and the memory of a token in it.
///
/// They are counted per KV head: keys and values of the attended tokens, the summary of every logical page, and the key
/// estimates of the candidate tokens. Codes of 8 bits and less have a scale and a zero point in half precision per row.
public struct KVTraffic: Sendable, Equatable {
    /// Bytes of the key of one token and KV head.
    public var keyRow: Int
    public var valueRow: Int
    /// Bytes of the summary of one logical page and KV head; 0 when the cache has no metadata.
    public var summary: Int
    /// Bytes of the estimate of one token and KV head; 0 when the cache has no estimates.
    public var estimateRow: Int
    /// Tokens per logical page.
    public var logicalPageSize: Int

    public init(keyRow: Int, valueRow: Int, summary: Int = 0, estimateRow: Int = 0, logicalPageSize: Int = 1) {
        self.keyRow = keyRow
        self.valueRow = valueRow
        self.summary = summary
        self.estimateRow = estimateRow
        self.logicalPageSize = logicalPageSize
    }

    /// Bytes of a row of elements, with scale and zero point for codes.
    public static func rowBytes(channels: Int, bits: Int) -> Int {
        (channels * bits + 7) / 8 + (bits <= 8 ? 4 : 0)
    }

    /// Bytes of the keys and values of `rows` tokens, counted over KV heads and sequences.
    public func attention(rows: Int) -> Int { rows * (keyRow + valueRow) }

    /// Bytes of the summaries of all logical pages of `tokens` tokens, for one KV head.
    public func summaries(tokens: Int) -> Int {
        (tokens + logicalPageSize - 1) / logicalPageSize * summary
    }

    /// Bytes of the key estimates of `rows` candidates, counted over KV heads and sequences.
    public func estimates(rows: Int) -> Int { rows * estimateRow }

    /// Memory of a token over `kvHeads` heads, including its share of the summary.
    public func bytesPerToken(kvHeads: Int) -> Double {
        Double(kvHeads) * (Double(keyRow + valueRow + estimateRow) + Double(summary) / Double(logicalPageSize))
    }
}

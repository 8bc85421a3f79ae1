// The operands of the statistics of logits. A row is cut into pieces of fixed size, which are summarised one by one.

/// One piece of a row of logits: its largest entries, and the sum of its exponentials.
public struct SummarizeLogitsArguments {
    /// One row, which begins with the piece.
    public var logits: RowOperand
    /// Entries of the piece, 1…`LogitScratch.pieceColumns`.
    public var count: Int
    /// The number of the piece's first entry in the row.
    public var first: Int
    /// Entries to keep, at least 1 and at most `count`.
    public var kept: Int
    /// Replaces entries by cap·tanh(entry/cap) when positive; 0 is off.
    public var softCap: Float = 0
    /// Whether another piece follows this one in memory, which is then prefetched.
    public var hasNext = false
    /// `kept` keys of the largest entries, in no order. See `LogitKey`.
    public var keys: UnsafeMutablePointer<UInt64>
    /// Two floats: m, the largest entry that is a number (−∞ if there is none), and Σ e^(x − m). The sum is NaN if an entry is NaN,
    /// or else ∞ if m is ∞ and 0 if m is −∞.
    public var sums: UnsafeMutablePointer<Float>
    /// `LogitScratch(kept:).byteCount` bytes, 64-byte aligned.
    public var scratch: UnsafeMutableRawPointer

    public init(
        logits: RowOperand, count: Int, first: Int, kept: Int, keys: UnsafeMutablePointer<UInt64>,
        sums: UnsafeMutablePointer<Float>, scratch: UnsafeMutableRawPointer
    ) {
        self.logits = logits
        self.count = count
        self.first = first
        self.kept = kept
        self.keys = keys
        self.sums = sums
        self.scratch = scratch
    }
}

/// Keys of which the largest are wanted, in descending order. See `LogitKey`.
public struct RankLogitsArguments {
    /// Overwritten.
    public var keys: UnsafeMutablePointer<UInt64>
    public var count: Int
    /// 1…`count`.
    public var kept: Int
    /// `kept` entries each.
    public var values: UnsafeMutablePointer<Float>
    public var indices: UnsafeMutablePointer<Int32>

    public init(
        keys: UnsafeMutablePointer<UInt64>, count: Int, kept: Int, values: UnsafeMutablePointer<Float>,
        indices: UnsafeMutablePointer<Int32>
    ) {
        self.keys = keys
        self.count = count
        self.kept = kept
        self.values = values
        self.indices = indices
    }
}

/// The scratch of `summarizeLogits`: the entries of a piece as floats, and candidates for the largest ones.
public struct LogitScratch: Sendable {
    /// Entries of a piece: 64 KB of floats, which the second-level cache holds while they are read twice. A vocabulary of 128K has
    /// eight pieces, which is work for eight threads.
    public static let pieceColumns = 16_384

    /// Candidates that are collected before the `kept` largest of them are found. Each time, the number of entries seen grows by
    /// about this factor, so a larger one selects more seldom, and a smaller one collects fewer. Never fewer than two vectors.
    public let candidates: Int
    /// Bytes from the start of the scratch to the candidates.
    public let candidateOffset: Int

    public init(kept: Int) {
        candidates = (kept < 16 ? 64 : 4 * kept) + 16
        candidateOffset = Self.pieceColumns * 4
    }

    public var byteCount: Int { candidateOffset + candidates * 8 }
}

/// An entry of a row as one integer, with the order of ranks: larger values first, NaN before all, and equal ones by lower index.
public enum LogitKey {
    /// The upper half of a key: an integer with the order of the values. The two zeros are equal, and so are all NaN.
    @_transparent
    public static func rank(_ value: Float) -> UInt32 {
        if value != value { return .max }
        let bits = (value + 0).bitPattern
        return bits >> 31 == 0 ? bits | 0x8000_0000 : ~bits
    }

    @_transparent
    public static func key(_ value: Float, index: Int) -> UInt64 {
        UInt64(rank(value)) << 32 | UInt64(~UInt32(truncatingIfNeeded: index))
    }

    @_transparent
    public static func value(_ key: UInt64) -> Float {
        let rank = UInt32(truncatingIfNeeded: key >> 32)
        if rank == .max { return .nan }
        return Float(bitPattern: rank >> 31 == 1 ? rank & 0x7fff_ffff : ~rank)
    }

    @_transparent
    public static func index(_ key: UInt64) -> Int32 { Int32(bitPattern: ~UInt32(truncatingIfNeeded: key)) }
}

/// The storage format of the tokens of a key/value cache.
public enum TokenFormat: UInt8, Sendable {
    case float32
    case float16
    case bfloat16
    /// Unsigned bytes with a scale and an offset per token. See `TokenOffset`.
    case int8
    /// Nibbles with a scale and an offset per token.
    case int4

    public var isQuantized: Bool { self == .int8 || self == .int4 }
    /// The largest code.
    public var maximumCode: Int { self == .int8 ? 255 : 15 }
    /// The code in the middle, which products subtract from codes. The rounding of the other factor is then multiplied by at
    /// most half of the range of the codes, as often with one sign as with the other.
    public var middleCode: Int { self == .int8 ? 128 : 8 }
}

/// The half-precision number that is stored beside the scale of a quantised token.
public enum TokenOffset: UInt8, Sendable {
    /// The smallest value m, rounded down: x = s·code + m.
    case minimum
    /// The code z that stands for 0, which need not be whole: x = s·(code − z).
    case zeroPoint
}

/// The memory layout of the tokens of a pool. Operators and kernels both compute it here.
///
/// A *slot* holds one token. Keys are rows, because a score needs one token's channels: rows of floats are padded with zeros to
/// whole vectors, rows of codes are not padded (INT4: even channels are in the low nibbles). Values of quantised formats are
/// interleaved by tokens, because an output channel sums over tokens: a 32-bit word has one channel of four tokens (INT8) or
/// eight (INT4), and a group of eight slots is one or two rows of such words, padded with zeros to whole vectors.
public enum TokenLayout {
    /// Slots per group of quantised values.
    public static let group = 8
    /// The number of channels of which a padded row has a multiple: those of the widest vector.
    public static let channelUnit = 16
    /// Bytes that vector loads may read past the last row.
    public static let slack = 64

    public static func padded(_ channels: Int) -> Int { (channels + channelUnit - 1) / channelUnit * channelUnit }

    /// Bytes between key rows.
    public static func keyStride(_ format: TokenFormat, channels: Int) -> Int {
        switch format {
        case .float32: 4 * padded(channels)
        case .float16, .bfloat16: 2 * padded(channels)
        case .int8: channels
        case .int4: (channels + 1) / 2
        }
    }

    /// Bytes between value rows, or between groups of eight slots.
    public static func valueStride(_ format: TokenFormat, channels: Int) -> Int {
        switch format {
        case .float32, .float16, .bfloat16: keyStride(format, channels: channels)
        case .int8: 8 * padded(channels)
        case .int4: 4 * padded(channels)
        }
    }

    /// Bytes of the values of `slots` slots, where `slots` is a multiple of `group`.
    public static func valueBytes(_ format: TokenFormat, channels: Int, slots: Int) -> Int {
        valueStride(format, channels: channels) * (format.isQuantized ? slots / group : slots)
    }
}

/// The keys or the values of one head of a pool. Rows of page metadata and of estimates are keys as well.
public struct TokenOperand {
    /// The address of slot 0.
    public var base: UnsafeMutableRawPointer
    public var format: TokenFormat
    public var channels: Int
    /// The distance between rows in bytes. See `TokenLayout.keyStride` and `valueStride`.
    public var stride: Int
    /// Whether the stride is that of groups of eight slots, as for quantised values.
    public var isGrouped: Bool
    /// Half-precision scales and offsets of quantised formats, one per slot.
    public var scales: UnsafeMutablePointer<UInt16>?
    public var offsets: UnsafeMutablePointer<UInt16>?
    public var offsetKind: TokenOffset

    public init(
        base: UnsafeMutableRawPointer, format: TokenFormat, channels: Int, isValue: Bool,
        scales: UnsafeMutablePointer<UInt16>? = nil, offsets: UnsafeMutablePointer<UInt16>? = nil,
        offsetKind: TokenOffset = .minimum
    ) {
        self.base = base
        self.format = format
        self.channels = channels
        isGrouped = isValue && format.isQuantized
        stride =
            isValue
            ? TokenLayout.valueStride(format, channels: channels) : TokenLayout.keyStride(format, channels: channels)
        self.scales = scales
        self.offsets = offsets
        self.offsetKind = offsetKind
    }
}

/// The keys or values of one head of a sequence, as rows: row i is token i, or token i + `gap` from `gapStart` on.
///
/// The tokens of the gap are those that the rows leave out, such as discarded ones.
public struct PagedRows {
    public var tokens: TokenOperand
    /// The page table of the sequence.
    public var pages: UnsafePointer<Int32>
    public var pageSize: Int
    public var gapStart: Int
    public var gap: Int

    public init(tokens: TokenOperand, pages: UnsafePointer<Int32>, pageSize: Int, gapStart: Int, gap: Int) {
        self.tokens = tokens
        self.pages = pages
        self.pageSize = pageSize
        self.gapStart = gapStart
        self.gap = gap
    }
}

/// Linear biases of scores: slope·(j − t) for a token at position j and a query row at position t, or −slope·|j − t|.
public struct TokenAliBi {
    /// One per row.
    public var slopes: UnsafePointer<Float>
    /// t, one per row.
    public var rowPositions: UnsafePointer<Int32>
    /// j, one per slot of the list. Three more must be readable.
    public var positions: UnsafePointer<Int32>
    public var isSymmetric: Bool

    public init(
        slopes: UnsafePointer<Float>, rowPositions: UnsafePointer<Int32>, positions: UnsafePointer<Int32>, isSymmetric: Bool
    ) {
        self.slopes = slopes
        self.rowPositions = rowPositions
        self.positions = positions
        self.isSymmetric = isSymmetric
    }
}

/// Attention of a few query rows over a list of slots, which is the unit of work of decoding.
///
/// Results are partial states. A row's record has `recordStride` floats: Σ e^(s−m)·v in `padded(valueDim)` floats, then m and l
/// = Σ e^(s−m).
public struct AttendTokensArguments {
    public var key: TokenOperand
    public var value: TokenOperand
    /// The slots to attend, in the order of their positions.
    public var slots: UnsafePointer<Int32>
    public var count: Int
    /// Rows of floats, `queryStride` apart.
    public var query: UnsafePointer<Float>
    public var queryStride: Int
    public var rows: Int
    /// The number of first slots that each row sees; nil when all rows see all slots.
    public var visible: UnsafePointer<Int32>?
    public var softmaxScale: Float
    /// Replaces scores by cap·tanh(score/cap) when positive.
    public var logitsSoftCap: Float
    /// Added after the cap; nil adds nothing.
    public var aliBi: TokenAliBi?
    public var records: UnsafeMutablePointer<Float>
    public var recordStride: Int
    /// `TokenScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        key: TokenOperand, value: TokenOperand, slots: UnsafePointer<Int32>, count: Int, query: UnsafePointer<Float>,
        queryStride: Int, rows: Int, visible: UnsafePointer<Int32>? = nil, softmaxScale: Float, logitsSoftCap: Float = 0,
        aliBi: TokenAliBi? = nil, records: UnsafeMutablePointer<Float>, recordStride: Int, scratch: UnsafeMutableRawPointer
    ) {
        self.key = key
        self.value = value
        self.slots = slots
        self.count = count
        self.query = query
        self.queryStride = queryStride
        self.rows = rows
        self.visible = visible
        self.softmaxScale = softmaxScale
        self.logitsSoftCap = logitsSoftCap
        self.aliBi = aliBi
        self.records = records
        self.recordStride = recordStride
        self.scratch = scratch
    }
}

/// Scores of a few query rows for a list of slots: `scores[row][i] = scale · q[row] · key[slots[i]]`.
///
/// With `isBound`, no score of quantised keys is below the exact product.
public struct ScoreTokensArguments {
    public var key: TokenOperand
    public var slots: UnsafePointer<Int32>
    public var count: Int
    public var query: UnsafePointer<Float>
    public var queryStride: Int
    public var rows: Int
    public var scale: Float
    public var isBound: Bool
    public var scores: UnsafeMutablePointer<Float>
    public var scoreStride: Int
    /// `TokenScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        key: TokenOperand, slots: UnsafePointer<Int32>, count: Int, query: UnsafePointer<Float>, queryStride: Int, rows: Int,
        scale: Float, isBound: Bool = false, scores: UnsafeMutablePointer<Float>, scoreStride: Int,
        scratch: UnsafeMutableRawPointer
    ) {
        self.key = key
        self.slots = slots
        self.count = count
        self.query = query
        self.queryStride = queryStride
        self.rows = rows
        self.scale = scale
        self.isBound = isBound
        self.scores = scores
        self.scoreStride = scoreStride
        self.scratch = scratch
    }
}

/// The offsets of the scratch of `AttendTokensArguments` and `ScoreTokensArguments`, in bytes.
public struct TokenScratch: Sendable {
    /// Slots per step. The keys of 128 tokens of 128 half-precision channels are 32 KiB, so that a step's keys and values stay
    /// in the second-level cache from the first group of rows to the last.
    public static let block = 128
    /// Rows that are computed in one pass, because a register tile has 4 rows.
    public static let rowTile = 4

    public var query: Int
    public var scores: Int
    public var scales: Int
    public var pairs: Int
    public var groups: Int
    public var state: Int
    public var byteCount: Int

    public init(headDim: Int, valueDim: Int, rows: Int) {
        let paddedRows = (rows + Self.rowTile - 1) / Self.rowTile * Self.rowTile
        var offset = 0
        query = Self.take(paddedRows / Self.rowTile * Self.queryBytes(headDim), &offset)
        scores = Self.take(Self.block * Self.rowTile * 4, &offset)
        scales = Self.take((2 + 2 * Self.rowTile) * Self.block * 4, &offset)
        // Weights of a group of eight slots are four pairs for four rows.
        pairs = Self.take(Self.block * 4 * Self.rowTile * 4, &offset)
        groups = Self.take(Self.block * 4, &offset)
        state = Self.take(paddedRows * (TokenLayout.padded(valueDim) + 2) * 4, &offset)
        byteCount = offset
    }

    /// Bytes of the packed queries of four rows: floats, or 16-bit codes followed by five factors per row. The widest level
    /// reads codes of INT4 keys 64 at a time.
    public static func queryBytes(_ headDim: Int) -> Int { (headDim + 63) / 64 * 64 * 4 * rowTile + 5 * 4 * rowTile }

    private static func take(_ bytes: Int, _ offset: inout Int) -> Int {
        defer { offset += (bytes + 63) / 64 * 64 }
        return offset
    }
}

/// Merges the partial states of the chunks of one row into an output row.
public struct MergeTokensArguments {
    /// Records as `AttendTokensArguments` writes them.
    public var records: UnsafePointer<Float>
    public var recordStride: Int
    /// The indices of the row's records, in the order of their keys.
    public var indices: UnsafePointer<Int32>
    public var count: Int
    public var valueDim: Int
    /// The logit of an output that nobody reads: Σ e^s gets a term e^`sinkLogit`. −∞ is none.
    public var sinkLogit = -Float.infinity
    /// The output row, of `outputType`, with adjacent channels.
    public var output: UnsafeMutableRawPointer
    public var outputType: StorageType
    public var logSumExp: UnsafeMutablePointer<Float>?
    /// `padded(valueDim)` floats, 64-byte aligned.
    public var scratch: UnsafeMutablePointer<Float>

    public init(
        records: UnsafePointer<Float>, recordStride: Int, indices: UnsafePointer<Int32>, count: Int, valueDim: Int,
        output: UnsafeMutableRawPointer, outputType: StorageType, logSumExp: UnsafeMutablePointer<Float>?,
        scratch: UnsafeMutablePointer<Float>
    ) {
        self.records = records
        self.recordStride = recordStride
        self.indices = indices
        self.count = count
        self.valueDim = valueDim
        self.output = output
        self.outputType = outputType
        self.logSumExp = logSumExp
        self.scratch = scratch
    }
}

/// Stores rows in adjacent slots of a pool.
public struct StoreTokensArguments {
    /// The rows to store, from `first` on.
    public var rows: RowOperand
    public var first: Int
    public var count: Int
    public var target: TokenOperand
    /// The first slot.
    public var slot: Int
    /// `2 · padded(channels)` floats, 64-byte aligned.
    public var scratch: UnsafeMutablePointer<Float>
    /// Whether offsets and scales of 4-bit codes above a minimum are fitted to the rows.
    public var fitsCodes = false

    public init(
        rows: RowOperand, first: Int, count: Int, target: TokenOperand, slot: Int,
        scratch: UnsafeMutablePointer<Float>
    ) {
        self.rows = rows
        self.first = first
        self.count = count
        self.target = target
        self.slot = slot
        self.scratch = scratch
    }
}

/// Summarises the keys of some adjacent slots in one row of page metadata.
public struct SummarizeTokensArguments {
    public var key: TokenOperand
    public var slot: Int
    public var count: Int
    /// Whether the row is the mean. Otherwise it has all channels' largest, then smallest values, rounded outwards.
    public var isMean: Bool
    public var target: TokenOperand
    /// The row of `target`.
    public var row: Int
    /// Whether the row already summarises the slots before, so that only its extremes grow. Not for means and codes.
    public var extendsRow = false
    /// `4 · padded(channels)` floats, 64-byte aligned.
    public var scratch: UnsafeMutablePointer<Float>

    public init(
        key: TokenOperand, slot: Int, count: Int, isMean: Bool, target: TokenOperand, row: Int,
        scratch: UnsafeMutablePointer<Float>
    ) {
        self.key = key
        self.slot = slot
        self.count = count
        self.isMean = isMean
        self.target = target
        self.row = row
        self.scratch = scratch
    }
}

/// The storage type of an operand's elements.
public enum StorageType: UInt8, Sendable {
    case float32
    case float16
    case bfloat16
}

/// Strided rows in the caller's memory. The channels of a row are adjacent. Strides count elements.
///
/// Rows with `pages` are tokens of a cache: row r is row `first` + r·`stride` of `pages`. Their type is not `.float32`, so that
/// kernels read them as all rows that are not floats: through `stageRows`.
public struct RowOperand {
    public var base: UnsafeRawPointer
    public var stride: Int
    public var type: StorageType
    /// The tokens of a cache that the rows are; nil for rows in the caller's memory.
    public var pages: UnsafePointer<PagedRows>?
    /// The row of `pages` that is row 0.
    public var first = 0

    public init(base: UnsafeRawPointer, stride: Int, type: StorageType) {
        self.base = base
        self.stride = stride
        self.type = type
    }

    public init(pages: UnsafePointer<PagedRows>, first: Int) {
        self.init(base: UnsafeRawPointer(pages), stride: 1, type: .float16)
        self.pages = pages
        self.first = first
    }
}

/// A half-open run of keys, `begin..<end`.
public struct KeyRange: Sendable {
    public var begin: Int
    public var end: Int
    /// Whether the limits for global keys apply, instead of those of the pattern.
    public var isGlobal: Bool

    public init(begin: Int, end: Int, isGlobal: Bool = false) {
        self.begin = begin
        self.end = end
        self.isGlobal = isGlobal
    }
}

/// One query block of one head against a list of key ranges, which is the unit of work of every attention operator.
///
/// Query row `i` of the block sees key `j` when `j` is in one of `keyRanges` (ascending, disjoint) and
/// `i + visibleFrom ≤ j < i + visibleTo`. Callers without a lower or upper limit pass ∓2⁶⁰. Global ranges have the limits
/// `globalFrom` and `globalTo` instead. Every row also sees `gatheredKeys`, which are in no range.
///
/// With `limits`, rows have limits of their own in place of all of these. Rows of several query heads that share their keys may
/// be stacked in one block: block row r is then row r mod `rowsPerHead` of head r / `rowsPerHead`.
public struct AttentionArguments {
    /// Row 0 is the first query of the block.
    public var query: RowOperand
    /// Row 0 is key 0 of the sequence.
    public var key: RowOperand
    public var value: RowOperand
    /// The first query row of the block; channels are adjacent and of `outputType`.
    public var output: UnsafeMutableRawPointer
    public var outputStride: Int
    public var outputType: StorageType
    /// One natural-log LSE per query row, or nil.
    public var logSumExp: UnsafeMutablePointer<Float>?
    /// Whether the output rows are records, which `mergeTokens` merges: floats, not divided by their sums, with the maximum and
    /// the sum behind `TokenLayout.padded(valueDim)` of them. `logSumExp` is not written then.
    public var writesRecords = false

    /// Rows of this block, 1…`maximumQueryRows`.
    public var queryRows: Int
    /// Rows of one head, when the block stacks several. Not with a bias or slopes.
    public var rowsPerHead = Int.max
    /// Elements from the rows of a head to those of the next one.
    public var queryHeadStride = 0
    public var outputHeadStride = 0
    public var logSumExpHeadStride = 0
    public var headDim: Int
    public var valueDim: Int
    public var keyRanges: UnsafePointer<KeyRange>?
    public var keyRangeCount = 0
    public var visibleFrom = -(1 << 60)
    public var visibleTo = 1 << 60
    public var globalFrom = -(1 << 60)
    public var globalTo = 1 << 60
    /// The limits of single rows: row i sees key j when limits[i] ≤ j < limits[`limitStride` + i]. Whole vectors of both are read,
    /// `AttentionScratch.maximumLanes` at a time.
    public var limits: UnsafePointer<Int32>?
    public var limitStride = 0
    /// Single keys, ascending.
    public var gatheredKeys: UnsafePointer<Int32>?
    public var gatheredKeyCount = 0

    /// Multiplies the scores, before soft cap, slope and bias.
    public var softmaxScale: Float = 1
    /// Replaces scores by cap·tanh(score/cap) when positive; 0 is off.
    public var logitsSoftCap: Float = 0
    /// Adds slope·(j − i − `aliBiOffset`) when non-zero, or −slope·|j − i − `aliBiOffset`|.
    public var aliBiSlope: Float = 0
    public var aliBiIsSymmetric = false
    public var aliBiOffset = 0
    /// Adds bias[i][j]; rows are `biasStride` floats apart. −∞ hides the key from the row. Not with `gatheredKeys`.
    public var bias: UnsafePointer<Float>?
    public var biasStride = 0
    /// The logit of an output that nobody reads and that takes part in the softmax: Σ e^s gets a term e^`sinkLogit`. −∞ is none.
    public var sinkLogit = -Float.infinity
    /// Skips the exponentials and P·V of a panel and a key block whose scores are all at least this far below the running
    /// maxima of their rows; +∞ skips nothing.
    public var pvSkipThreshold: Float = .infinity

    /// `AttentionScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        query: RowOperand, key: RowOperand, value: RowOperand, output: UnsafeMutableRawPointer, outputStride: Int,
        outputType: StorageType, logSumExp: UnsafeMutablePointer<Float>?, queryRows: Int, headDim: Int, valueDim: Int,
        scratch: UnsafeMutableRawPointer
    ) {
        self.query = query
        self.key = key
        self.value = value
        self.output = output
        self.outputStride = outputStride
        self.outputType = outputType
        self.logSumExp = logSumExp
        self.queryRows = queryRows
        self.headDim = headDim
        self.valueDim = valueDim
        self.scratch = scratch
    }
}

/// The offsets of the kernel's scratch, in floats. Operators and kernels both compute them here, so that they cannot disagree.
public struct AttentionScratch: Sendable {
    /// Keys scored at once. 128 rows of a 24-wide panel are 12 KiB and of a 48-wide one 24 KiB, so that scores stay in the
    /// first-level cache (32 or 48 KiB) from Q·Kᵀ through the softmax to P·V.
    public static let keyBlock = 128
    /// The most query rows of one block.
    public static let maximumQueryRows = 192
    /// The largest register tile height of any instruction set: rows that a ragged tile may write past the last key or channel.
    public static let maximumTileRows = 8
    /// The largest number of lanes of a vector, to which rows of panels are padded.
    public static let maximumLanes = 16
    /// The distance of the two limits of a row, in `AttentionArguments.limits` that has room for every block.
    public static let limitStride = maximumQueryRows

    public var packedQuery: Int
    public var accumulator: Int
    public var scores: Int
    public var statistics: Int
    public var keys: Int
    public var values: Int
    public var finiteValues: Int
    public var byteCount: Int

    public init(headDim: Int, valueDim: Int, queryRows: Int, stagesKeys: Bool, stagesValues: Bool) {
        let paddedRows = (queryRows + Self.maximumLanes - 1) / Self.maximumLanes * Self.maximumLanes
        var offset = 0
        packedQuery = Self.take(headDim * paddedRows, &offset)
        accumulator = Self.take((valueDim + Self.maximumTileRows) * paddedRows, &offset)
        scores = Self.take((Self.keyBlock + Self.maximumTileRows) * 3 * Self.maximumLanes, &offset)
        statistics = Self.take(2 * paddedRows, &offset)
        keys = Self.take(stagesKeys ? Self.keyBlock * headDim : 0, &offset)
        values = Self.take(stagesValues ? Self.keyBlock * valueDim : 0, &offset)
        finiteValues = Self.take(Self.keyBlock * valueDim, &offset)
        byteCount = offset * 4
    }

    /// Not a local function, because in debug builds one that captures a variable allocates it on the heap.
    private static func take(_ floats: Int, _ offset: inout Int) -> Int {
        defer { offset += (floats + 15) / 16 * 16 }
        return offset
    }
}

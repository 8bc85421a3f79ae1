/// The form in which activations are multiplied with quantised weights.
public enum ActivationCoding: UInt8, Sendable {
    /// Floating-point, divided by the smoothing factors.
    case float
    case int8PerToken
    case int8PerGroup
    case int4
    case uint4
    case fp4
}

/// Prepares rows of activations for a quantised product: smooths, quantises and projects them down for the low-rank branch.
///
/// Either half is skipped when its output is nil. Groups are those of the weights. Each output has `groups` entries per row, or
/// rows that are `codeStride`, `valueStride` and `lowStride` elements apart. `low` has room for `tileRows − 1` more rows.
public struct QuantizeArguments {
    public var x: RowOperand
    public var rows: Int
    /// Channels of x.
    public var depth: Int
    /// Channels of the weights: `depth`, with the last group filled up. Padding becomes code 0.
    public var paddedDepth: Int
    /// One divisor per channel.
    public var smooth: UnsafePointer<Float>?
    public var coding: ActivationCoding
    /// Added before unsigned coding.
    public var shift: Float
    public var groupSize: Int
    /// Added to codes, so that none is negative.
    public var zeroCode: Int32

    public var codes: UnsafeMutablePointer<UInt8>?
    public var codeStride = 0
    /// Smoothed activations for `.float`, in place of codes.
    public var values: UnsafeMutablePointer<Float>?
    public var valueStride = 0
    /// The value of one step of the codes.
    public var scales: UnsafeMutablePointer<Float>
    /// Σ scale · code of each group, or Σ values. Sums of codes are written when weights have offsets.
    public var sums: UnsafeMutablePointer<Float>
    public var needsSums = false
    /// The same codes by columns, for remainders of quiet weights: [rows / 4·laneCount][paddedDepth / 4][4·laneCount][4] bytes, from
    /// the first row on. Rows past the last one are undefined.
    public var turnedCodes: UnsafeMutablePointer<UInt8>?

    /// Panels [depth][width·laneCount] of the down-projection, one after the other.
    public var down: UnsafeRawPointer?
    public var factorType: StorageType = .float32
    /// Registers across all panels of `down`.
    public var lowVectors = 0
    public var low: UnsafeMutablePointer<Float>?
    public var lowStride = 0
    /// Whether the call has no other rows. The projection may then sum in another order than for many rows.
    public var isAlone = false

    /// `QuantizedScratch.activationByteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        x: RowOperand, rows: Int, depth: Int, paddedDepth: Int, smooth: UnsafePointer<Float>?, coding: ActivationCoding,
        shift: Float,
        groupSize: Int, zeroCode: Int32, scales: UnsafeMutablePointer<Float>,
        sums: UnsafeMutablePointer<Float>, scratch: UnsafeMutableRawPointer
    ) {
        self.x = x
        self.rows = rows
        self.depth = depth
        self.paddedDepth = paddedDepth
        self.smooth = smooth
        self.coding = coding
        self.shift = shift
        self.groupSize = groupSize
        self.zeroCode = zeroCode
        self.scales = scales
        self.sums = sums
        self.scratch = scratch
    }
}

/// The type of weights that are numbers.
public enum WeightType: UInt8, Sendable {
    case float32
    case float16
    case bfloat16
    /// Codes that kernels read as 2⁻⁸ of their values. NaN does not occur.
    case e4m3
    case e5m2
}

/// The function that is applied to the sums of a quantised product.
public enum OutputFunction: UInt8, Sendable {
    case none
    case gelu
    case silu
    case geluErf
}

/// Some rows of activations times one panel of quantised weights.
public struct QuantizedProductArguments {
    /// Codes that `QuantizeArguments` wrote.
    public var codes: UnsafePointer<UInt8>?
    public var codeStride = 0
    /// The number that was added to the codes.
    public var zeroCode: Int32
    public var values: UnsafePointer<Float>?
    public var valueStride = 0
    public var scales: UnsafePointer<Float>
    public var sums: UnsafePointer<Float>
    public var rows: Int
    public var paddedDepth: Int
    public var groupSize: Int
    /// The largest stored code of an activation, and the largest magnitude of a weight's code.
    public var largestCode: Int
    public var largestWeight: Int

    /// [paddedDepth/8][width·laneCount] words of nibbles, or [paddedDepth/4][width·laneCount] words of bytes.
    public var panel: UnsafeRawPointer
    public var isByte: Bool
    /// For weights that are numbers, [paddedDepth][width·laneCount], their type; nil for codes. They have no groups, scales or
    /// offsets, and activations are `values`.
    public var weightType: WeightType?
    /// For nibbles that are integers: 8 for two's complement, 0 for unsigned. −1 for bytes and for look-up codes.
    public var nibbleZero = -1
    /// The 16 signed bytes that nibbles stand for.
    public var table: UnsafePointer<UInt8>
    /// Σ codes of each group, [groups][width·laneCount], for weights of whole bytes.
    public var codeSums: UnsafePointer<Int32>?
    /// Whether all groups have one scale and one offset on both sides, so that products are summed over the whole depth in integers.
    /// Weights are bytes then, codes of activations have 128 added, and depths are at most `QuantizedScratch.largestWholeDepth`.
    public var isWhole = false
    /// Channels before padding, for whole sums; 0 means `paddedDepth`.
    public var depth = 0
    /// The codes by columns as `QuantizeArguments` has them, from the first row on. If they are given, weights are made quiet, and
    /// their remainders are multiplied apart.
    public var turnedCodes: UnsafePointer<UInt8>?
    /// Remainders of the weights, lane by lane: the number of the word of four channels in the upper half, and the bytes of its
    /// second and fourth channel. Those of lane i of the panel are from `remainderStarts[i]` to `remainderStarts[i + 1]`.
    public var remainders: UnsafePointer<UInt32>?
    public var remainderStarts: UnsafePointer<Int32>?
    /// [groups][width·laneCount].
    public var weightScales: UnsafeRawPointer
    public var scaleType: StorageType
    /// [groups][width·laneCount], subtracted from scale · code.
    public var offsets: UnsafePointer<Float>?
    /// [width·laneCount], for both.
    public var channelScales: UnsafePointer<Float>?
    public var bias: UnsafePointer<Float>?

    public var low: UnsafePointer<Float>?
    public var lowStride = 0
    /// [rank][width·laneCount].
    public var up: UnsafeRawPointer?
    public var factorType: StorageType = .float32
    public var rank = 0

    /// The first row and column; columns are adjacent.
    public var y: UnsafeMutableRawPointer
    public var yStride: Int
    public var yType: StorageType
    /// Columns to write: all lanes of the panel, except in the last panel.
    public var columns: Int
    public var function: OutputFunction

    /// The groups of the panel that take part, in the order of the groups of the activations; nil for all.
    public var groupList: UnsafePointer<Int32>?
    /// Bytes from the end of the panel to the one that is multiplied next, and the bytes of one panel.
    public var bytesSkipped = 0
    public var panelBytes = 0
    /// Bytes between the codes in use and those that are prefetched. The kernel changes it where the next codes are not adjacent.
    public var bytesAhead = QuantizedScratch.bytesAhead

    /// `QuantizedScratch.productByteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        scales: UnsafePointer<Float>, zeroCode: Int32, sums: UnsafePointer<Float>, rows: Int, paddedDepth: Int,
        groupSize: Int, largestCode: Int, largestWeight: Int, panel: UnsafeRawPointer, isByte: Bool,
        table: UnsafePointer<UInt8>, weightScales: UnsafeRawPointer, scaleType: StorageType, y: UnsafeMutableRawPointer,
        yStride: Int, yType: StorageType, columns: Int, function: OutputFunction, scratch: UnsafeMutableRawPointer
    ) {
        self.scales = scales
        self.zeroCode = zeroCode
        self.sums = sums
        self.rows = rows
        self.paddedDepth = paddedDepth
        self.groupSize = groupSize
        self.largestCode = largestCode
        self.largestWeight = largestWeight
        self.panel = panel
        self.isByte = isByte
        self.table = table
        self.weightScales = weightScales
        self.scaleType = scaleType
        self.y = y
        self.yStride = yStride
        self.yType = yType
        self.columns = columns
        self.function = function
        self.scratch = scratch
    }
}

/// The cache blocks of the quantised product and the scratch that they need.
public enum QuantizedScratch {
    /// Channels per step of the product. 32 columns of weights expand to 16 KiB of codes, which stay in the first-level cache.
    public static let codeDepth = 512
    /// Channels per step for weights that become floats, of four bytes each.
    public static let floatDepth = 128
    /// The most rows of a task, a multiple of the tile's six. 132 rows of 3072 codes are 400 KiB, which stay in a second-level
    /// cache of 512 KiB while panels are read.
    public static let taskRows = 132
    /// The same for sums over the whole depth, a multiple of tiles of six and eight rows.
    public static let wholeRows = 120
    public static let wholeRowUnit = 24
    /// The same with quiet weights, where vectors have 8 lanes: a multiple of the tile's six, and of the 32 rows with which remainders
    /// are multiplied. 192 rows of 1152 codes, twice, are 432 KiB.
    public static let quietRows = 192
    public static let quietRowUnit = 96
    /// The fewest rows of a call for which weights are made quiet.
    public static let fewestQuietRows = 32
    /// The largest padded depth of sums in 32 bits, 127·128·2¹⁷ < 2³¹, whose words of four channels have numbers of 16 bits.
    public static let largestWholeDepth = 1 << 17
    /// Bytes of the activations of a task whose activations are floats, where vectors have 16 lanes. Cores with such vectors have
    /// 1 MiB of second-level cache or more. Every panel is widened once per task, which costs 20 cycles per 128 weights, compared
    /// with the 256 cycles in which 64 rows are multiplied with them.
    public static let wideValueBytes = 768 << 10
    /// Bytes between the codes in use and those that are prefetched: 250 ns at 33 GB/s, longer than memory takes to answer.
    public static let bytesAhead = 8192
    /// Rows per task of the activation pass, and channels per step. With 256 · 48 floats of the down-projection, 112 KiB.
    public static let activationRows = 64
    public static let activationDepth = 256

    /// The rows of each task of a product of `rows` rows with floats: equal blocks that stay in a second-level cache. None has a
    /// single row unless the product has, because products of nibbles with floats sum a single row in another order.
    public static func valueRows(_ rows: Int, depth: Int, tileRows: Int, laneCount: Int) -> Int {
        var limit = taskRows
        if laneCount >= 16 { limit = min(limit, max(wideValueBytes / (4 * max(depth, 1)), 4 * tileRows)) }
        var size = GEMMScratch.block(rows, limit: limit, unit: tileRows)
        while rows > 1 && rows % size == 1 { size += tileRows }
        return size
    }

    /// Floats across the widest panel of weights.
    static let maximumLanes = 2 * AttentionScratch.maximumLanes
    /// Rows that tiles at the end may write past the last row.
    public static let spareRows = AttentionScratch.maximumTileRows
    /// Bytes of expanded codes or weights, which come first.
    public static let expandedBytes = maximumLanes * codeDepth
    /// Floats of the scales of a step, for groups of 16. As many offsets follow, and as many starting sums.
    public static let scaleFloats = maximumLanes * codeDepth / 16
    /// Floats of the sums of a task.
    public static let sumFloats = maximumLanes * (taskRows + spareRows)

    public static func productByteCount(rank: Int) -> Int {
        expandedBytes + (3 * scaleFloats + sumFloats + rank * maximumLanes) * 4
    }

    /// Floats of staged rows, which come first. The expanded down-projection and one row of smoothed channels follow.
    public static let stagedFloats = activationRows * activationDepth
    public static let downFloats = 3 * AttentionScratch.maximumLanes * activationDepth
    public static let activationByteCount = (stagedFloats + downFloats + activationDepth) * 4
}

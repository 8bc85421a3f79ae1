/// What becomes of activations before they meet quantised weights.
public enum ActivationCoding: UInt8, Sendable {
    /// Floating-point, divided by the smoothing factors.
    case float
    case int8PerToken
    case int8PerGroup
    case int4
    case uint4
    case fp4
}

/// How stored weight codes become the unsigned bytes that are multiplied.
public enum WeightCoding: UInt8, Sendable {
    /// Nibbles as they are.
    case nibble
    /// Nibbles through a table of 16 bytes.
    case table
    /// Bytes as they are.
    case byte
}

/// Some rows of activations on their way into a quantised product: smoothed, quantised, and through the low-rank down-projection.
///
/// Groups of activations are groups of the weights. Everything written has `groups` entries per row, or `codeStride`, `valueStride` and
/// `lowStride` elements from row to row; there is room for `tileRows − 1` more rows of `low`.
public struct QuantizeArguments {
    public var x: RowOperand
    public var rows: Int
    /// Channels of x.
    public var depth: Int
    /// Channels of the weights: `depth` with the last group filled up. Padding becomes code 0.
    public var paddedDepth: Int
    /// One divisor per channel.
    public var smooth: UnsafePointer<Float>?
    public var coding: ActivationCoding
    /// Added before unsigned coding.
    public var shift: Float
    public var groupSize: Int
    /// Sums of products start at −`zeroCode`·Σ codes.
    public var zeroCode: Int32

    public var codes: UnsafeMutablePointer<Int8>?
    public var codeStride = 0
    /// Smoothed activations for `.float`, instead of codes.
    public var values: UnsafeMutablePointer<Float>?
    public var valueStride = 0
    /// What a code is worth.
    public var scales: UnsafeMutablePointer<Float>
    public var starts: UnsafeMutablePointer<Int32>
    /// Σ scale · code of each group.
    public var sums: UnsafeMutablePointer<Float>

    /// Panels [depth][width·laneCount] of the down-projection, one after the other.
    public var down: UnsafeRawPointer?
    public var factorType: StorageType = .float32
    /// Registers across all panels of `down`.
    public var lowVectors = 0
    public var low: UnsafeMutablePointer<Float>?
    public var lowStride = 0

    /// `QuantizedScratch.activationByteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        x: RowOperand, rows: Int, depth: Int, paddedDepth: Int, smooth: UnsafePointer<Float>?, coding: ActivationCoding,
        shift: Float,
        groupSize: Int, zeroCode: Int32, scales: UnsafeMutablePointer<Float>, starts: UnsafeMutablePointer<Int32>,
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
        self.starts = starts
        self.sums = sums
        self.scratch = scratch
    }
}

/// What follows the sums of a quantised product.
public enum OutputFunction: UInt8, Sendable {
    case none
    case gelu
    case silu
}

/// Some rows of activations times one panel of quantised weights.
public struct QuantizedProductArguments {
    /// What `QuantizeArguments` wrote.
    public var codes: UnsafePointer<Int8>?
    public var codeStride = 0
    public var values: UnsafePointer<Float>?
    public var valueStride = 0
    public var scales: UnsafePointer<Float>
    public var starts: UnsafePointer<Int32>
    public var sums: UnsafePointer<Float>
    public var rows: Int
    public var paddedDepth: Int
    public var groupSize: Int
    /// Largest product of a weight byte and an activation code.
    public var largestProduct: Int

    /// [paddedDepth/8][width·laneCount] words of nibbles, or [paddedDepth/4][width·laneCount] words of bytes.
    public var panel: UnsafeRawPointer
    public var coding: WeightCoding
    /// Code that stands for zero, as a byte.
    public var zeroCode: Int32
    /// 16 bytes for `.table`.
    public var table: UnsafePointer<UInt8>
    /// [groups][width·laneCount].
    public var weightScales: UnsafeRawPointer
    public var scaleType: StorageType
    /// [groups][width·laneCount], subtracted from scale · code.
    public var offsets: UnsafePointer<Float>?
    /// [width·laneCount] each.
    public var channelScales: UnsafePointer<Float>?
    public var bias: UnsafePointer<Float>?

    public var low: UnsafePointer<Float>?
    public var lowStride = 0
    /// [rank][width·laneCount].
    public var up: UnsafeRawPointer?
    public var factorType: StorageType = .float32
    public var rank = 0

    /// First row and column; columns adjacent.
    public var y: UnsafeMutableRawPointer
    public var yStride: Int
    public var yType: StorageType
    /// Columns to write: all lanes of the panel, except in the last one.
    public var columns: Int
    public var function: OutputFunction

    /// `QuantizedScratch.productByteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        scales: UnsafePointer<Float>, starts: UnsafePointer<Int32>, sums: UnsafePointer<Float>, rows: Int, paddedDepth: Int,
        groupSize: Int, largestProduct: Int, panel: UnsafeRawPointer, coding: WeightCoding, zeroCode: Int32,
        table: UnsafePointer<UInt8>, weightScales: UnsafeRawPointer, scaleType: StorageType, y: UnsafeMutableRawPointer,
        yStride: Int, yType: StorageType, columns: Int, function: OutputFunction, scratch: UnsafeMutableRawPointer
    ) {
        self.scales = scales
        self.starts = starts
        self.sums = sums
        self.rows = rows
        self.paddedDepth = paddedDepth
        self.groupSize = groupSize
        self.largestProduct = largestProduct
        self.panel = panel
        self.coding = coding
        self.zeroCode = zeroCode
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

/// Cache blocks of the quantised product and the scratch they need.
public enum QuantizedScratch {
    /// Channels of a step of the product: a panel of 48 columns expands to 24 KiB of codes, which stay in the first-level cache under all
    /// rows.
    public static let codeDepth = 512
    /// The same for weights that become floats, four bytes each.
    public static let floatDepth = 128
    /// Rows of a task: 128 rows of 3072 codes are 384 KiB, which stay in a second-level cache of 512 KiB while panels pass by.
    public static let taskRows = 128
    /// Rows of a task of the activation pass, and channels of a step: 64 · 256 floats and 256 · 48 of the down-projection are 112 KiB.
    public static let activationRows = 64
    public static let activationDepth = 256

    /// Floats across the widest panel.
    static let maximumLanes = 3 * AttentionScratch.maximumLanes
    /// Bytes of expanded codes or weights, which come first.
    public static let expandedBytes = maximumLanes * codeDepth
    /// Floats of the scales of a step, for groups of 16; as many offsets follow.
    public static let scaleFloats = maximumLanes * codeDepth / 16
    /// Floats of the sums of a task.
    public static let sumFloats = maximumLanes * (taskRows + AttentionScratch.maximumTileRows)

    public static func productByteCount(rank: Int) -> Int {
        expandedBytes + (2 * scaleFloats + sumFloats + rank * maximumLanes) * 4
    }

    /// Floats of staged rows, which come first; the expanded down-projection and one row of smoothed channels follow.
    public static let stagedFloats = activationRows * activationDepth
    public static let downFloats = maximumLanes * activationDepth
    public static let activationByteCount = (stagedFloats + downFloats + activationDepth) * 4
}

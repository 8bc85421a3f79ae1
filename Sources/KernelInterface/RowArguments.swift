// The operands of the row operators: normalisation, rotary embedding, activations, embedding. Strides count elements.

/// Strided rows in the caller's memory that a kernel writes. The channels of a row are adjacent.
public struct RowTarget {
    public var base: UnsafeMutableRawPointer
    public var stride: Int
    public var type: StorageType

    public init(base: UnsafeMutableRawPointer, stride: Int, type: StorageType) {
        self.base = base
        self.stride = stride
        self.type = type
    }
}

/// Rows to normalise: y = (x − μ) / √(mean (x − μ)² + ε) · weight + bias, with μ the mean of the row, or 0 for RMSNorm.
public struct NormalizeArguments {
    public var x: RowOperand
    /// `y` may be the memory of `x`, with the same stride and type.
    public var y: RowTarget
    public var rows: Int
    /// At least 1.
    public var channels: Int
    public var epsilon: Float
    /// Whether μ is the mean of the row.
    public var subtractsMean = false
    /// `channels` floats, or nil for 1.
    public var weight: UnsafePointer<Float>?
    /// `channels` floats, or nil for 0.
    public var bias: UnsafePointer<Float>?
    /// When given, x is added to these rows first, and what is normalised are the sums.
    public var residual: UnsafeMutablePointer<Float>?
    public var residualStride = 0

    public init(x: RowOperand, y: RowTarget, rows: Int, channels: Int, epsilon: Float) {
        self.x = x
        self.y = y
        self.rows = rows
        self.channels = channels
        self.epsilon = epsilon
    }
}

/// The layout of a table of rotations: one row per position, which has `width` cosines and then `width` sines.
///
/// Half-split pairs have one of each per pair. Interleaved pairs have two adjacent ones, and the sine of the first is negated, so
/// that a vector of channels is multiplied with a vector of the table.
public struct RotationLayout: Sendable {
    public let pairs: Int
    public let isInterleaved: Bool
    /// Cosines of a row, filled up to whole vectors of every level.
    public let width: Int

    public init(pairs: Int, isInterleaved: Bool) {
        self.pairs = pairs
        self.isInterleaved = isInterleaved
        width = ((isInterleaved ? 2 : 1) * pairs + 15) / 16 * 16
    }

    /// Floats from one row to the next.
    public var stride: Int { 2 * width }
}

/// A table of rotations to make: cos(p·ω) · factor and sin(p·ω) · factor.
public struct MakeRotationsArguments {
    public var positions: UnsafePointer<Int>
    public var rows: Int
    public var layout: RotationLayout
    /// ω of each of the `layout.width` cosines, in 2⁻⁶⁴ turns per position. Multiplied by a position modulo 2⁶⁴, it is the angle
    /// modulo a turn.
    public var frequencies: UnsafePointer<UInt64>
    public var factor: Float
    /// 4-byte aligned.
    public var table: UnsafeMutablePointer<Float>

    public init(
        positions: UnsafePointer<Int>, rows: Int, layout: RotationLayout, frequencies: UnsafePointer<UInt64>, factor: Float,
        table: UnsafeMutablePointer<Float>
    ) {
        self.positions = positions
        self.rows = rows
        self.layout = layout
        self.frequencies = frequencies
        self.factor = factor
        self.table = table
    }
}

/// Rows to rotate in place. Of every row, the first 2·`layout.pairs` channels are rotated.
public struct RotateArguments {
    public var x: RowTarget
    public var rows: Int
    public var layout: RotationLayout
    /// The row of the table for row 0.
    public var table: UnsafePointer<Float>
    /// Floats from the table's row for one row to that for the next; 0 for rows of one position.
    public var tableStride: Int
    /// Multiplies the sines: 1, or −1 to rotate by the negative angles.
    public var direction: Float = 1

    public init(x: RowTarget, rows: Int, layout: RotationLayout, table: UnsafePointer<Float>, tableStride: Int) {
        self.x = x
        self.rows = rows
        self.layout = layout
        self.table = table
        self.tableStride = tableStride
    }
}

/// A function of one number.
public enum RowFunction: UInt8, Sendable {
    /// x / (1 + e⁻ˣ).
    case silu
    /// x · Φ(x), with the distribution function of the normal distribution.
    case gelu
    /// ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))).
    case geluTanh
    /// max(x, 0).
    case relu
    /// max(x, 0)².
    case reluSquared
}

/// Rows of y = function(gate) · up, or of function(gate), with zeros where |function(gate)| ≤ threshold.
public struct ActivateArguments {
    public var gate: RowOperand
    /// Read only if `hasUp`.
    public var up: RowOperand
    public var hasUp: Bool
    public var y: RowTarget
    public var rows: Int
    public var columns: Int
    public var function: RowFunction
    /// A negative number keeps everything. NaN is kept in any case.
    public var threshold: Float = -1

    public init(
        gate: RowOperand, up: RowOperand, hasUp: Bool, y: RowTarget, rows: Int, columns: Int, function: RowFunction
    ) {
        self.gate = gate
        self.up = up
        self.hasUp = hasUp
        self.y = y
        self.rows = rows
        self.columns = columns
        self.function = function
    }
}

/// Rows of y = table[tokens[row]] · scale. Every token is a row of the table.
public struct EmbedArguments {
    public var table: RowOperand
    public var tokens: UnsafePointer<Int>
    public var y: RowTarget
    public var rows: Int
    public var channels: Int
    public var scale: Float

    public init(
        table: RowOperand, tokens: UnsafePointer<Int>, y: RowTarget, rows: Int, channels: Int, scale: Float
    ) {
        self.table = table
        self.tokens = tokens
        self.y = y
        self.rows = rows
        self.channels = channels
        self.scale = scale
    }
}

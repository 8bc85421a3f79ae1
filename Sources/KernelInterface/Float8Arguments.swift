/// The 8-bit floats, whose codes are bytes.
public enum Float8Type: UInt8, Sendable {
    /// Four bits of exponent, three of mantissa, no infinity.
    case e4m3
    /// Five bits of exponent, two of mantissa.
    case e5m2
}

/// Rows to cast to 8-bit floats, codes = cast(numbers · scale), or back, numbers = codes · scale.
public struct Float8CastArguments {
    public var numbers: RowTarget
    public var codes: UnsafeMutableRawPointer
    /// Codes from one row to the next.
    public var codeStride: Int
    public var type: Float8Type
    public var rows: Int
    public var columns: Int
    public var scale: Float

    public init(
        numbers: RowTarget, codes: UnsafeMutableRawPointer, codeStride: Int, type: Float8Type, rows: Int, columns: Int,
        scale: Float
    ) {
        self.numbers = numbers
        self.codes = codes
        self.codeStride = codeStride
        self.type = type
        self.rows = rows
        self.columns = columns
        self.scale = scale
    }
}

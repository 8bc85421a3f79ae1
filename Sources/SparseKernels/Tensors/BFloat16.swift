/// A 16-bit float with the exponent range of `Float` and 8 bits of precision: the upper half of a `Float`.
///
/// This is a storage type. Arithmetic is in `Float`.
public struct BFloat16: Hashable, Sendable, BitwiseCopyable {
    public var bitPattern: UInt16

    public init(bitPattern: UInt16) { self.bitPattern = bitPattern }

    /// The nearest bfloat16 value, ties to even. NaN stays NaN and overflow becomes infinity.
    public init(_ value: Float) {
        let bits = value.bitPattern
        if value.isNaN {
            bitPattern = UInt16(truncatingIfNeeded: bits >> 16) | 0x40
        } else {
            bitPattern = UInt16(truncatingIfNeeded: (bits &+ 0x7fff &+ ((bits >> 16) & 1)) >> 16)
        }
    }

    public static var zero: BFloat16 { BFloat16(bitPattern: 0) }

    /// The exact value.
    public var floatValue: Float { Float(bitPattern: UInt32(bitPattern) << 16) }
}

extension BFloat16: CustomStringConvertible {
    public var description: String { floatValue.description }
}

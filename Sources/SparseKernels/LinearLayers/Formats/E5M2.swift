/// An 8-bit float of sign, five exponent bits with bias 15 and two mantissa bits: the gradients of training in FP8.
///
/// It is the upper byte of a half. The largest finite magnitude is 57344, the smallest 2⁻¹⁶; 0x7c is infinity, and codes above it are
/// NaN. Arithmetic is in `Float`.
public struct E5M2: Float8, Hashable {
    public var bitPattern: UInt8

    public init(bitPattern: UInt8) { self.bitPattern = bitPattern }

    /// The largest finite value, 57344.
    public static let greatestFiniteMagnitude: Float = 57_344
    /// The smallest value above 0, 2⁻¹⁶.
    public static let leastNonzeroMagnitude: Float = 0x1p-16

    /// The nearest finite value, ties to the even mantissa. Values beyond ±57344, including infinities, become ±57344; NaN stays NaN.
    ///
    /// - Source: `cvt.rn.satfinite.e5m2x2.f32` of PTX, except that NaN keeps its sign.
    public init(_ value: Float) {
        let sign = UInt8(truncatingIfNeeded: value.bitPattern >> 24) & 0x80
        let magnitude = value.magnitude
        if value.isNaN {
            bitPattern = sign | 0x7f
        } else if magnitude >= Self.greatestFiniteMagnitude {
            bitPattern = sign | 0x7b
        } else if magnitude < 0x1p-14 {
            // Subnormal values are multiples of 2⁻¹⁶. Four of these units make the first normal value.
            bitPattern = sign | UInt8(truncatingIfNeeded: roundedToInteger(magnitude * 0x1p16))
        } else {
            // Twenty-one bits of the mantissa are dropped. A carry correctly goes into the exponent.
            let bits = magnitude.bitPattern
            let rounded = (bits + 0xfffff + ((bits >> 21) & 1)) >> 21
            bitPattern = sign | UInt8(truncatingIfNeeded: rounded - (127 - 15) << 2)
        }
    }

    public static var zero: E5M2 { E5M2(bitPattern: 0) }
    public static var elementType: ElementType { .float8E5M2 }
    public static var name: String { "E5M2" }

    /// The value, exactly.
    public var floatValue: Float { SparseKernels.floatValue(ofHalf: UInt16(bitPattern) << 8) }
}

extension E5M2: CustomStringConvertible {
    public var description: String { floatValue.description }
}

/// An 8-bit float of sign, four exponent bits with bias 7 and three mantissa bits, without infinities: the scales of NVFP4, and the
/// weights and activations of training in FP8.
///
/// The largest magnitude is 448, the smallest 2⁻⁹; codes 0x7f and 0xff are NaN. Arithmetic is in `Float`.
public struct E4M3: Float8, Hashable {
    public var bitPattern: UInt8

    public init(bitPattern: UInt8) { self.bitPattern = bitPattern }

    /// The largest value, 448.
    public static let greatestFiniteMagnitude: Float = 448
    /// The smallest value above 0, 2⁻⁹, which is also the smallest scale of `ActivationFormat.fp4`.
    public static let leastNonzeroMagnitude: Float = 0x1p-9

    /// The nearest value, ties to the even mantissa. Values beyond ±448, including infinities, become ±448; NaN stays NaN.
    ///
    /// - Source: `cvt.rn.satfinite.e4m3x2.f32` of PTX, except that NaN keeps its sign.
    public init(_ value: Float) {
        let sign = UInt8(truncatingIfNeeded: value.bitPattern >> 24) & 0x80
        let magnitude = value.magnitude
        if value.isNaN {
            bitPattern = sign | 0x7f
        } else if magnitude >= Self.greatestFiniteMagnitude {
            bitPattern = sign | 0x7e
        } else if magnitude < 0x1p-6 {
            // Subnormal values are multiples of 2⁻⁹. Eight of these units make the first normal value.
            bitPattern = sign | UInt8(truncatingIfNeeded: roundedToInteger(magnitude * 512))
        } else {
            // Twenty bits of the mantissa are dropped. A carry correctly goes into the exponent.
            let bits = magnitude.bitPattern
            let rounded = (bits + 0x7ffff + ((bits >> 20) & 1)) >> 20
            bitPattern = sign | UInt8(truncatingIfNeeded: rounded - (127 - 7) << 3)
        }
    }

    public static var zero: E4M3 { E4M3(bitPattern: 0) }

    /// The value, exactly.
    public var floatValue: Float {
        let (exponent, mantissa) = (UInt32(bitPattern >> 3) & 15, UInt32(bitPattern) & 7)
        let magnitude: Float
        if exponent == 0 {
            magnitude = Float(mantissa) * 0x1p-9
        } else if bitPattern & 0x7f == 0x7f {
            magnitude = .nan
        } else {
            magnitude = Float(bitPattern: (exponent + 127 - 7) << 23 | mantissa << 20)
        }
        return bitPattern & 0x80 == 0 ? magnitude : -magnitude
    }
}

extension E4M3 {
    public static var elementType: ElementType { .float8E4M3 }
    public static var name: String { "E4M3" }
}

extension E4M3: CustomStringConvertible {
    public var description: String { floatValue.description }
}

internal import KernelInterface

// Rounding to 16-bit types while values stay in `Float`, so that results match those of code with 16-bit tensors.

extension StorageType {
    /// The value of this type nearest to `value`, ties to even.
    func rounded(_ value: Float) -> Float {
        switch self {
        case .float32: value
        case .float16: roundedToHalf(value)
        case .bfloat16: BFloat16(value).floatValue
        }
    }
}

/// The half-precision value nearest to `value`, ties to even; overflow becomes infinity and NaN stays NaN.
///
/// It does not use `Float16`, which Intel Macs lack. Normal results lose 13 bits of the significand; adding 1/2 makes the FPU
/// round subnormal ones to multiples of 2⁻²⁴.
package func roundedToHalf(_ value: Float) -> Float {
    let magnitude = abs(value)
    if !(magnitude < 65520) { return value.isNaN ? value : Float(signOf: value, magnitudeOf: .infinity) }
    let rounded: Float
    if magnitude < 0x1p-14 {
        rounded = (magnitude + 0.5) - 0.5
    } else {
        let odd = (magnitude.bitPattern >> 13) & 1
        rounded = Float(bitPattern: (magnitude.bitPattern + 0xfff + odd) & ~0x1fff)
    }
    return Float(signOf: value, magnitudeOf: rounded)
}

/// The bits of the half-precision value nearest to `value`, which `floatValue(ofHalf:)` reads back.
package func halfBitPattern(_ value: Float) -> UInt16 {
    let rounded = roundedToHalf(value)
    let sign = UInt16(truncatingIfNeeded: rounded.bitPattern >> 16) & 0x8000
    let magnitude = abs(rounded)
    if magnitude.isNaN { return sign | 0x7e00 }
    if magnitude == .infinity { return sign | 0x7c00 }
    // Subnormal values are multiples of 2⁻²⁴; normal ones move from exponent bias 127 to 15.
    if magnitude < 0x1p-14 { return sign | UInt16(magnitude * 0x1p24) }
    return sign | UInt16(truncatingIfNeeded: (magnitude.bitPattern - 112 << 23) >> 13)
}

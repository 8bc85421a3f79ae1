internal import KernelInterface

// Rounding to 16-bit types while values stay in `Float`: for arithmetic that has to land where code of 16-bit tensors lands.

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
/// Without `Float16`, which Intel Macs lack: normal results lose 13 bits of the significand, and adding 1/2 makes the FPU round
/// subnormal ones to multiples of 2⁻²⁴.
func roundedToHalf(_ value: Float) -> Float {
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

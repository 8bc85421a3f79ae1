// Conversion of whole registers of floats to 16 bits.
//
// Integer lanes are compared with whole registers: Swift compares them with a number one by one.

/// The bfloat16 bit patterns nearest to the lanes, ties to even, in the low halves of the results. NaN stays NaN.
@_alwaysEmitIntoClient @_transparent
public func bfloat16Bits(_ value: Vector) -> IntVector {
    let bits = unsafeBitCast(value, to: IntVector.self)
    let rounded = bits &+ 0x7fff &+ ((bits &>> 16) & 1)
    return (rounded.replacing(with: bits | 0x40_0000, where: (bits & 0x7fff_ffff) .> IntVector(repeating: 0x7f80_0000)) &>> 16)
        & 0xffff
}

/// The half-precision bit patterns nearest to the lanes, ties to even, in the low halves of the results. See `narrowToHalf`.
@_alwaysEmitIntoClient @_transparent
public func halfBits(_ value: Vector) -> IntVector {
    let bits = unsafeBitCast(value, to: IntVector.self)
    let sign = (bits &>> 16) & 0x8000
    let magnitude = bits & 0x7fff_ffff
    let normal = (magnitude &- 0x3800_0000 &+ 0xfff &+ ((magnitude &>> 13) & 1)) &>> 13
    let subnormal = unsafeBitCast(unsafeBitCast(magnitude, to: Vector.self) + splat(0.5), to: IntVector.self) &- 0x3f00_0000
    var result = normal.replacing(with: subnormal, where: magnitude .< IntVector(repeating: 0x3880_0000))
    result = result.replacing(with: 0x7c00, where: magnitude .>= IntVector(repeating: 0x4780_0000))
    result = result.replacing(with: 0x7e00, where: magnitude .> IntVector(repeating: 0x7f80_0000))
    return result | sign
}

/// The lanes rounded to bfloat16 and widened again.
@_alwaysEmitIntoClient @_transparent
public func roundedToBFloat16(_ value: Vector) -> Vector { unsafeBitCast(bfloat16Bits(value) &<< 16, to: Vector.self) }

/// The lanes rounded to half precision and widened again.
@_alwaysEmitIntoClient @_transparent
public func roundedToHalf(_ value: Vector) -> Vector {
    let bits = unsafeBitCast(value, to: IntVector.self)
    let magnitude = bits & 0x7fff_ffff
    let sign = bits & IntVector(repeating: Int32(bitPattern: 0x8000_0000))
    // Normal results keep 10 bits of fraction. Below 2⁻¹⁴ the step is 2⁻²⁴, which is also the step of floats in ½…1.
    let normal = (magnitude &+ 0xfff &+ ((magnitude &>> 13) & 1)) & ~0x1fff
    let half = splat(0.5)
    let subnormal = unsafeBitCast((unsafeBitCast(magnitude, to: Vector.self) + half) - half, to: IntVector.self)
    var result = normal.replacing(with: subnormal, where: magnitude .< IntVector(repeating: 0x3880_0000))
    result = result.replacing(with: 0x7f80_0000, where: normal .>= IntVector(repeating: 0x4780_0000))
    result = result.replacing(with: magnitude, where: magnitude .>= IntVector(repeating: 0x7f80_0000))
    return unsafeBitCast(result | sign, to: Vector.self)
}

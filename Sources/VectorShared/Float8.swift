// Conversion of whole registers of floats to codes of 8-bit floats: to nearest, ties to even, saturating; NaN becomes the code of NaN
// with all bits of exponent and mantissa set.
//
// Integer lanes are compared with whole registers: Swift compares them with a number one by one.

/// The E4M3 codes nearest to the lanes, in the low bytes of the results.
@_alwaysEmitIntoClient @_transparent
public func e4m3Bits(_ value: Vector) -> IntVector {
    let bits = unsafeBitCast(value, to: IntVector.self)
    let sign = (bits &>> 24) & 0x80
    let magnitude = bits & 0x7fff_ffff
    // Twenty bits of the mantissa are dropped; exponents are biased by 7 instead of 127.
    let normal = (magnitude &- 0x3c00_0000 &+ 0x7_ffff &+ ((magnitude &>> 20) & 1)) &>> 20
    // Below 2⁻⁶ the step is 2⁻⁹, which is also the step of floats from 2¹⁴ on.
    let subnormal = unsafeBitCast(unsafeBitCast(magnitude, to: Vector.self) + splat(0x1p14), to: IntVector.self) &- 0x4680_0000
    var result = normal.replacing(with: subnormal, where: magnitude .< IntVector(repeating: 0x3c80_0000))
    result = result.replacing(with: 0x7e, where: magnitude .>= IntVector(repeating: 0x43e0_0000))
    result = result.replacing(with: 0x7f, where: magnitude .> IntVector(repeating: 0x7f80_0000))
    return result | sign
}

/// The E5M2 codes nearest to the lanes, in the low bytes of the results.
@_alwaysEmitIntoClient @_transparent
public func e5m2Bits(_ value: Vector) -> IntVector {
    let bits = unsafeBitCast(value, to: IntVector.self)
    let sign = (bits &>> 24) & 0x80
    let magnitude = bits & 0x7fff_ffff
    // Twenty-one bits of the mantissa are dropped; exponents are biased by 15.
    let normal = (magnitude &- 0x3800_0000 &+ 0xf_ffff &+ ((magnitude &>> 21) & 1)) &>> 21
    // Below 2⁻¹⁴ the step is 2⁻¹⁶, which is also the step of floats from 2⁷ on.
    let subnormal = unsafeBitCast(unsafeBitCast(magnitude, to: Vector.self) + splat(0x1p7), to: IntVector.self) &- 0x4300_0000
    var result = normal.replacing(with: subnormal, where: magnitude .< IntVector(repeating: 0x3880_0000))
    result = result.replacing(with: 0x7b, where: magnitude .>= IntVector(repeating: 0x4760_0000))
    result = result.replacing(with: 0x7f, where: magnitude .> IntVector(repeating: 0x7f80_0000))
    return result | sign
}

// eˣ and tanh, to a few units in the last place, without tables or branches.

/// eˣ for x ≤ 88; exactly 0 below −87.7 (and for −∞), exactly 1 at 0, NaN for NaN.
///
/// x·log₂e = n + f with n the nearest integer, |f| ≤ ½. Adding 1.5·2²³ + 127 leaves n + 127 in the low mantissa bits, so that
/// shifting them into the exponent field gives 2ⁿ. n = −127 gives the bit pattern of +0, so that masked scores become exact
/// zeros. f is computed from x by another multiply-add, so that the product x·log₂e is never rounded by itself. 2ᶠ is the
/// minimax polynomial of degree 5 with p(0) = 1 exactly, so that an unchanged running maximum rescales by exactly 1. Its
/// relative error is 1.1e-7. With the roundings of the multiply-adds, the result is within 1.7e-7 (6.6e-8 RMS), plus 2e-8·|x|
/// from the constant (9e-8·|x| on levels without fused multiply-adds). Degree 6 would halve the first part and cost one
/// multiply-add in fourteen operations.
@_alwaysEmitIntoClient @_transparent
public func exp(_ argument: Vector) -> Vector {
    let magic = splat(12_583_039)  // 1.5·2²³ + 127
    let log2E = splat(1.442_695)
    let x = maximum(splat(-88.03), argument)
    let shifted = multiplyAdd(x, log2E, magic)
    let f = multiplyAdd(x, log2E, magic - shifted)
    return powerOfFraction(f) * powerOfInteger(shifted)
}

/// 2^(a·b) for −126 ≤ a·b ≤ 127, and NaN for NaN: the method of `exp`, without limits and without a factor. The product is not rounded
/// where multiply-adds are fused, so the relative error is within 1.7e-7 (1.1e-7 of it from the polynomial), plus 6e-8·|a·b| elsewhere.
@_alwaysEmitIntoClient @_transparent
public func powerOfProduct(_ a: Vector, _ b: Vector) -> Vector {
    let magic = splat(12_583_039)
    let shifted = multiplyAdd(a, b, magic)
    return powerOfFraction(multiplyAdd(a, b, magic - shifted)) * powerOfInteger(shifted)
}

/// 2^(a·b) for any a·b: exactly 0 below −126.5 and infinite above 127.5. Between them it has the bits of `powerOfProduct`.
@_alwaysEmitIntoClient @_transparent
public func powerOfAnyProduct(_ a: Vector, _ b: Vector) -> Vector {
    let magic = splat(12_583_039)
    // n is limited to −127…128, whose bit patterns are 0 and ∞, and f to where it is without limits, so that no product is ∞ · 0.
    let shifted = minimum(maximum(splat(12_582_912), multiplyAdd(a, b, magic)), splat(12_583_167))
    let f = minimum(maximum(splat(-0.5), multiplyAdd(a, b, magic - shifted)), splat(0.5))
    return powerOfFraction(f) * powerOfInteger(shifted)
}

/// 2ᶠ for |f| ≤ ½.
@_alwaysEmitIntoClient @_transparent
func powerOfFraction(_ f: Vector) -> Vector {
    var p = splat(1.326_472_7e-3)
    p = multiplyAdd(p, f, splat(9.671_513e-3))
    p = multiplyAdd(p, f, splat(5.550_733_6e-2))
    p = multiplyAdd(p, f, splat(2.402_224_2e-1))
    p = multiplyAdd(p, f, splat(6.931_47e-1))
    return multiplyAdd(p, f, splat(1))
}

/// 2ⁿ of n + 127 in the low bits of a mantissa.
@_alwaysEmitIntoClient @_transparent
func powerOfInteger(_ shifted: Vector) -> Vector {
    unsafeBitCast(unsafeBitCast(shifted, to: IntVector.self) &<< 23, to: Vector.self)
}

/// tanh x, with an absolute error below 3e-7 and a relative error below 4e-7.
///
/// For |x| < 0.4, the odd Taylor polynomial up to x¹¹ (the next term is 6e-8 of x there). Elsewhere 1 − 2/(e²ˣ + 1), whose
/// absolute error of 1.3e-7 is 3.4e-7 of tanh ≥ 0.38.
@_alwaysEmitIntoClient @_transparent
public func tanh(_ x: Vector) -> Vector {
    let magnitude = magnitude(x)
    let sign = unsafeBitCast(x, to: IntVector.self) & IntVector(repeating: Int32(bitPattern: 0x8000_0000))
    // The argument is capped where tanh is already 1, so that exp stays in range.
    let large = splat(1) - splat(2) / (exp(minimum(magnitude + magnitude, splat(80))) + splat(1))
    let square = magnitude * magnitude
    var p = splat(-8.863_235_5e-3)
    p = multiplyAdd(p, square, splat(2.186_948_8e-2))
    p = multiplyAdd(p, square, splat(-5.396_825_4e-2))
    p = multiplyAdd(p, square, splat(1.333_333_4e-1))
    p = multiplyAdd(p, square, splat(-3.333_333_3e-1))
    p = multiplyAdd(p, square, splat(1))
    let small = p * magnitude
    let result = large.replacing(with: small, where: magnitude .< splat(0.4))
    return unsafeBitCast(unsafeBitCast(result, to: IntVector.self) | sign, to: Vector.self)
}

/// Lane-wise `b < a ? b : a`, which is the first operand when either is NaN.
@_alwaysEmitIntoClient @_transparent
public func minimum(_ a: Vector, _ b: Vector) -> Vector { a.replacing(with: b, where: b .< a) }

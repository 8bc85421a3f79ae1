// Activation functions of neural networks, which quantised products and row operators share.

/// x / (1 + e⁻ˣ). The exponent is capped at 88, where the quotient already has x's limit of 0.
@_alwaysEmitIntoClient @_transparent
public func silu(_ x: Vector) -> Vector { x / (splat(1) + exp(minimum(splat(0) - x, splat(88)))) }

/// log(1 + eˣ) = max(x, 0) + log(1 + u), from max(x, 0) and u = e^(−|x|); x above 20, where u is less than half of its last place, and
/// NaN for NaN.
///
/// log(1 + u) is u·Q(u) with Q(0) = 1, so that the result keeps the relative accuracy of eˣ for very negative x: 4e-7 + 2e-8·|x| (1e-7·|x|
/// on levels without fused multiply-adds). Q is the polynomial of degree 8 with the least relative error on 0…1 (3.3e-8, by Remez).
///
/// Loops compute u in a pass of its own: the whole chain is longer than what a core holds of its next instructions.
@_alwaysEmitIntoClient @_transparent
public func softplus(positive: Vector, power u: Vector) -> Vector {
    var q = splat(5.364_790_7e-3)
    q = multiplyAdd(q, u, splat(-3.006_565_5e-2))
    q = multiplyAdd(q, u, splat(7.920_431e-2))
    q = multiplyAdd(q, u, splat(-1.375_378_3e-1))
    q = multiplyAdd(q, u, splat(1.915_364_6e-1))
    q = multiplyAdd(q, u, splat(-2.485_716_1e-1))
    q = multiplyAdd(q, u, splat(3.332_132e-1))
    q = multiplyAdd(q, u, splat(-4.999_964_8e-1))
    q = multiplyAdd(q, u, splat(1))
    return multiplyAdd(q, u, positive)
}

/// ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))).
@_alwaysEmitIntoClient @_transparent
public func geluTanh(_ x: Vector) -> Vector {
    let inner = splat(0.797_884_56) * multiplyAdd(splat(0.044_715) * x * x, x, x)
    return splat(0.5) * x * (splat(1) + tanh(inner))
}

/// x · Φ(x) = ½ x (1 + erf(x / √2)), with Φ taken from the upper tail, so that it is accurate for negative x, too.
@_alwaysEmitIntoClient @_transparent
public func gelu(_ x: Vector) -> Vector {
    let tail = normalTail(magnitude(x))
    return x * (splat(1) - tail).replacing(with: tail, where: x .< splat(0))
}

/// 1 − Φ(a) = ½ erfc(a / √2) for a ≥ 0, the upper tail of the normal distribution; NaN for NaN.
///
/// e^(−a²/2) · M(a), where M (Mills' ratio divided by √(2π)) falls slowly from ½ like 1/a. It is s·P(s) with s = 1/(1 + 0.34 a) and P
/// the polynomial of degree 8 with the least relative error on 0…14, which is 3e-8 (Remez-like fit by reweighted least squares).
/// Roundings of the nine steps make it 3e-7. The exponential adds 2e-7 + 2e-8·a²/2 (1e-7·a²/2 without fused multiply-adds), and the
/// rounding of a²/2 adds 6e-8·a²/2. Beyond a = 13.2 the result is 0, where the tail is below 5e-40.
@_alwaysEmitIntoClient @_transparent
public func normalTail(_ a: Vector) -> Vector {
    let s = splat(1) / multiplyAdd(splat(0.34), a, splat(1))
    var p = splat(-0.026_120_353)
    p = multiplyAdd(p, s, splat(0.139_498_89))
    p = multiplyAdd(p, s, splat(-0.273_131_5))
    p = multiplyAdd(p, s, splat(0.202_181_22))
    p = multiplyAdd(p, s, splat(-0.044_717_453))
    p = multiplyAdd(p, s, splat(0.115_358_75))
    p = multiplyAdd(p, s, splat(0.115_197_85))
    p = multiplyAdd(p, s, splat(0.136_112_18))
    p = multiplyAdd(p, s, splat(0.135_620_5))
    return p * s * exp(splat(-0.5) * a * a)
}

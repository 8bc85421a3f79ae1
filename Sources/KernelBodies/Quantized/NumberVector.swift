// One row of activations times a panel of weights that are numbers of 8, 16 or 32 bits: C += Σ_k x[k] · w[k], widened in registers.
//
// The product is bound by reading the weights. Four channels at a time have sums of their own: a chain of multiply-adds in one
// register would take their latency of four cycles per channel, longer than a level-one cache takes to deliver the weights.

import KernelInterface

@inline(never)
func multiplyNumbersByOne(
    _ x: UnsafePointer<Float>, _ weights: UnsafeRawPointer, _ type: WeightType, channels: Int, c: UnsafeMutablePointer<Float>
) {
    switch type {
    case .float32: multiply(x, weights, .float32, channels, c, width: 1)
    case .float16: multiply(x, weights, .float16, channels, c, width: 1)
    case .bfloat16: multiply(x, weights, .bfloat16, channels, c, width: 1)
    case .e4m3: multiply(x, weights, .e4m3, channels, c, width: 1)
    case .e5m2: multiply(x, weights, .e5m2, channels, c, width: 1)
    }
}

@inline(never)
func multiplyNumbersByTwo(
    _ x: UnsafePointer<Float>, _ weights: UnsafeRawPointer, _ type: WeightType, channels: Int, c: UnsafeMutablePointer<Float>
) {
    switch type {
    case .float32: multiply(x, weights, .float32, channels, c, width: 2)
    case .float16: multiply(x, weights, .float16, channels, c, width: 2)
    case .bfloat16: multiply(x, weights, .bfloat16, channels, c, width: 2)
    case .e4m3: multiply(x, weights, .e4m3, channels, c, width: 2)
    case .e5m2: multiply(x, weights, .e5m2, channels, c, width: 2)
    }
}

@_transparent
private func multiply(
    _ x: UnsafePointer<Float>, _ weights: UnsafeRawPointer, _ type: WeightType, _ channels: Int,
    _ c: UnsafeMutablePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    let zero = splat(0)
    var (a0, a1, a2, a3) = (load(c), zero, zero, zero)
    var (b0, b1, b2, b3) = (width > 1 ? load(c + laneCount) : zero, zero, zero, zero)
    var k = 0
    while k + 4 <= channels {
        let (x0, x1, x2, x3) = (splat(x[k]), splat(x[k + 1]), splat(x[k + 2]), splat(x[k + 3]))
        let first = k * lanes
        a0 = multiplyAdd(x0, weight(weights, type, first), a0)
        a1 = multiplyAdd(x1, weight(weights, type, first + lanes), a1)
        a2 = multiplyAdd(x2, weight(weights, type, first + 2 * lanes), a2)
        a3 = multiplyAdd(x3, weight(weights, type, first + 3 * lanes), a3)
        if width > 1 {
            b0 = multiplyAdd(x0, weight(weights, type, first + laneCount), b0)
            b1 = multiplyAdd(x1, weight(weights, type, first + lanes + laneCount), b1)
            b2 = multiplyAdd(x2, weight(weights, type, first + 2 * lanes + laneCount), b2)
            b3 = multiplyAdd(x3, weight(weights, type, first + 3 * lanes + laneCount), b3)
        }
        k += 4
    }
    while k < channels {
        a0 = multiplyAdd(splat(x[k]), weight(weights, type, k * lanes), a0)
        if width > 1 { b0 = multiplyAdd(splat(x[k]), weight(weights, type, k * lanes + laneCount), b0) }
        k += 1
    }
    store((a0 + a1) + (a2 + a3), c)
    if width > 1 { store((b0 + b1) + (b2 + b3), c + laneCount) }
}

/// A register of weights from element `index` on.
@_transparent
private func weight(_ weights: UnsafeRawPointer, _ type: WeightType, _ index: Int) -> Vector {
    switch type {
    case .float32: load(weights.assumingMemoryBound(to: Float.self) + index)
    case .float16: loadHalf(weights.assumingMemoryBound(to: UInt16.self) + index)
    case .bfloat16: loadBFloat16(weights.assumingMemoryBound(to: UInt16.self) + index)
    case .e4m3: loadE4M3(weights + index)
    case .e5m2: loadE5M2(weights + index)
    }
}

// One row of activations times a panel of weights that are numbers of 8, 16 or 32 bits: C += Σ_k x[k] · w[k], widened in registers.
//
// Blocks of `floatDepth` channels have sums of their own, which are added in order: so does the product of many rows, which widens
// a block at a time, and a row has the same bits alone and among others. Four blocks are summed at a time: a chain of multiply-adds
// in one register would take their latency of four cycles per channel, longer than a near cache takes to deliver the weights.

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
    let block = QuantizedScratch.floatDepth
    var first = 0
    while first + 4 * block <= channels {
        var (a0, a1, a2, a3) = (splat(0), splat(0), splat(0), splat(0))
        var (b0, b1, b2, b3) = (a0, a1, a2, a3)
        for k in first..<first + block {
            let (x0, x1, x2, x3) = (
                splat(x[k]), splat(x[k + block]), splat(x[k + 2 * block]), splat(x[k + 3 * block])
            )
            let place = k * lanes
            a0 = multiplyAdd(x0, weight(weights, type, place), a0)
            a1 = multiplyAdd(x1, weight(weights, type, place + block * lanes), a1)
            a2 = multiplyAdd(x2, weight(weights, type, place + 2 * block * lanes), a2)
            a3 = multiplyAdd(x3, weight(weights, type, place + 3 * block * lanes), a3)
            if width > 1 {
                b0 = multiplyAdd(x0, weight(weights, type, place + laneCount), b0)
                b1 = multiplyAdd(x1, weight(weights, type, place + block * lanes + laneCount), b1)
                b2 = multiplyAdd(x2, weight(weights, type, place + 2 * block * lanes + laneCount), b2)
                b3 = multiplyAdd(x3, weight(weights, type, place + 3 * block * lanes + laneCount), b3)
            }
        }
        store((((load(c) + a0) + a1) + a2) + a3, c)
        if width > 1 { store((((load(c + laneCount) + b0) + b1) + b2) + b3, c + laneCount) }
        first += 4 * block
    }
    while first < channels {
        let end = minimum(first + block, channels)
        var (a, b) = (splat(0), splat(0))
        for k in first..<end {
            a = multiplyAdd(splat(x[k]), weight(weights, type, k * lanes), a)
            if width > 1 { b = multiplyAdd(splat(x[k]), weight(weights, type, k * lanes + laneCount), b) }
        }
        store(load(c) + a, c)
        if width > 1 { store(load(c + laneCount) + b, c + laneCount) }
        first = end
    }
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

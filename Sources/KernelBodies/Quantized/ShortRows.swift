// The last rows of a product with float weights, four or fewer, where the tile has eight: C += a · w.
//
// Half of the tile's work would be for rows that nobody wants. Experts of a mixture often have as few. Each row is summed as in the
// tile, so that its bits do not depend on its place. Four rows by two registers are eight chains, just enough for two multiply-adds
// per cycle of four cycles' latency.

import KernelInterface

@inline(never)
func addShortRowsByOne(
    _ a: UnsafePointer<Float>, stride: Int, count: Int, _ weights: UnsafePointer<Float>, channels: Int,
    _ c: UnsafeMutablePointer<Float>
) {
    addShortRows(a, stride: stride, count: count, weights, channels: channels, c, width: 1)
}

@inline(never)
func addShortRowsByTwo(
    _ a: UnsafePointer<Float>, stride: Int, count: Int, _ weights: UnsafePointer<Float>, channels: Int,
    _ c: UnsafeMutablePointer<Float>
) {
    addShortRows(a, stride: stride, count: count, weights, channels: channels, c, width: 2)
}

/// C has memory for four rows. Those past `count` repeat the last row of a.
@_transparent
private func addShortRows(
    _ a: UnsafePointer<Float>, stride: Int, count: Int, _ weights: UnsafePointer<Float>, channels: Int,
    _ c: UnsafeMutablePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    let (a1, a2, a3) = (
        a + minimum(1, count - 1) * stride, a + minimum(2, count - 1) * stride, a + minimum(3, count - 1) * stride
    )
    let zero = splatRow(0)
    var (c0, c1, c2, c3) = (zero, zero, zero, zero)
    var w = weights
    for k in 0..<channels {
        let row = loadRow(w, width: width)
        c0 = multiplyAdd(a[k], row, c0)
        c1 = multiplyAdd(a1[k], row, c1)
        c2 = multiplyAdd(a2[k], row, c2)
        c3 = multiplyAdd(a3[k], row, c3)
        w += lanes
    }
    store(loadRow(c, width: width) + c0, c, width: width)
    store(loadRow(c + lanes, width: width) + c1, c + lanes, width: width)
    store(loadRow(c + 2 * lanes, width: width) + c2, c + 2 * lanes, width: width)
    store(loadRow(c + 3 * lanes, width: width) + c3, c + 3 * lanes, width: width)
}

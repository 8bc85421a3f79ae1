// What a core can do at best, measured with the same vectors that the kernels use. Benchmarks divide by these.

/// Runs `iterations` × `roofChains` independent multiply-adds, each `laneCount` wide, out of registers. Returns a value that
/// depends on all of them, so that none can be left out.
public func multiplyAddChains(_ iterations: Int, _ seed: Float) -> Float {
    let a = splat(seed)
    let b = splat(1 - seed)
    var c = Accumulators(repeating: splat(seed))
    for _ in 0..<iterations {
        forEachTileRow { r in
            c[3 * r] = multiplyAdd(c[3 * r], a, b)
            c[3 * r + 1] = multiplyAdd(c[3 * r + 1], a, b)
            c[3 * r + 2] = multiplyAdd(c[3 * r + 2], a, b)
        }
    }
    var sum = splat(0)
    forEachTileRow { r in sum += c[3 * r] + c[3 * r + 1] + c[3 * r + 2] }
    return sum.sum()
}

/// Reads `count` floats once, in order, with eight independent sums. `count` is a multiple of 8·laneCount.
public func readAll(_ pointer: UnsafePointer<Float>, _ count: Int) -> Float {
    var sums = InlineArray<8, Vector>(repeating: splat(0))
    var offset = 0
    while offset < count {
        for x in 0..<8 { sums[x] += load(pointer + offset + x * laneCount) }
        offset += 8 * laneCount
    }
    var sum = splat(0)
    for x in 0..<8 { sum += sums[x] }
    return sum.sum()
}

/// One packed tile of a matrix product, `iterations` times over the same strip and panel: the micro-kernel alone, with its loads
/// and stores but without packing.
public func multiplyTile(
    _ strip: UnsafePointer<Float>, _ panel: UnsafePointer<Float>, _ c: UnsafeMutablePointer<Float>, _ depth: Int,
    _ iterations: Int
) {
    for _ in 0..<iterations {
        var tile = Accumulators(repeating: splat(0))
        accumulate(
            &tile, width: panelVectors, rows: rowPointers(strip, stride: 1, count: tileRows), step: tileRows, panel: panel,
            depth: depth)
        addTile(tile, c, stride: panelWidth, width: panelVectors)
    }
}

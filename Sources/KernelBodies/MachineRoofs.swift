// The most that a core can do, measured with the vectors that the kernels use. Benchmarks report speeds as fractions of these.

extension Kernels {
    /// Runs `iterations` multiply-adds in each of 3·`tileRows` independent chains of vectors, in registers. Returns a value
    /// that depends on all chains, so that the compiler removes none.
    public static func multiplyAddChains(iterations: Int, seed: Float) -> Float {
        let a = splatRow(seed)
        let b = splatRow(1 - seed)
        var tile = zeroTile()
        for _ in 0..<iterations { chain(&tile, a, b) }
        return total(tile)
    }

    /// Runs `iterations` multiply-adds of codes in each of 3·`tileRows` independent chains, and returns a value that needs all.
    public static func codeProductChains(iterations: Int) -> Int32 {
        let codes = splatWord(0x0103_0201)
        let row = sumRow(0x0102_0304)
        var tile: CodeTile = (row, row, row, row, row, row, row, row)
        for _ in 0..<iterations { chain(&tile, codes) }
        let (a, b) = (integers(tile.r0, isByte: false) + integers(tile.r1, isByte: false), integers(tile.r2, isByte: false))
        var sum = a + b + integers(tile.r3, isByte: false)
        if tileRows > 4 {
            sum = sum + integers(tile.r4, isByte: false) + integers(tile.r5, isByte: false)
            sum = sum + integers(tile.r6, isByte: false) + integers(tile.r7, isByte: false)
        }
        let lanes = sum.x0 &+ sum.x1 &+ sum.x2
        return lanes[0]
    }

    /// Computes the exponentials of `count` floats, `rounds` times. `count` is a multiple of four vectors, few enough for the nearest
    /// cache, whose loads and stores take none of the ports that arithmetic needs.
    public static func exponentials(
        _ source: UnsafePointer<Float>, into target: UnsafeMutablePointer<Float>, count: Int, rounds: Int
    ) {
        for _ in 0..<rounds {
            var x = 0
            while x < count {
                store(exp(load(source + x)), target + x)
                store(exp(load(source + x + laneCount)), target + x + laneCount)
                store(exp(load(source + x + 2 * laneCount)), target + x + 2 * laneCount)
                store(exp(load(source + x + 3 * laneCount)), target + x + 3 * laneCount)
                x += 4 * laneCount
            }
        }
    }

    /// Reads `count` floats once, in order, with nine independent sums. `count` is a multiple of 3·panelWidth.
    public static func readAll(_ pointer: UnsafePointer<Float>, count: Int) -> Float {
        var tile = zeroTile()
        var offset = 0
        while offset < count {
            let next = pointer + offset
            tile.r0 = tile.r0 + loadRow(next, width: panelVectors)
            tile.r1 = tile.r1 + loadRow(next + panelWidth, width: panelVectors)
            tile.r2 = tile.r2 + loadRow(next + 2 * panelWidth, width: panelVectors)
            offset += 3 * panelWidth
        }
        return total(tile)
    }

    /// Multiplies one packed tile `iterations` times with the same strip and panel: the micro-kernel alone, with its loads and
    /// stores but without packing.
    public static func multiplyTile(
        strip: UnsafePointer<Float>, panel: UnsafePointer<Float>, c: UnsafeMutablePointer<Float>, depth: Int, iterations: Int
    ) {
        let rows = rowPointers(strip, stride: 1, count: tileRows)
        for _ in 0..<iterations {
            var tile = zeroTile()
            accumulate(&tile, rows, step: tileRows, panel: panel, depth: depth, width: panelVectors)
            add(&tile, c, stride: panelWidth, width: panelVectors)
            store(tile, c, stride: panelWidth, width: panelVectors)
        }
    }
}

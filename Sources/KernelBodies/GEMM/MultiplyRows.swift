// A few rows times a matrix, C[rows][columns] = A·B or A·Bᵀ. Memory bandwidth limits it, so B is read once, in place: packing
// would write B and read it again.
//
// For A·Bᵀ, an element of C is a product of two rows. A register tile holds the sums, with lanes along the depth:
//
//     sums[i][j][lane] = Σ A[i][k] · B[j][k]   over k ≡ lane,       C[i][j] = Σ_lane sums
//
// One row of A is multiplied with four rows of B at a time, each a stream of its own; two or three rows with `tileRows` rows of
// B; more rows with three rows of B.
//
// For A·B, rows of B are added to a row of sums that stays in the first-level cache, four at a time:
//
//     sums[i] += A[i][k] · B[k] + … + A[i][k+3] · B[k+3]
//
// The order is that of `multiplyBlock`, depth block by depth block, so that a row has the same bits in both.

public import KernelInterface

extension Kernels {
    /// See `GEMMArguments`. For A·B, rows · columns is at most `GEMMScratch.rowSums`, with columns rounded up to whole vectors.
    public static func multiplyRows(_ arguments: UnsafePointer<GEMMArguments>) {
        let args = arguments.pointee
        if args.bIsTransposed {
            multiplyTransposed(args)
        } else {
            addRows(args)
        }
    }
}

// MARK: - Transposed

private func multiplyTransposed(_ args: GEMMArguments) {
    var column = 0
    if args.rows == 1 {
        // Four streams: with eight, the hardware prefetchers lose a twentieth of the speed.
        while column + 4 <= args.columns {
            multiplyFour(args, column)
            column += 4
        }
    }
    if args.rows <= panelVectors {
        while column < args.columns {
            let part = DotPart(
                long: args.b + column * args.bStride, longStride: args.bStride,
                longCount: minimum(tileRows, args.columns - column),
                short: args.a, shortStride: args.aStride, target: args.c + column, longStep: 1, shortStep: args.cStride)
            multiplyDots(args, part, of: args.rows)
            column += part.longCount
        }
        return
    }
    while column < args.columns {
        let columns = minimum(panelVectors, args.columns - column)
        var row = 0
        while row < args.rows {
            let part = DotPart(
                long: args.a + row * args.aStride, longStride: args.aStride, longCount: minimum(tileRows, args.rows - row),
                short: args.b + column * args.bStride, shortStride: args.bStride,
                target: args.c + row * args.cStride + column, longStep: args.cStride, shortStep: 1)
            multiplyDots(args, part, of: columns)
            row += part.longCount
        }
        column += columns
    }
}

@_transparent
private func multiplyDots(_ args: GEMMArguments, _ part: DotPart, of width: Int) {
    switch width {
    case 1: multiplyDotsOfOne(args, part)
    case 2: multiplyDotsOfTwo(args, part)
    default: multiplyDotsOfThree(args, part)
    }
}

/// One row of A with four rows of B.
@inline(never)
private func multiplyFour(_ args: GEMMArguments, _ column: Int) {
    let b0 = args.b + column * args.bStride
    let (b1, b2, b3) = (b0 + args.bStride, b0 + 2 * args.bStride, b0 + 3 * args.bStride)
    let whole = args.depth / laneCount * laneCount
    let stage = args.scratch.assumingMemoryBound(to: Float.self)
    if whole < args.depth {
        stageRest(b0 + whole, stride: args.bStride, rows: 4, count: args.depth - whole, into: stage)
        stageRest(args.a + whole, stride: args.aStride, rows: 1, count: args.depth - whole, into: stage + 4 * laneCount)
    }
    let zero = splat(0)
    var sums: FourVectors = (zero, zero, zero, zero)
    var k = 0
    while k < whole {
        addProducts(&sums, load(args.a + k), (load(b0 + k), load(b1 + k), load(b2 + k), load(b3 + k)))
        k &+= laneCount
    }
    if whole < args.depth {
        addProducts(
            &sums, load(stage + 4 * laneCount),
            (load(stage), load(stage + laneCount), load(stage + 2 * laneCount), load(stage + 3 * laneCount)))
    }
    let c = args.c + column
    c[0] = laneSum(sums.x0)
    c[1] = laneSum(sums.x1)
    c[2] = laneSum(sums.x2)
    c[3] = laneSum(sums.x3)
}

private typealias FourVectors = (x0: Vector, x1: Vector, x2: Vector, x3: Vector)

/// sums += a · b, lane by lane.
@_transparent
private func addProducts(_ sums: inout FourVectors, _ a: Vector, _ b: FourVectors) {
    sums.x0 = multiplyAdd(b.x0, a, sums.x0)
    sums.x1 = multiplyAdd(b.x1, a, sums.x1)
    sums.x2 = multiplyAdd(b.x2, a, sums.x2)
    sums.x3 = multiplyAdd(b.x3, a, sums.x3)
}

/// Up to `tileRows` rows of one matrix and up to three of the other.
private struct DotPart {
    var long: UnsafePointer<Float>
    var longStride: Int
    var longCount: Int
    var short: UnsafePointer<Float>
    var shortStride: Int
    var target: UnsafeMutablePointer<Float>
    /// The distance in C from the sum of one row to that of the next.
    var longStep: Int
    var shortStep: Int
}

@inline(never)
private func multiplyDotsOfOne(_ args: GEMMArguments, _ part: DotPart) { multiplyDots(args, part, width: 1) }

@inline(never)
private func multiplyDotsOfTwo(_ args: GEMMArguments, _ part: DotPart) { multiplyDots(args, part, width: 2) }

@inline(never)
private func multiplyDotsOfThree(_ args: GEMMArguments, _ part: DotPart) { multiplyDots(args, part, width: 3) }

@_transparent
private func multiplyDots(_ args: GEMMArguments, _ part: DotPart, width: Int) {
    let whole = args.depth / laneCount * laneCount
    let stage = args.scratch.assumingMemoryBound(to: Float.self)
    let panel = stage + tileRows * laneCount
    if whole < args.depth {
        // The rest of every row is padded with zeros to one vector. This is done before the sums occupy the registers.
        stageRest(part.long + whole, stride: part.longStride, rows: part.longCount, count: args.depth - whole, into: stage)
        stageRest(part.short + whole, stride: part.shortStride, rows: width, count: args.depth - whole, into: panel)
    }
    var tile = zeroTile()
    let long = rowPointers(part.long, stride: part.longStride, count: part.longCount)
    accumulateDots(&tile, long, part.short, stride: part.shortStride, depth: whole, width: width)
    if whole < args.depth {
        let rest = rowPointers(stage, stride: laneCount, count: part.longCount)
        accumulateDots(&tile, rest, panel, stride: laneCount, depth: laneCount, width: width)
    }
    storeSums(tile.r0, part, 0, width: width)
    storeSums(tile.r1, part, 1, width: width)
    storeSums(tile.r2, part, 2, width: width)
    storeSums(tile.r3, part, 3, width: width)
    if tileRows > 4 {
        storeSums(tile.r4, part, 4, width: width)
        storeSums(tile.r5, part, 5, width: width)
        storeSums(tile.r6, part, 6, width: width)
        storeSums(tile.r7, part, 7, width: width)
    }
}

/// sums += products of rows, lane by lane. `depth` is a multiple of `laneCount`.
@_transparent
private func accumulateDots(
    _ c: inout Tile, _ long: RowPointers, _ short: UnsafePointer<Float>, stride: Int, depth: Int, width: Int
) {
    var k = 0
    while k < depth {
        let x0 = load(short + k)
        let x1 = width > 1 ? load(short + stride + k) : x0
        let x2 = width > 2 ? load(short + 2 * stride + k) : x0
        let row: PanelRow = (x0, x1, x2)
        c.r0 = multiplyAdd(splatRow(load(long.p0 + k)), row, c.r0)
        c.r1 = multiplyAdd(splatRow(load(long.p1 + k)), row, c.r1)
        c.r2 = multiplyAdd(splatRow(load(long.p2 + k)), row, c.r2)
        c.r3 = multiplyAdd(splatRow(load(long.p3 + k)), row, c.r3)
        if tileRows > 4 {
            c.r4 = multiplyAdd(splatRow(load(long.p4 + k)), row, c.r4)
            c.r5 = multiplyAdd(splatRow(load(long.p5 + k)), row, c.r5)
            c.r6 = multiplyAdd(splatRow(load(long.p6 + k)), row, c.r6)
            c.r7 = multiplyAdd(splatRow(load(long.p7 + k)), row, c.r7)
        }
        k &+= laneCount
    }
}

@_transparent
private func splatRow(_ vector: Vector) -> PanelRow { (vector, vector, vector) }

@_transparent
private func storeSums(_ sums: PanelRow, _ part: DotPart, _ index: Int, width: Int) {
    if index >= part.longCount { return }
    let target = part.target + index * part.longStep
    target[0] = laneSum(sums.x0)
    if width > 1 { target[part.shortStep] = laneSum(sums.x1) }
    if width > 2 { target[2 * part.shortStep] = laneSum(sums.x2) }
}

@inline(never)
private func stageRest(
    _ source: UnsafePointer<Float>, stride: Int, rows: Int, count: Int, into stage: UnsafeMutablePointer<Float>
) {
    for r in 0..<rows {
        for x in 0..<laneCount { stage[r * laneCount + x] = x < count ? source[r * stride + x] : 0 }
    }
}

// MARK: - Not transposed

private func addRows(_ args: GEMMArguments) {
    let padded = (args.columns + laneCount - 1) / laneCount * laneCount
    let sums = args.scratch.assumingMemoryBound(to: Float.self)
    let stage = sums + GEMMScratch.rowSums
    var start = 0
    repeat {
        let depth = minimum(GEMMScratch.depthBlock, args.depth - start)
        for x in 0..<args.rows * padded { sums[x] = 0 }
        var k = start
        while k < start + depth {
            let count = k + 4 <= start + depth ? 4 : 1
            let b = args.b + k * args.bStride
            let whole = args.columns / laneCount * laneCount
            addToRows(args, k: k, count: count, b: b, bStride: args.bStride, sums: sums, stride: padded, columns: whole)
            if whole < args.columns {
                stageRest(b + whole, stride: args.bStride, rows: count, count: args.columns - whole, into: stage)
                addToRows(
                    args, k: k, count: count, b: stage, bStride: laneCount, sums: sums + whole, stride: padded,
                    columns: laneCount)
            }
            k += count
        }
        for row in 0..<args.rows {
            let (target, source) = (args.c + row * args.cStride, sums + row * padded)
            if start == 0 {
                for x in 0..<args.columns { target[x] = source[x] }
            } else {
                for x in 0..<args.columns { target[x] = target[x] + source[x] }
            }
        }
        start += depth
    } while start < args.depth
}

/// Adds four rows of B, or one, times as many columns of A, to all rows of sums.
@_transparent
private func addToRows(
    _ args: GEMMArguments, k: Int, count: Int, b: UnsafePointer<Float>, bStride: Int, sums: UnsafeMutablePointer<Float>,
    stride: Int, columns: Int
) {
    var row = 0
    while row < args.rows {
        let a = args.a + row * args.aStride + k
        let target = sums + row * stride
        if count == 1 {
            addOne(a, b, target, columns)
            row += 1
        } else if row + 4 <= args.rows && tileRows > 4 {
            addFourToFour(a, args.aStride, b, bStride, target, stride, columns)
            row += 4
        } else if row + 2 <= args.rows {
            addFourToTwo(a, args.aStride, b, bStride, target, stride, columns)
            row += 2
        } else {
            addFourToOne(a, b, bStride, target, columns)
            row += 1
        }
    }
}

@inline(never)
private func addOne(
    _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ sums: UnsafeMutablePointer<Float>, _ columns: Int
) {
    let factor = splat(a[0])
    var x = 0
    while x < columns {
        store(multiplyAdd(factor, load(b + x), load(sums + x)), sums + x)
        x &+= laneCount
    }
}

@_transparent
private func factors(_ a: UnsafePointer<Float>) -> FourVectors { (splat(a[0]), splat(a[1]), splat(a[2]), splat(a[3])) }

@_transparent
private func addFour(_ a: FourVectors, _ b: FourVectors, _ sums: UnsafeMutablePointer<Float>) {
    var sum = multiplyAdd(a.x0, b.x0, load(sums))
    sum = multiplyAdd(a.x1, b.x1, sum)
    sum = multiplyAdd(a.x2, b.x2, sum)
    store(multiplyAdd(a.x3, b.x3, sum), sums)
}

@_transparent
private func loadFour(_ b: UnsafePointer<Float>, _ bStride: Int) -> FourVectors {
    (load(b), load(b + bStride), load(b + 2 * bStride), load(b + 3 * bStride))
}

@inline(never)
private func addFourToOne(
    _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ bStride: Int, _ sums: UnsafeMutablePointer<Float>, _ columns: Int
) {
    let a0 = factors(a)
    var x = 0
    while x < columns {
        addFour(a0, loadFour(b + x, bStride), sums + x)
        x &+= laneCount
    }
}

@inline(never)
private func addFourToTwo(
    _ a: UnsafePointer<Float>, _ aStride: Int, _ b: UnsafePointer<Float>, _ bStride: Int, _ sums: UnsafeMutablePointer<Float>,
    _ stride: Int, _ columns: Int
) {
    let (a0, a1) = (factors(a), factors(a + aStride))
    var x = 0
    while x < columns {
        let rows = loadFour(b + x, bStride)
        addFour(a0, rows, sums + x)
        addFour(a1, rows, sums + stride + x)
        x &+= laneCount
    }
}

@inline(never)
private func addFourToFour(
    _ a: UnsafePointer<Float>, _ aStride: Int, _ b: UnsafePointer<Float>, _ bStride: Int, _ sums: UnsafeMutablePointer<Float>,
    _ stride: Int, _ columns: Int
) {
    let (a0, a1) = (factors(a), factors(a + aStride))
    let (a2, a3) = (factors(a + 2 * aStride), factors(a + 3 * aStride))
    var x = 0
    while x < columns {
        let rows = loadFour(b + x, bStride)
        addFour(a0, rows, sums + x)
        addFour(a1, rows, sums + stride + x)
        addFour(a2, rows, sums + 2 * stride + x)
        addFour(a3, rows, sums + 3 * stride + x)
        x &+= laneCount
    }
}

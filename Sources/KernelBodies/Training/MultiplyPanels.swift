// C = A·B or C += A·B for a B that was packed once, and many rows of A. Either the depth is small or the columns of B are few, so that
// packing A, as `multiplyBlock` does, would take as long as multiplying with it. A is read where it is, one broadcast at a time, through
// one pointer per row of the tile.
//
//     for each strip of rows:   for each panel of B:   C tile (+)= A rows · panel
//
// B comes from the second-level cache: 128 bytes (192 with full panels) per 16 (24) multiply-adds of vectors. Memory is what limits the
// product: each step of the depth loop prefetches the lines that follow in all rows of A, and lines of a later tile of C.

public import KernelInterface

extension Kernels {
    public static func multiplyPanels(_ arguments: UnsafePointer<PanelProductArguments>) {
        let args = arguments.pointee
        let vectors = (args.columns + laneCount - 1) / laneCount
        var row = 0
        while row < args.rows {
            var done = 0
            // The order of `forEachPanel`.
            while done < vectors {
                let left = vectors - done
                let width = left == 4 ? 2 : minimum(left, panelVectors)
                switch width {
                case 1: panelProductOfOne(args, row, done * laneCount)
                case 2: panelProductOfTwo(args, row, done * laneCount)
                default: panelProductOfThree(args, row, done * laneCount)
                }
                done += width
            }
            row += tileRows
        }
    }
}

@inline(never)
private func panelProductOfOne(_ args: PanelProductArguments, _ row: Int, _ column: Int) {
    panelProduct(args, row, column, width: 1)
}

@inline(never)
private func panelProductOfTwo(_ args: PanelProductArguments, _ row: Int, _ column: Int) {
    panelProduct(args, row, column, width: 2)
}

@inline(never)
private func panelProductOfThree(_ args: PanelProductArguments, _ row: Int, _ column: Int) {
    panelProduct(args, row, column, width: 3)
}

@_transparent
private func panelProduct(_ args: PanelProductArguments, _ row: Int, _ column: Int, width: Int) {
    let rows = minimum(tileRows, args.rows - row)
    let columns = minimum(width * laneCount, args.columns - column)
    let a = rowPointers(args.a + row * args.aStride, stride: args.aStride, count: rows)
    let target = args.c + row * args.cStride + column
    var tile = zeroTile()
    accumulateRows(
        &tile, a, panel: args.panels + column * args.depth, depth: args.depth, width: width,
        ahead: target + 2 * width * laneCount, aheadStride: args.cStride)
    if rows == tileRows && columns == width * laneCount {
        if args.accumulates { add(&tile, target, stride: args.cStride, width: width) }
        store(tile, target, stride: args.cStride, width: width)
    } else {
        store(tile, args.edge, stride: width * laneCount, width: width)
        for r in 0..<rows {
            for x in 0..<columns {
                let sum = args.edge[r * width * laneCount + x]
                target[r * args.cStride + x] = args.accumulates ? target[r * args.cStride + x] + sum : sum
            }
        }
    }
}

/// Tile += A·panel, a line of every row of A at a time. The first two lines prefetch a tile of C that comes later.
@_transparent
private func accumulateRows(
    _ c: inout Tile, _ a: RowPointers, panel: UnsafePointer<Float>, depth: Int, width: Int, ahead: UnsafePointer<Float>,
    aheadStride: Int
) {
    var b = panel
    var k = 0
    while k + 16 <= depth {
        prefetchRows(a, k + 128)
        if k < 32 {
            // Half of the rows of C each, or all of them when there is one line only.
            let first = depth < 32 ? 0 : (k >> 4) * (tileRows / 2)
            let end = depth < 32 ? tileRows : first + tileRows / 2
            var line = ahead + first * aheadStride
            for _ in first..<end {
                prefetchNear(line)
                if width * laneCount > 16 { prefetchNear(line + 16) }
                if width * laneCount > 32 { prefetchNear(line + 32) }
                line += aheadStride
            }
        }
        let end = k + 16
        while k < end {
            multiplyRowStep(&c, a, k, b, width: width)
            b += width * laneCount
            k &+= 1
        }
    }
    while k < depth {
        multiplyRowStep(&c, a, k, b, width: width)
        b += width * laneCount
        k &+= 1
    }
}

@_transparent
private func prefetchRows(_ a: RowPointers, _ offset: Int) {
    prefetchNear(a.p0 + offset)
    prefetchNear(a.p1 + offset)
    prefetchNear(a.p2 + offset)
    prefetchNear(a.p3 + offset)
    if tileRows > 4 {
        prefetchNear(a.p4 + offset)
        prefetchNear(a.p5 + offset)
        prefetchNear(a.p6 + offset)
        prefetchNear(a.p7 + offset)
    }
}

@_transparent
private func multiplyRowStep(_ c: inout Tile, _ a: RowPointers, _ k: Int, _ b: UnsafePointer<Float>, width: Int) {
    let row = loadRow(b, width: width)
    c.r0 = multiplyAdd(a.p0[k], row, c.r0)
    c.r1 = multiplyAdd(a.p1[k], row, c.r1)
    c.r2 = multiplyAdd(a.p2[k], row, c.r2)
    c.r3 = multiplyAdd(a.p3[k], row, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a.p4[k], row, c.r4)
        c.r5 = multiplyAdd(a.p5[k], row, c.r5)
        c.r6 = multiplyAdd(a.p6[k], row, c.r6)
        c.r7 = multiplyAdd(a.p7[k], row, c.r7)
    }
}

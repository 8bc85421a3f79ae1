// One block of a matrix product, C[rows][columns] = A·B, after Goto and van de Geijn ("Anatomy of High-Performance Matrix
// Multiplication"). A is packed in blocks of `depthBlock` that stay in the second-level cache, and B panel by panel. The
// register tile runs down the strips of A while one panel of B stays in the first-level cache.
//
//     for each depth block:   pack A → strips [depth][tileRows]
//         for each panel of B:   pack it, [depth][panelWidth]
//             for each strip of A:   C tile += strip · panel
//
// While a tile is summed, the loop prefetches the lines of C that the sum is added to, and a part of B that becomes the next
// panel. Otherwise every tile would wait for C, and every panel for B. Strips are padded with zero rows. The last panel is one,
// two or three vectors wide and padded with zero columns.

public import KernelInterface

extension Kernels {
    /// See `GEMMArguments`.
    public static func multiplyBlock(_ arguments: UnsafePointer<GEMMArguments>) {
        let args = arguments.pointee
        let packedA = args.scratch.assumingMemoryBound(to: Float.self)
        let panel = packedA + GEMMScratch.packedA
        let edge = packedA + GEMMScratch.edge
        var start = 0
        repeat {
            let depth = minimum(GEMMScratch.depthBlock, args.depth - start)
            packA(args, start: start, depth: depth, into: packedA)
            var column = 0
            while column < args.columns {
                let columns = minimum(panelWidth, args.columns - column)
                packPanel(args, start: start, depth: depth, column: column, columns: columns, into: panel)
                let step = PanelStep(
                    packedA: packedA, panel: panel, edge: edge, start: start, column: column, columns: columns, depth: depth)
                switch (columns + laneCount - 1) / laneCount {
                case 1: multiplyPanelOfOne(args, step)
                case 2: multiplyPanelOfTwo(args, step)
                default: multiplyPanelOfThree(args, step)
                }
                column += columns
            }
            start += depth
        } while start < args.depth
    }
}

/// One panel of B, `depth` deep, that is multiplied with all strips of A.
private struct PanelStep {
    var packedA: UnsafePointer<Float>
    var panel: UnsafePointer<Float>
    /// Memory for one tile.
    var edge: UnsafeMutablePointer<Float>
    var start: Int
    var column: Int
    var columns: Int
    var depth: Int
}

// One function per width, not inlined: the tile needs every register, and constants of other loops must not occupy any.

@inline(never)
private func multiplyPanelOfOne(_ args: GEMMArguments, _ step: PanelStep) { multiplyPanel(args, step, width: 1) }

@inline(never)
private func multiplyPanelOfTwo(_ args: GEMMArguments, _ step: PanelStep) { multiplyPanel(args, step, width: 2) }

@inline(never)
private func multiplyPanelOfThree(_ args: GEMMArguments, _ step: PanelStep) { multiplyPanel(args, step, width: 3) }

@_transparent
private func multiplyPanel(_ args: GEMMArguments, _ step: PanelStep, width: Int) {
    let (column, columns, depth) = (step.column, step.columns, step.depth)
    var next = nextPanel(args, step)
    let pairs = depth / 2
    // The shifts spread the prefetches over the pairs of steps in depth, so that all rows of C are fetched during one tile.
    let targetShift = shift(pairs, into: tileRows)
    let nextShift = shift(pairs, into: next.perStrip)
    var row = 0
    while row < args.rows {
        let rows = minimum(tileRows, args.rows - row)
        var tile = zeroTile()
        let target = args.c + row * args.cStride + column
        let ahead = next.row
        accumulateAhead(
            &tile, step.packedA + row * depth, panel: step.panel, depth: depth, width: width, target: target,
            targetStride: args.cStride, targetShift: targetShift, next: ahead, nextStride: args.bStride, nextShift: nextShift)
        advance(&next, args.bStride)
        if rows == tileRows && columns == width * laneCount {
            if step.start > 0 { add(&tile, target, stride: args.cStride, width: width) }
            store(tile, target, stride: args.cStride, width: width)
        } else {
            store(tile, step.edge, stride: width * laneCount, width: width)
            for r in 0..<rows {
                for x in 0..<columns {
                    let sum = step.edge[r * width * laneCount + x]
                    target[r * args.cStride + x] = step.start == 0 ? sum : target[r * args.cStride + x] + sum
                }
            }
        }
        row += tileRows
    }
}

/// C += strip · panel. Meanwhile prefetches lines of C (near) and of the next panel (into the second-level cache), always
/// without a branch, which would be mispredicted. Repeating the prefetch of a row costs a load that the tile has room for.
@_transparent
func accumulateAhead(
    _ c: inout Tile, _ strip: UnsafePointer<Float>, panel: UnsafePointer<Float>, depth: Int, width: Int,
    target: UnsafePointer<Float>, targetStride: Int, targetShift: Int, next: UnsafePointer<Float>, nextStride: Int,
    nextShift: Int
) {
    let lines = width * laneCount > 16 ? 3 : 1
    var a = strip
    var b = panel
    for pair in 0..<(depth / 2) {
        let line = (pair & lines) &* 16
        prefetchNear(target + ((pair &>> targetShift) &* targetStride &+ line))
        prefetch(next + ((pair &>> nextShift) &* nextStride &+ line))
        multiplyStep(&c, a, b, width: width)
        multiplyStep(&c, a + tileRows, b + width * laneCount, width: width)
        a += 2 * tileRows
        b += 2 * width * laneCount
    }
    if depth & 1 != 0 { multiplyStep(&c, a, b, width: width) }
}

/// One step in depth.
@_transparent
private func multiplyStep(_ c: inout Tile, _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, width: Int) {
    let row = loadRow(b, width: width)
    c.r0 = multiplyAdd(a[0], row, c.r0)
    c.r1 = multiplyAdd(a[1], row, c.r1)
    c.r2 = multiplyAdd(a[2], row, c.r2)
    c.r3 = multiplyAdd(a[3], row, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a[4], row, c.r4)
        c.r5 = multiplyAdd(a[5], row, c.r5)
        c.r6 = multiplyAdd(a[6], row, c.r6)
        c.r7 = multiplyAdd(a[7], row, c.r7)
    }
}

/// The largest shift after which 0..<count has `parts` values or more.
@inline(never)
private func shift(_ count: Int, into parts: Int) -> Int {
    var result = 0
    while count &>> (result + 1) >= parts { result += 1 }
    return result
}

// MARK: - Prefetching the next panel

/// The rows of B that become the next panel, in chunks of four cache lines per row, and their distribution over the strips.
private struct NextPanel {
    /// The first row that the next strip prefetches.
    var row: UnsafePointer<Float>
    var perStrip: Int
    /// Rows left in this chunk, and rows of a chunk.
    var left: Int
    var rows: Int
    /// Chunks left after this one.
    var chunks: Int
    var start: UnsafePointer<Float>
}

@inline(never)
private func nextPanel(_ args: GEMMArguments, _ step: PanelStep) -> NextPanel {
    let isLast = step.column + step.columns >= args.columns
    let column = isLast ? 0 : step.column + step.columns
    let start = isLast ? step.start + step.depth : step.start
    let strips = (args.rows + tileRows - 1) / tileRows
    if start >= args.depth {
        // Nothing follows, so that strips prefetch the first line of the current panel, which is in the cache already.
        return NextPanel(row: step.panel, perStrip: 1, left: Int.max, rows: Int.max, chunks: 0, start: step.panel)
    }
    let depth = minimum(step.depth, args.depth - start)
    let rows = args.bIsTransposed ? minimum(panelWidth, args.columns - column) : depth
    let chunks = args.bIsTransposed ? (depth + 63) / 64 : 1
    let first = args.bIsTransposed ? args.b + column * args.bStride + start : args.b + start * args.bStride + column
    return NextPanel(
        row: first, perStrip: (rows * chunks + strips - 1) / strips, left: rows, rows: rows, chunks: chunks - 1, start: first)
}

@_transparent
private func advance(_ next: inout NextPanel, _ stride: Int) {
    next.left -= next.perStrip
    if next.left > 0 {
        next.row += next.perStrip * stride
    } else if next.chunks > 0 {
        next.chunks -= 1
        next.start += 64
        next.row = next.start
        next.left = next.rows
    }
}

// MARK: - Packing

/// Packs A as strips [depth][tileRows]. Rows past the end are zero.
@inline(never)
private func packA(_ args: GEMMArguments, start: Int, depth: Int, into packed: UnsafeMutablePointer<Float>) {
    var row = 0
    while row < args.rows {
        let strip = packed + row * depth
        let rows = minimum(tileRows, args.rows - row)
        if rows < tileRows { clear(strip, tileRows * depth) }
        transpose(
            args.a + row * args.aStride + start, stride: args.aStride, rows: rows, columns: depth, times: 1, into: strip,
            destinationStride: tileRows)
        row += tileRows
    }
}

/// Packs a panel of B as [depth][its width]. Columns past the end are zero.
@inline(never)
private func packPanel(
    _ args: GEMMArguments, start: Int, depth: Int, column: Int, columns: Int, into panel: UnsafeMutablePointer<Float>
) {
    let padded = (columns + laneCount - 1) / laneCount * laneCount
    if columns < padded { clear(panel, padded * depth) }
    if args.bIsTransposed {
        transpose(
            args.b + column * args.bStride + start, stride: args.bStride, rows: columns, columns: depth, times: 1,
            into: panel, destinationStride: padded)
    } else {
        for k in 0..<depth {
            let source = args.b + (start + k) * args.bStride + column
            let target = panel + k * padded
            if columns == panelWidth {
                store(loadRow(source, width: panelVectors), target, width: panelVectors)
            } else {
                for x in 0..<columns { target[x] = source[x] }
            }
        }
    }
}

@_transparent
private func clear(_ pointer: UnsafeMutablePointer<Float>, _ count: Int) {
    for x in 0..<count { pointer[x] = 0 }
}

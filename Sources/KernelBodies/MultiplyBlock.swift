// One block of a matrix product, C[rows][columns] = A·B, after Goto: A and B are packed in blocks of `depthBlock`, and the
// register tile runs down the rows of A while one panel of B stays in the first-level cache.
//
//     for each depth block:   pack B → panels [depth][panelWidth]     pack A → strips [depth][tileRows]
//         for each panel of B, for each strip of A:   C tile += strip · panel
//
// Ragged edges: strips are zero-padded; the last panel is one, two or three vectors wide and its missing columns are zero.

public import KernelInterface

/// See `GEMMArguments`.
public func multiplyBlock(_ arguments: UnsafePointer<GEMMArguments>) {
    let args = arguments.pointee
    let packedA = args.scratch.assumingMemoryBound(to: Float.self)
    let packedB = packedA + GEMMScratch.packedA
    var start = 0
    repeat {
        let depth = min(GEMMScratch.depthBlock, args.depth - start)
        packA(args, start: start, depth: depth, into: packedA)
        packB(args, start: start, depth: depth, into: packedB)
        var column = 0
        while column < args.columns {
            let columns = min(panelWidth, args.columns - column)
            let panel = packedB + column * depth
            switch (columns + laneCount - 1) / laneCount {
            case 1: multiplyPanel(args, packedA, panel, column, columns, depth, isFirst: start == 0, width: 1)
            case 2: multiplyPanel(args, packedA, panel, column, columns, depth, isFirst: start == 0, width: 2)
            default: multiplyPanel(args, packedA, panel, column, columns, depth, isFirst: start == 0, width: 3)
            }
            column += columns
        }
        start += depth
    } while start < args.depth
}

/// All strips of A against one panel of B.
@inline(__always)
private func multiplyPanel(
    _ args: GEMMArguments, _ packedA: UnsafePointer<Float>, _ panel: UnsafePointer<Float>, _ column: Int, _ columns: Int,
    _ depth: Int, isFirst: Bool, width: Int
) {
    var row = 0
    while row < args.rows {
        let rows = min(tileRows, args.rows - row)
        var c = Accumulators(repeating: splat(0))
        accumulate(
            &c, width: width, rows: rowPointers(packedA + row * depth, stride: 1, count: tileRows), step: tileRows,
            panel: panel, depth: depth)
        let target = args.c + row * args.cStride + column
        if rows == tileRows && columns == width * laneCount {
            if isFirst {
                storeTile(c, target, stride: args.cStride, width: width)
            } else {
                addTile(c, target, stride: args.cStride, width: width)
            }
        } else {
            for r in 0..<rows {
                for x in 0..<columns {
                    let sum = c[3 * r + x / laneCount][x % laneCount]
                    let pointer = target + r * args.cStride + x
                    pointer.pointee = isFirst ? sum : pointer.pointee + sum
                }
            }
        }
        row += tileRows
    }
}

/// Strips [depth][tileRows]; rows past the end are zero.
private func packA(_ args: GEMMArguments, start: Int, depth: Int, into packed: UnsafeMutablePointer<Float>) {
    var row = 0
    while row < args.rows {
        let strip = packed + row * depth
        for r in 0..<tileRows {
            if row + r < args.rows {
                let source = args.a + (row + r) * args.aStride + start
                for k in 0..<depth { strip[k * tileRows + r] = source[k] }
            } else {
                for k in 0..<depth { strip[k * tileRows + r] = 0 }
            }
        }
        row += tileRows
    }
}

/// Panels [depth][width of the panel]; columns past the end are zero.
private func packB(_ args: GEMMArguments, start: Int, depth: Int, into packed: UnsafeMutablePointer<Float>) {
    var column = 0
    while column < args.columns {
        let columns = min(panelWidth, args.columns - column)
        let padded = (columns + laneCount - 1) / laneCount * laneCount
        let panel = packed + column * depth
        if args.bIsTransposed {
            for x in 0..<padded {
                if x < columns {
                    let source = args.b + (column + x) * args.bStride + start
                    for k in 0..<depth { panel[k * padded + x] = source[k] }
                } else {
                    for k in 0..<depth { panel[k * padded + x] = 0 }
                }
            }
        } else {
            for k in 0..<depth {
                let source = args.b + (start + k) * args.bStride + column
                let target = panel + k * padded
                if columns == panelWidth {
                    for x in 0..<panelVectors { store(load(source + x * laneCount), target + x * laneCount) }
                } else {
                    for x in 0..<padded { target[x] = x < columns ? source[x] : 0 }
                }
            }
        }
        column += columns
    }
}

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
    let edge = packedA + GEMMScratch.edge
    var start = 0
    repeat {
        let depth = minimum(GEMMScratch.depthBlock, args.depth - start)
        packA(args, start: start, depth: depth, into: packedA)
        packB(args, start: start, depth: depth, into: packedB)
        var column = 0
        while column < args.columns {
            let columns = minimum(panelWidth, args.columns - column)
            let step = PanelStep(
                packedA: packedA, panel: packedB + column * depth, edge: edge, column: column, columns: columns, depth: depth,
                isFirst: start == 0)
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

/// All strips of A against one panel of B, `depth` deep.
private struct PanelStep {
    var packedA: UnsafePointer<Float>
    var panel: UnsafePointer<Float>
    /// Room for one tile.
    var edge: UnsafeMutablePointer<Float>
    var column: Int
    var columns: Int
    var depth: Int
    var isFirst: Bool
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
    var row = 0
    while row < args.rows {
        let rows = minimum(tileRows, args.rows - row)
        var tile = zeroTile()
        let strip = rowPointers(step.packedA + row * depth, stride: 1, count: tileRows)
        accumulate(&tile, strip, step: tileRows, panel: step.panel, depth: depth, width: width)
        let target = args.c + row * args.cStride + column
        if rows == tileRows && columns == width * laneCount {
            if !step.isFirst { add(&tile, target, stride: args.cStride, width: width) }
            store(tile, target, stride: args.cStride, width: width)
        } else {
            store(tile, step.edge, stride: width * laneCount, width: width)
            for r in 0..<rows {
                for x in 0..<columns {
                    let sum = step.edge[r * width * laneCount + x]
                    target[r * args.cStride + x] = step.isFirst ? sum : target[r * args.cStride + x] + sum
                }
            }
        }
        row += tileRows
    }
}

/// Strips [depth][tileRows]; rows past the end are zero.
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

/// Panels [depth][width of the panel]; columns past the end are zero.
@inline(never)
private func packB(_ args: GEMMArguments, start: Int, depth: Int, into packed: UnsafeMutablePointer<Float>) {
    var column = 0
    while column < args.columns {
        let columns = minimum(panelWidth, args.columns - column)
        let padded = (columns + laneCount - 1) / laneCount * laneCount
        let panel = packed + column * depth
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
        column += columns
    }
}

@_transparent
private func clear(_ pointer: UnsafeMutablePointer<Float>, _ count: Int) {
    for x in 0..<count { pointer[x] = 0 }
}

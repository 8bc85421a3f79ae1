// One block of C (+)= A · B[I]ᵀ or A · B[I] for a list I of rows of B, which are stored in their own type. The algorithm is that of
// MultiplyBlock.swift, whose tile loop this uses; what differs is where panels of B come from.
//
//     for each depth block:   pack A → strips [depth][tileRows]
//         for each panel of B:   widen its picked rows, pack them, [depth][panelWidth]
//             for each strip of A:   C tile += strip · panel
//
// Rows are picked while panels are packed, in place. Copying them first, for a product of adjacent rows, is no faster: at 2048 rows and
// 90 to 99% sparsity of 14336 × 4096 the two differ by −3 to +7%. In place, no memory is needed for the copy, which has tens of megabytes.
//
// The hardware does not know which rows come next. Before each strip, some cache lines of the next panel are asked for.

public import KernelInterface

extension Kernels {
    /// See `PickedProductArguments`.
    public static func multiplyPicked(_ arguments: UnsafePointer<PickedProductArguments>) {
        let args = arguments.pointee
        let packedA = args.scratch.assumingMemoryBound(to: Float.self)
        let panel = packedA + PickedScratch.packedA
        let edge = packedA + PickedScratch.edge
        let block = args.depthBlock
        var start = 0
        repeat {
            let depth = minimum(block, args.depth - start)
            packStrips(args, start: start, depth: depth, into: packedA)
            var column = 0
            while column < args.columns {
                let columns = minimum(panelWidth, args.columns - column)
                packPickedPanel(args, start: start, depth: depth, column: column, columns: columns, into: panel)
                let step = PickedStep(
                    packedA: packedA, panel: panel, edge: edge, start: start, column: column, columns: columns, depth: depth)
                if start == 0 && args.bias != nil { loadPickedBias(args, step, into: edge + PickedScratch.tileFloats) }
                switch (columns + laneCount - 1) / laneCount {
                case 1: multiplyPickedPanelOfOne(args, step)
                case 2: multiplyPickedPanelOfTwo(args, step)
                default: multiplyPickedPanelOfThree(args, step)
                }
                column += columns
            }
            start += depth
        } while start < args.depth
    }
}

/// One panel of B, `depth` deep, that is multiplied with all strips of A.
private struct PickedStep {
    var packedA: UnsafePointer<Float>
    var panel: UnsafePointer<Float>
    /// Memory for one tile, and for one row of starting values after it.
    var edge: UnsafeMutablePointer<Float>
    var start: Int
    var column: Int
    var columns: Int
    var depth: Int
}

// One function per width, not inlined: the tile needs every register.

@inline(never)
private func multiplyPickedPanelOfOne(_ args: PickedProductArguments, _ step: PickedStep) {
    multiplyPickedPanel(args, step, width: 1)
}

@inline(never)
private func multiplyPickedPanelOfTwo(_ args: PickedProductArguments, _ step: PickedStep) {
    multiplyPickedPanel(args, step, width: 2)
}

@inline(never)
private func multiplyPickedPanelOfThree(_ args: PickedProductArguments, _ step: PickedStep) {
    multiplyPickedPanel(args, step, width: 3)
}

@_transparent
private func multiplyPickedPanel(_ args: PickedProductArguments, _ step: PickedStep, width: Int) {
    let (column, columns, depth) = (step.column, step.columns, step.depth)
    var next = nextPickedPanel(args, step)
    let targetShift = pickedShift(depth / 2, into: tileRows)
    let addsTarget = step.start > 0 || args.accumulates
    let addsBias = step.start == 0 && args.bias != nil
    let isScaled = args.factor != 1
    var row = 0
    while row < args.rows {
        prefetchPicked(args, &next)
        let rows = minimum(tileRows, args.rows - row)
        var tile = zeroTile()
        let target = args.c + row * args.cStride + column
        accumulateAhead(
            &tile, step.packedA + row * depth, panel: step.panel, depth: depth, width: width, target: target,
            targetStride: args.cStride, targetShift: targetShift, next: step.panel, nextStride: 0, nextShift: 0)
        if isScaled { scaleTile(&tile, args.factor) }
        if addsBias { add(&tile, step.edge + PickedScratch.tileFloats, stride: 0, width: width) }
        if rows == tileRows && columns == width * laneCount {
            if addsTarget { add(&tile, target, stride: args.cStride, width: width) }
            store(tile, target, stride: args.cStride, width: width)
        } else {
            store(tile, step.edge, stride: width * laneCount, width: width)
            storeEdge(args, step.edge, stride: width * laneCount, rows: rows, columns: columns, adds: addsTarget, into: target)
        }
        row += tileRows
    }
}

@_transparent
private func scaleTile(_ c: inout Tile, _ factor: Float) {
    let row = splatRow(factor)
    c.r0 = c.r0 * row
    c.r1 = c.r1 * row
    c.r2 = c.r2 * row
    c.r3 = c.r3 * row
    if tileRows > 4 {
        c.r4 = c.r4 * row
        c.r5 = c.r5 * row
        c.r6 = c.r6 * row
        c.r7 = c.r7 * row
    }
}

/// Copies, or adds, the valid part of a tile to C.
@inline(never)
private func storeEdge(
    _ args: PickedProductArguments, _ edge: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, adds: Bool,
    into target: UnsafeMutablePointer<Float>
) {
    let whole = columns / laneCount * laneCount
    for r in 0..<rows {
        let (from, to) = (edge + r * stride, target + r * args.cStride)
        var x = 0
        while x < whole {
            store(adds ? load(to + x) + load(from + x) : load(from + x), to + x)
            x += laneCount
        }
        while x < columns {
            to[x] = adds ? to[x] + from[x] : from[x]
            x += 1
        }
    }
}

/// The largest shift after which 0..<count has `parts` values or more.
@inline(never)
private func pickedShift(_ count: Int, into parts: Int) -> Int {
    var result = 0
    while count &>> (result + 1) >= parts { result += 1 }
    return result
}

/// Loads the bias of a panel's columns, followed by zeros.
@inline(never)
private func loadPickedBias(_ args: PickedProductArguments, _ step: PickedStep, into row: UnsafeMutablePointer<Float>) {
    let bias = args.bias!
    for x in 0..<panelWidth {
        let column = step.column + minimum(x, step.columns - 1)
        var index = column
        if args.isTransposed { index = pickedRow(args, column) }
        row[x] = x < step.columns ? bias[index] : 0
    }
}

// MARK: - Prefetching the next panel

/// The cache lines of B that become the next panel, in units of up to `linesOfUnit` lines of a row.
private struct NextPicked {
    /// The next unit, and the number of them.
    var unit: Int
    var units: Int
    var perStrip: Int
    /// Rows of B in the panel, from row `first` of the list on, and the first element in each.
    var rows: Int
    var first: Int
    var element: Int
    var bytes: Int
}

/// Cache lines that are asked for at a time: as many as a core waits for in a third of its line fill buffers.
@_transparent
private var linesOfUnit: Int { 4 }

@inline(never)
private func nextPickedPanel(_ args: PickedProductArguments, _ step: PickedStep) -> NextPicked {
    let isLast = step.column + step.columns >= args.columns
    let column = isLast ? 0 : step.column + step.columns
    let start = isLast ? step.start + step.depth : step.start
    let strips = (args.rows + tileRows - 1) / tileRows
    var next = NextPicked(unit: 0, units: 0, perStrip: 0, rows: 1, first: 0, element: 0, bytes: byteCount(args.type))
    if start >= args.depth { return next }
    let depth = minimum(args.depthBlock, args.depth - start)
    let columns = minimum(panelWidth, args.columns - column)
    let (rows, elements) = args.isTransposed ? (columns, depth) : (depth, columns)
    next.rows = rows
    next.first = args.isTransposed ? column : start
    next.element = args.isTransposed ? start : column
    // A row starts anywhere in a line.
    let lines = (elements * next.bytes + 63) / 64 + 1
    next.units = rows * ((lines + linesOfUnit - 1) / linesOfUnit)
    next.perStrip = (next.units + strips - 1) / strips
    return next
}

@inline(never)
private func prefetchPicked(_ args: PickedProductArguments, _ next: inout NextPicked) {
    let end = minimum(next.units, next.unit + next.perStrip)
    while next.unit < end {
        let chunk = next.unit / next.rows
        let row = pickedRow(args, next.first + next.unit - chunk * next.rows)
        let address = args.b + (row * args.bStride + next.element) * next.bytes + chunk * linesOfUnit * 64
        for line in 0..<linesOfUnit { prefetch((address + line * 64).assumingMemoryBound(to: Float.self)) }
        next.unit += 1
    }
}

/// The row of B that stands at a place of the list.
@_transparent
private func pickedRow(_ args: PickedProductArguments, _ place: Int) -> Int {
    guard let list = args.list else { return place }
    return Int(list[place])
}

// MARK: - Packing

/// Packs A as strips [depth][tileRows]. Rows past the end are zero.
@inline(never)
private func packStrips(_ args: PickedProductArguments, start: Int, depth: Int, into packed: UnsafeMutablePointer<Float>) {
    var row = 0
    while row < args.rows {
        let strip = packed + row * depth
        let rows = minimum(tileRows, args.rows - row)
        if rows < tileRows { for x in 0..<tileRows * depth { strip[x] = 0 } }
        transpose(
            args.a + row * args.aStride + start, stride: args.aStride, rows: rows, columns: depth, times: 1, into: strip,
            destinationStride: tileRows)
        row += tileRows
    }
}

/// Packs a panel of B as [depth][its width]. Columns past the end are zero.
@inline(never)
private func packPickedPanel(
    _ args: PickedProductArguments, start: Int, depth: Int, column: Int, columns: Int, into panel: UnsafeMutablePointer<Float>
) {
    let padded = (columns + laneCount - 1) / laneCount * laneCount
    let bytes = byteCount(args.type)
    if args.isTransposed {
        // Rows are widened first, because shuffles of floats are what transposes them.
        let stage = panel + (PickedScratch.stage - PickedScratch.panel)
        if columns < padded { for x in 0..<padded * depth { panel[x] = 0 } }
        for x in 0..<columns {
            let row = args.b + (pickedRow(args, column + x) * args.bStride + start) * bytes
            widenNumbers(row, args.type, count: depth, into: stage + x * depth)
        }
        transpose(stage, stride: depth, rows: columns, columns: depth, times: 1, into: panel, destinationStride: padded)
    } else {
        for k in 0..<depth {
            let row = args.b + (pickedRow(args, start + k) * args.bStride + column) * bytes
            let target = panel + k * padded
            widenNumbers(row, args.type, count: columns, into: target)
            var x = columns
            while x < padded {
                target[x] = 0
                x += 1
            }
        }
    }
}

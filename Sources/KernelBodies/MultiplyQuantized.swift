// Rows of activations times one panel of quantised weights: y = function(Σ_g scale · scale · (Σ codes · codes) + bias + low · up).
//
//     for each step of the depth:  expand the panel's codes and scales once
//         for each strip of rows:  for each group:  integers = Σ a · w, exact     C += integers · weight scale · row's scale
//     for each strip:              C = C · channel scale + bias + low · up
//     for each row:                y = function(C), in the output's type
//
// C is a block of floats in scratch. With activations in floating point the panel expands to weights, and C += a · w.

public import KernelInterface

/// Everything a step of the depth needs: the expanded panel and where its groups start.
private struct PanelStep {
    var codes: UnsafePointer<UInt8>
    var weights: UnsafePointer<Float>
    var scales: UnsafePointer<Float>
    var offsets: UnsafePointer<Float>?
    var c: UnsafeMutablePointer<Float>
    /// First channel and group, and how many.
    var channel = 0
    var channels = 0
    var group = 0
    var groups = 0
    /// Channels whose products a narrow sum holds; divides the group.
    var chunk: Int
}

/// See `QuantizedProductArguments`.
public func multiplyQuantized(_ arguments: UnsafePointer<QuantizedProductArguments>) {
    let args = arguments.pointee
    switch (args.columns + laneCount - 1) / laneCount {
    case 1: multiplyPanelOfOne(args)
    case 2: multiplyPanelOfTwo(args)
    default: multiplyPanelOfThree(args)
    }
}

@inline(never)
private func multiplyPanelOfOne(_ args: QuantizedProductArguments) { multiplyPanel(args, width: 1) }

@inline(never)
private func multiplyPanelOfTwo(_ args: QuantizedProductArguments) { multiplyPanel(args, width: 2) }

@inline(never)
private func multiplyPanelOfThree(_ args: QuantizedProductArguments) { multiplyPanel(args, width: 3) }

@_transparent
private func multiplyPanel(_ args: QuantizedProductArguments, width: Int) {
    let lanes = width * laneCount
    let expanded = args.scratch.assumingMemoryBound(to: UInt8.self)
    let scales = (args.scratch + QuantizedScratch.expandedBytes).assumingMemoryBound(to: Float.self)
    let offsets = scales + QuantizedScratch.scaleFloats
    let c = offsets + QuantizedScratch.scaleFloats
    let up = c + QuantizedScratch.sumFloats
    let paddedRows = (args.rows + tileRows - 1) / tileRows * tileRows
    for x in 0..<paddedRows * width { store(splat(0), c + x * laneCount) }

    var step = PanelStep(
        codes: expanded, weights: UnsafeRawPointer(expanded).assumingMemoryBound(to: Float.self), scales: scales,
        offsets: args.offsets == nil ? nil : UnsafePointer(offsets), c: c, chunk: args.groupSize)
    while step.chunk / 4 * 2 * args.largestProduct > codeSumLimit { step.chunk /= 2 }
    let limit = args.values == nil ? QuantizedScratch.codeDepth : QuantizedScratch.floatDepth
    while step.channel < args.paddedDepth {
        step.channels = minimum(limit, args.paddedDepth - step.channel)
        step.group = step.channel / args.groupSize
        step.groups = step.channels / args.groupSize
        widen(
            args.weightScales, args.scaleType, from: step.group * lanes, count: step.groups * lanes, into: scales)
        if let given = args.offsets {
            for x in 0..<step.groups * width {
                store(load(given + step.group * lanes + x * laneCount), offsets + x * laneCount)
            }
        }
        if args.values != nil {
            expandWeights(
                args, channel: step.channel, channels: step.channels, scales: scales, offsets: step.offsets, lanes: lanes,
                into: UnsafeMutableRawPointer(expanded).assumingMemoryBound(to: Float.self))
            multiplyFloats(args, step, width: width)
        } else {
            if args.coding == .byte {
                step.codes = args.panel.assumingMemoryBound(to: UInt8.self) + step.channel * lanes
            } else {
                expandCodes(args, channel: step.channel, channels: step.channels, lanes: lanes, into: expanded)
            }
            multiplyCodes(args, step, width: width)
        }
        step.channel += step.channels
    }
    if let factors = args.up { widen(factors, args.factorType, from: 0, count: args.rank * lanes, into: up) }
    finishSums(args, c, up: up, width: width)
    writeRows(args, c, lanes: lanes)
}

// MARK: - Integer products

/// All strips of rows against the step.
@_transparent
private func multiplyCodes(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    // One row alone has a tile of its own: the product with a vector waits for memory, not for the tile.
    if args.rows == 1 {
        switch (width, args.coding == .byte) {
        case (1, false): multiplyRowByOne(args, step)
        case (2, false): multiplyRowByTwo(args, step)
        case (3, false): multiplyRowByThree(args, step)
        case (1, true): multiplyByteRowByOne(args, step)
        case (2, true): multiplyByteRowByTwo(args, step)
        default: multiplyByteRowByThree(args, step)
        }
        return
    }
    var row = 0
    while row < args.rows {
        switch (width, args.coding == .byte) {
        case (1, false): multiplyStripByOne(args, step, row)
        case (2, false): multiplyStripByTwo(args, step, row)
        case (3, false): multiplyStripByThree(args, step, row)
        case (1, true): multiplyByteStripByOne(args, step, row)
        case (2, true): multiplyByteStripByTwo(args, step, row)
        default: multiplyByteStripByThree(args, step, row)
        }
        row += tileRows
    }
}

// One function per shape of the tile, not inlined: it needs every register.

@inline(never)
private func multiplyStripByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: tileRows, width: 1, isByte: false)
}

@inline(never)
private func multiplyStripByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: tileRows, width: 2, isByte: false)
}

@inline(never)
private func multiplyStripByThree(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: tileRows, width: 3, isByte: false)
}

@inline(never)
private func multiplyByteStripByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: tileRows, width: 1, isByte: true)
}

@inline(never)
private func multiplyByteStripByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: tileRows, width: 2, isByte: true)
}

@inline(never)
private func multiplyByteStripByThree(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: tileRows, width: 3, isByte: true)
}

@inline(never)
private func multiplyRowByOne(_ args: QuantizedProductArguments, _ step: PanelStep) {
    multiplyStrip(args, step, 0, rows: 1, width: 1, isByte: false)
}

@inline(never)
private func multiplyRowByTwo(_ args: QuantizedProductArguments, _ step: PanelStep) {
    multiplyStrip(args, step, 0, rows: 1, width: 2, isByte: false)
}

@inline(never)
private func multiplyRowByThree(_ args: QuantizedProductArguments, _ step: PanelStep) {
    multiplyStrip(args, step, 0, rows: 1, width: 3, isByte: false)
}

@inline(never)
private func multiplyByteRowByOne(_ args: QuantizedProductArguments, _ step: PanelStep) {
    multiplyStrip(args, step, 0, rows: 1, width: 1, isByte: true)
}

@inline(never)
private func multiplyByteRowByTwo(_ args: QuantizedProductArguments, _ step: PanelStep) {
    multiplyStrip(args, step, 0, rows: 1, width: 2, isByte: true)
}

@inline(never)
private func multiplyByteRowByThree(_ args: QuantizedProductArguments, _ step: PanelStep) {
    multiplyStrip(args, step, 0, rows: 1, width: 3, isByte: true)
}

/// C += Σ_g (Σ_k a·w) · weight scale · row's scale, for `rows` rows.
@_transparent
private func multiplyStrip(
    _ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int, rows: Int, width: Int, isByte: Bool
) {
    let lanes = width * laneCount
    let groups = args.paddedDepth / args.groupSize
    let codes = UnsafeRawPointer(args.codes! + row * args.codeStride + step.channel).assumingMemoryBound(to: UInt8.self)
    let a = codePointers(codes, stride: args.codeStride, count: args.rows - row)
    let last = minimum(rows, args.rows - row) - 1
    let c = step.c + row * lanes
    for group in 0..<step.groups {
        let first = row * groups + step.group + group
        let line = GroupLine(
            starts: args.starts + first, scales: args.scales + first, groups: groups, last: last,
            weightScales: step.scales + group * lanes, c: c)
        let channel = group * args.groupSize
        let panel = step.codes + channel * lanes
        if isByte || codeSumLimit > 32_767 {
            var tile = startTile(line, rows: rows)
            accumulate(&tile, rows: rows, a, from: channel, weights: panel, depth: args.groupSize, width: width, isByte: isByte)
            addScaled(integers(tile, rows: rows, isByte: isByte), line, rows: rows, width: width)
        } else {
            var tile = zeroCodeTile()
            accumulate(&tile, rows: rows, a, from: channel, weights: panel, depth: step.chunk, width: width, isByte: false)
            var sums = integers(tile, rows: rows, isByte: false) + starts(line, rows: rows)
            var done = step.chunk
            while done < args.groupSize {
                tile = zeroCodeTile()
                accumulate(
                    &tile, rows: rows, a, from: channel + done, weights: panel + done * lanes, depth: step.chunk, width: width,
                    isByte: false)
                sums = sums + integers(tile, rows: rows, isByte: false)
                done += step.chunk
            }
            addScaled(sums, line, rows: rows, width: width)
        }
    }
    if let offsets = step.offsets {
        for group in 0..<step.groups {
            let sums = args.sums + row * groups + step.group + group
            for r in 0..<minimum(rows, args.rows - row) {
                let target = c + r * lanes
                let weight = loadRow(offsets + group * lanes, width: width)
                store(multiplyAdd(-sums[r * groups], weight, loadRow(target, width: width)), target, width: width)
            }
        }
    }
}

/// One group of a strip: where the rows' scales and starting sums are, and where the products go.
private struct GroupLine {
    var starts: UnsafePointer<Int32>
    var scales: UnsafePointer<Float>
    /// From one row to the next.
    var groups: Int
    /// The last row that exists; rows after it repeat it.
    var last: Int
    var weightScales: UnsafePointer<Float>
    var c: UnsafeMutablePointer<Float>
}

private typealias IntTile = (
    r0: IntRow, r1: IntRow, r2: IntRow, r3: IntRow, r4: IntRow, r5: IntRow, r6: IntRow, r7: IntRow
)

@_transparent
private func startTile(_ line: GroupLine, rows: Int) -> CodeTile {
    let first = startRow(line.starts[0])
    if rows == 1 { return (first, first, first, first, first, first, first, first) }
    let r1 = startRow(start(line, 1))
    let r2 = startRow(start(line, 2))
    let r3 = startRow(start(line, 3))
    if rows == 4 { return (first, r1, r2, r3, first, first, first, first) }
    return (
        first, r1, r2, r3, startRow(start(line, 4)), startRow(start(line, 5)), startRow(start(line, 6)),
        startRow(start(line, 7))
    )
}

@_transparent
private func starts(_ line: GroupLine, rows: Int) -> IntTile {
    let first = integerRow(line.starts[0])
    if rows == 1 { return (first, first, first, first, first, first, first, first) }
    let (r1, r2, r3) = (integerRow(start(line, 1)), integerRow(start(line, 2)), integerRow(start(line, 3)))
    if rows == 4 { return (first, r1, r2, r3, first, first, first, first) }
    return (
        first, r1, r2, r3, integerRow(start(line, 4)), integerRow(start(line, 5)), integerRow(start(line, 6)),
        integerRow(start(line, 7))
    )
}

@_transparent
private func start(_ line: GroupLine, _ row: Int) -> Int32 { line.starts[minimum(row, line.last) * line.groups] }

@_transparent
private func integers(_ tile: CodeTile, rows: Int, isByte: Bool) -> IntTile {
    let first = integers(tile.r0, isByte: isByte)
    if rows == 1 { return (first, first, first, first, first, first, first, first) }
    let r1 = integers(tile.r1, isByte: isByte)
    let r2 = integers(tile.r2, isByte: isByte)
    let r3 = integers(tile.r3, isByte: isByte)
    if rows == 4 { return (first, r1, r2, r3, first, first, first, first) }
    return (
        first, r1, r2, r3, integers(tile.r4, isByte: isByte), integers(tile.r5, isByte: isByte),
        integers(tile.r6, isByte: isByte),
        integers(tile.r7, isByte: isByte)
    )
}

@_transparent
private func + (a: IntTile, b: IntTile) -> IntTile {
    (a.r0 + b.r0, a.r1 + b.r1, a.r2 + b.r2, a.r3 + b.r3, a.r4 + b.r4, a.r5 + b.r5, a.r6 + b.r6, a.r7 + b.r7)
}

@_transparent
private func addScaled(_ sums: IntTile, _ line: GroupLine, rows: Int, width: Int) {
    addScaled(sums.r0, line, 0, width: width)
    if rows > 1 {
        addScaled(sums.r1, line, 1, width: width)
        addScaled(sums.r2, line, 2, width: width)
        addScaled(sums.r3, line, 3, width: width)
    }
    if rows > 4 {
        addScaled(sums.r4, line, 4, width: width)
        addScaled(sums.r5, line, 5, width: width)
        addScaled(sums.r6, line, 6, width: width)
        addScaled(sums.r7, line, 7, width: width)
    }
}

/// C += sums · weight scale · row's scale. C has room for rows past the last.
@_transparent
private func addScaled(_ sums: IntRow, _ line: GroupLine, _ row: Int, width: Int) {
    let target = line.c + row * width * laneCount
    let scaled = floats(sums) * loadRow(line.weightScales, width: width)
    let scale = line.scales[minimum(row, line.last) * line.groups]
    store(multiplyAdd(scale, scaled, loadRow(target, width: width)), target, width: width)
}

// MARK: - Floating-point products

@_transparent
private func multiplyFloats(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    let lanes = width * laneCount
    var row = 0
    while row < args.rows {
        var tile = zeroTile()
        let rows = rowPointers(
            args.values! + row * args.valueStride + step.channel, stride: args.valueStride, count: args.rows - row)
        accumulate(&tile, rows, step: 1, panel: step.weights, depth: step.channels, width: width)
        add(&tile, step.c + row * lanes, stride: lanes, width: width)
        store(tile, step.c + row * lanes, stride: lanes, width: width)
        row += tileRows
    }
}

/// C = C · channel scale + bias + low · up.
@_transparent
private func finishSums(
    _ args: QuantizedProductArguments, _ c: UnsafeMutablePointer<Float>, up: UnsafePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    if args.channelScales == nil && args.bias == nil && args.low == nil { return }
    let factor = args.channelScales.map { loadRow($0, width: width) } ?? splatRow(1)
    let bias = args.bias.map { loadRow($0, width: width) } ?? splatRow(0)
    for row in 0..<args.rows {
        let line = c + row * lanes
        store(multiplyAdd(loadRow(line, width: width), factor, bias), line, width: width)
    }
    guard let low = args.low else { return }
    var row = 0
    while row < args.rows {
        var tile = zeroTile()
        let rows = rowPointers(low + row * args.lowStride, stride: args.lowStride, count: args.rows - row)
        accumulate(&tile, rows, step: 1, panel: up, depth: args.rank, width: width)
        add(&tile, c + row * lanes, stride: lanes, width: width)
        store(tile, c + row * lanes, stride: lanes, width: width)
        row += tileRows
    }
}

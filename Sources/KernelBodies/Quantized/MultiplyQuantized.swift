// Rows of activations times a panel of quantised weights: y = function(Σ_g scale · scale · (Σ codes · codes) + bias + low·up).
//
//     for each step of the depth:  expand the panel's codes and scales once
//         for each strip of rows:  for each group:  integers = Σ a · w, exact     C += integers · weight scale · row's scale
//     for each strip:              C = C · channel scale + bias + low · up
//     for each row:                y = function(C), in the output's type
//
// C is a block of floats in scratch. For floating-point activations the panel is expanded to float weights, and C += a · w. So
// are weights of 8 or 16 bits that are numbers, which have neither codes nor groups.
// QuantizeActivations.swift prepares a, its scales and low; QuantizedVector.swift multiplies one row with nibbles.

public import KernelInterface

/// One step of the depth: its expanded panel and its groups.
private struct PanelStep {
    /// Memory for the expanded panel: codes, or float weights.
    var expanded: UnsafeMutablePointer<UInt8>
    /// The codes that tiles read: the expanded ones, or the stored ones when these are whole bytes.
    var codes: UnsafePointer<UInt8>
    var scales: UnsafeMutablePointer<Float>
    var offsets: UnsafeMutablePointer<Float>?
    /// The initial values of the integer sums of each group, [groups][lanes].
    var starts: UnsafeMutablePointer<Int32>
    var c: UnsafeMutablePointer<Float>
    /// The first channel and group, and the numbers of channels and groups.
    var channel = 0
    var channels = 0
    var group = 0
    var groups = 0
    /// The channels whose products a narrow sum can hold. Divides the group size.
    var chunk: Int
    /// Whether narrow sums can hold a whole group together with its initial value.
    var startsNarrow: Bool
}

extension Kernels {
    /// See `QuantizedProductArguments`.
    public static func multiplyQuantized(_ arguments: UnsafePointer<QuantizedProductArguments>) {
        let args = arguments.pointee
        switch (args.columns > laneCount, args.isWhole) {
        case (true, false): multiplyPanelOfTwo(args)
        case (false, false): multiplyPanelOfOne(args)
        case (true, true): multiplyWholePanelOfTwo(args)
        case (false, true): multiplyWholePanelOfOne(args)
        }
    }
}

@inline(never)
private func multiplyPanelOfOne(_ args: QuantizedProductArguments) { multiplyPanel(args, width: 1) }

@inline(never)
private func multiplyPanelOfTwo(_ args: QuantizedProductArguments) { multiplyPanel(args, width: 2) }

@_transparent
private func multiplyPanel(_ arguments: QuantizedProductArguments, width: Int) {
    // Where groups are picked, the activations of a step are shifted, so that its channels have the numbers of the weight's.
    var args = arguments
    let lanes = width * laneCount
    var step = firstStep(args)
    for x in 0..<(args.rows + QuantizedScratch.spareRows) * width { store(splat(0), step.c + x * laneCount) }
    // The product with a vector uses every code only once, so that unpacking into memory first would not pay.
    let isVector =
        args.rows == 1 && (args.weightType != nil || (args.values == nil ? !args.isByte : args.nibbleZero >= 0))
    let limit = args.values == nil || isVector ? QuantizedScratch.codeDepth : QuantizedScratch.floatDepth
    var done = 0
    while done < args.paddedDepth {
        step.channel = done
        step.channels = minimum(limit, args.paddedDepth - done)
        if args.groupList != nil {
            step.channels = args.groupSize
            step.channel = moveToGroup(&args, arguments, done: done, lanes: lanes)
        } else if done + step.channels == args.paddedDepth {
            args.bytesAhead += args.bytesSkipped
        }
        step.group = step.channel / args.groupSize
        step.groups = step.channels / args.groupSize
        loadScales(args, step, width: width)
        if isVector && args.weightType != nil {
            multiplyNumbers(args, step, width: width)
        } else if isVector {
            multiplyVector(args, step, width: width)
        } else if args.values != nil {
            multiplyFloats(args, step, width: width)
        } else {
            prepareCodes(args, &step, width: width)
            multiplyCodes(args, step, width: width)
        }
        done += step.channels
    }
    let up = step.c + QuantizedScratch.sumFloats
    if let factors = args.up { widen(factors, args.factorType, from: 0, count: args.rank * lanes, into: up) }
    finishSums(args, step.c, up: up, width: width)
    writeRows(args, step.c, lanes: lanes)
}

/// Takes the picked group whose activations begin at channel `done`, and returns its first channel in the weight.
///
/// Prefetching goes to the group that stands some places later in the list, or at the start of the list in the next panel.
@inline(never)
private func moveToGroup(
    _ args: inout QuantizedProductArguments, _ arguments: QuantizedProductArguments, done: Int, lanes: Int
) -> Int {
    let list = args.groupList!
    let (place, count) = (done / args.groupSize, args.paddedDepth / args.groupSize)
    let bytes = args.groupSize * lanes / (args.isByte ? 1 : 2)
    let group = Int(list[place])
    let shift = group - place
    if let codes = arguments.codes { args.codes = codes - shift * args.groupSize }
    if let values = arguments.values { args.values = values - shift * args.groupSize }
    args.scales = arguments.scales - shift
    args.sums = arguments.sums - shift
    let later = place + maximum(1, QuantizedScratch.bytesAhead / bytes)
    let isInPanel = later < count
    let next = Int(list[isInPanel ? later : minimum(later - count, count - 1)])
    args.bytesAhead = (next - group) * bytes + (isInPanel ? 0 : args.panelBytes)
    // Whole bytes are multiplied where they are, in a loop that asks for nothing.
    if args.isByte {
        let start = args.panel + group * bytes + args.bytesAhead
        var offset = 0
        while offset < bytes {
            prefetch((start + offset).assumingMemoryBound(to: Float.self))
            offset += 64
        }
    }
    return group * args.groupSize
}

/// Divides the scratch and determines how many channels narrow sums hold.
@_transparent
private func firstStep(_ args: QuantizedProductArguments) -> PanelStep {
    let expanded = args.scratch.assumingMemoryBound(to: UInt8.self)
    let scales = (args.scratch + QuantizedScratch.expandedBytes).assumingMemoryBound(to: Float.self)
    let offsets = scales + QuantizedScratch.scaleFloats
    let starts = offsets + QuantizedScratch.scaleFloats
    var step = PanelStep(
        expanded: expanded, codes: expanded, scales: scales, offsets: args.offsets == nil ? nil : offsets,
        starts: UnsafeMutableRawPointer(starts).assumingMemoryBound(to: Int32.self),
        c: starts + QuantizedScratch.scaleFloats, chunk: args.groupSize,
        startsNarrow: args.groupSize / 2 * (args.largestCode + 2 * Int(args.zeroCode)) * args.largestWeight <= codeSumLimit)
    // In each step of four channels, every narrow sum adds two products.
    while step.chunk / 2 * args.largestCode * args.largestWeight > codeSumLimit { step.chunk /= 2 }
    return step
}

/// Converts the scales and offsets of the step's groups to adjacent floats.
@_transparent
private func loadScales(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    let lanes = width * laneCount
    widen(
        args.weightScales, args.scaleType, from: step.group * lanes, count: step.groups * lanes, into: step.scales)
    guard let given = args.offsets, let offsets = step.offsets else { return }
    for x in 0..<step.groups * width {
        store(load(given + step.group * lanes + x * laneCount), offsets + x * laneCount)
    }
}

/// Adds the step's part of the product of one row to C.
@_transparent
private func multiplyVector(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    let offsets = UnsafePointer(step.offsets)
    if width == 1 {
        multiplyVectorByOne(
            args, channel: step.channel, channels: step.channels, chunk: step.chunk, scales: step.scales,
            offsets: offsets, c: step.c)
    } else {
        multiplyVectorByTwo(
            args, channel: step.channel, channels: step.channels, chunk: step.chunk, scales: step.scales,
            offsets: offsets, c: step.c)
    }
}

/// The same for weights that are numbers.
@_transparent
private func multiplyNumbers(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    let x = args.values! + step.channel
    let weights = args.panel + step.channel * width * laneCount * byteCount(args.weightType!)
    if width == 1 {
        multiplyNumbersByOne(x, weights, args.weightType!, channels: step.channels, c: step.c)
    } else {
        multiplyNumbersByTwo(x, weights, args.weightType!, channels: step.channels, c: step.c)
    }
}

/// Provides the codes of the step as signed bytes, and the initial values of its groups' sums.
@_transparent
private func prepareCodes(_ args: QuantizedProductArguments, _ step: inout PanelStep, width: Int) {
    if args.isByte {
        let lanes = width * laneCount
        step.codes = args.panel.assumingMemoryBound(to: UInt8.self) + step.channel * lanes
        startFromSums(args, step, lanes: lanes)
    } else {
        expandCodes(args, step, width: width)
    }
}

/// Expands the step's nibbles to signed bytes [channels/4][width·laneCount][4], and computes −zero·Σ codes of each group.
@_transparent
private func expandCodes(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    let bytes = 4 * laneCount
    let ones = splatWord(0x0101_0101)
    let ahead = args.bytesAhead
    var source = args.panel + step.channel * width * laneCount / 2
    var low = UnsafeMutableRawPointer(step.expanded)
    for group in 0..<step.groups {
        var sums = sumRow(0)
        for _ in 0..<args.groupSize / 8 {
            sums.x0 = expand(source, low, low + width * bytes, args.table, ones, sums.x0)
            if width > 1 {
                sums.x1 = expand(source + bytes, low + bytes, low + (width + 1) * bytes, args.table, ones, sums.x1)
            }
            // After a panel comes the next one, which the same thread usually multiplies.
            prefetch((source + ahead).assumingMemoryBound(to: Float.self))
            if width * bytes > 64 {
                prefetch((source + ahead + 64).assumingMemoryBound(to: Float.self))
            }
            source += width * bytes
            low += 2 * width * bytes
        }
        let total = integers(sums, isByte: false)
        let starts = step.starts + group * width * laneCount
        storeStart(total.x0, args, step, starts)
        if width > 1 { storeStart(total.x1, args, step, starts + laneCount) }
    }
}

/// Expands one vector of nibbles to two of bytes, and adds their sum to `sum`.
@_transparent
private func expand(
    _ source: UnsafeRawPointer, _ low: UnsafeMutableRawPointer, _ high: UnsafeMutableRawPointer, _ table: UnsafePointer<UInt8>,
    _ ones: CodeVector, _ sum: CodeVector
) -> CodeVector {
    let codes = nibblesInBytes(source.loadUnaligned(as: CodeVector.self))
    let (a, b) = (lookUp(codes.low, table), lookUp(codes.high, table))
    low.storeBytes(of: a, as: CodeVector.self)
    high.storeBytes(of: b, as: CodeVector.self)
    return addProducts(sum, ones, addBytes(a, b))
}

/// Stores −zero·Σ codes, which corrects for the offset of stored codes. Of a pair of narrow sums, only the first gets it.
@_transparent
private func storeStart(
    _ sum: IntVector, _ args: QuantizedProductArguments, _ step: PanelStep, _ target: UnsafeMutablePointer<Int32>
) {
    var start = IntVector(repeating: 0) &- sum &* args.zeroCode
    if codeSumLimit == 32_767 && step.startsNarrow && !args.isByte { start = start & 0xffff }
    UnsafeMutableRawPointer(target).storeBytes(of: start, as: IntVector.self)
}

/// The same for weights of whole bytes, whose sums are stored with them.
@_transparent
private func startFromSums(_ args: QuantizedProductArguments, _ step: PanelStep, lanes: Int) {
    let sums = args.codeSums! + step.group * lanes
    for x in 0..<step.groups * lanes / laneCount {
        let sum = UnsafeRawPointer(sums + x * laneCount).loadUnaligned(as: IntVector.self)
        storeStart(sum, args, step, step.starts + x * laneCount)
    }
}

// MARK: - Integer products

/// Multiplies the step with all rows, six at a time. A vector and the last rows have tiles of their own.
@_transparent
private func multiplyCodes(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    var row = 0
    while row < args.rows {
        let left = args.rows - row
        // Eight rows are two tiles of four, which is faster than six and two.
        let rows = left == 1 && args.isByte ? 1 : left <= 4 || left == 7 || left == 8 ? 4 : weightRows
        switch (width, rows, args.isByte) {
        case (1, 4, false): multiplyShortStripByOne(args, step, row)
        case (1, _, false): multiplyStripByOne(args, step, row)
        case (1, 1, true): multiplyByteRowByOne(args, step, row)
        case (1, 4, true): multiplyByteShortStripByOne(args, step, row)
        case (1, _, true): multiplyByteStripByOne(args, step, row)
        case (_, 4, false): multiplyShortStripByTwo(args, step, row)
        case (_, _, false): multiplyStripByTwo(args, step, row)
        case (_, 1, true): multiplyByteRowByTwo(args, step, row)
        case (_, 4, true): multiplyByteShortStripByTwo(args, step, row)
        case (_, _, true): multiplyByteStripByTwo(args, step, row)
        }
        row += rows
    }
}

// One function per shape of the tile, not inlined: the tile needs every register.

@inline(never)
private func multiplyShortStripByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 1, isByte: false)
}

@inline(never)
private func multiplyStripByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: weightRows, width: 1, isByte: false)
}

@inline(never)
private func multiplyShortStripByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 2, isByte: false)
}

@inline(never)
private func multiplyStripByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: weightRows, width: 2, isByte: false)
}

@inline(never)
private func multiplyByteRowByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 1, width: 1, isByte: true)
}

@inline(never)
private func multiplyByteShortStripByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 1, isByte: true)
}

@inline(never)
private func multiplyByteStripByOne(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: weightRows, width: 1, isByte: true)
}

@inline(never)
private func multiplyByteRowByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 1, width: 2, isByte: true)
}

@inline(never)
private func multiplyByteShortStripByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 2, isByte: true)
}

@inline(never)
private func multiplyByteStripByTwo(_ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: weightRows, width: 2, isByte: true)
}

/// C += Σ_g (Σ_k a·w) · weight scale · row's scale, for `rows` rows.
@_transparent
private func multiplyStrip(
    _ args: QuantizedProductArguments, _ step: PanelStep, _ row: Int, rows: Int, width: Int, isByte: Bool
) {
    let lanes = width * laneCount
    let groups = args.paddedDepth / args.groupSize
    let count = minimum(rows, args.rows - row)
    let a = codePointers(args.codes! + row * args.codeStride + step.channel, stride: args.codeStride, count: count)
    let line = GroupLine(
        scales: args.scales + row * groups + step.group,
        r1: minimum(1, count - 1) * groups, r2: minimum(2, count - 1) * groups, r3: minimum(3, count - 1) * groups,
        r4: minimum(4, count - 1) * groups, r5: minimum(5, count - 1) * groups)
    let target = step.c + row * lanes
    var c = loadTile(target, rows: rows, width: width)
    for group in 0..<step.groups {
        let channel = group * args.groupSize
        let panel = step.codes + channel * lanes
        let start = step.starts + group * lanes
        var sums: IntTile
        if isByte || step.startsNarrow {
            var tile = startTile(startRow(start, width: width))
            accumulate(&tile, rows: rows, a, from: channel, weights: panel, depth: args.groupSize, width: width, isByte: isByte)
            sums = integers(tile, isByte: isByte)
        } else {
            var tile = startTile(sumRow(0))
            accumulate(&tile, rows: rows, a, from: channel, weights: panel, depth: step.chunk, width: width, isByte: false)
            sums = integers(tile, isByte: false) + loadIntRow(start, width: width)
            var done = step.chunk
            while done < args.groupSize {
                tile = startTile(sumRow(0))
                accumulate(
                    &tile, rows: rows, a, from: channel + done, weights: panel + done * lanes, depth: step.chunk, width: width,
                    isByte: false)
                sums = sums + integers(tile, isByte: false)
                done += step.chunk
            }
        }
        let weightScale = loadRow(step.scales + group * lanes, width: width)
        c.r0 = multiplyAdd(line.scales[group], floats(sums.r0) * weightScale, c.r0)
        if rows > 1 {
            c.r1 = multiplyAdd(line.scales[line.r1 + group], floats(sums.r1) * weightScale, c.r1)
            c.r2 = multiplyAdd(line.scales[line.r2 + group], floats(sums.r2) * weightScale, c.r2)
            c.r3 = multiplyAdd(line.scales[line.r3 + group], floats(sums.r3) * weightScale, c.r3)
        }
        if rows > 4 {
            c.r4 = multiplyAdd(line.scales[line.r4 + group], floats(sums.r4) * weightScale, c.r4)
            c.r5 = multiplyAdd(line.scales[line.r5 + group], floats(sums.r5) * weightScale, c.r5)
        }
    }
    if let offsets = step.offsets {
        let sums = args.sums + row * groups + step.group
        for group in 0..<step.groups {
            let offset = loadRow(offsets + group * lanes, width: width)
            c.r0 = multiplyAdd(-sums[group], offset, c.r0)
            if rows > 1 {
                c.r1 = multiplyAdd(-sums[line.r1 + group], offset, c.r1)
                c.r2 = multiplyAdd(-sums[line.r2 + group], offset, c.r2)
                c.r3 = multiplyAdd(-sums[line.r3 + group], offset, c.r3)
            }
            if rows > 4 {
                c.r4 = multiplyAdd(-sums[line.r4 + group], offset, c.r4)
                c.r5 = multiplyAdd(-sums[line.r5 + group], offset, c.r5)
            }
        }
    }
    // C has memory for rows past the last.
    store(c.r0, target, width: width)
    if rows > 1 {
        store(c.r1, target + lanes, width: width)
        store(c.r2, target + 2 * lanes, width: width)
        store(c.r3, target + 3 * lanes, width: width)
    }
    if rows > 4 {
        store(c.r4, target + 4 * lanes, width: width)
        store(c.r5, target + 5 * lanes, width: width)
    }
}

/// The scales of a strip's rows, from the first group of the step on. Rows past the last one repeat it.
private struct GroupLine {
    var scales: UnsafePointer<Float>
    var r1: Int
    var r2: Int
    var r3: Int
    var r4: Int
    var r5: Int
}

@_transparent
private func loadTile(_ c: UnsafePointer<Float>, rows: Int, width: Int) -> FloatTile {
    let first = loadRow(c, width: width)
    if rows == 1 { return (first, first, first, first, first, first) }
    let lanes = width * laneCount
    let (r1, r2) = (loadRow(c + lanes, width: width), loadRow(c + 2 * lanes, width: width))
    let r3 = loadRow(c + 3 * lanes, width: width)
    if rows == 4 { return (first, r1, r2, r3, first, first) }
    return (
        first, r1, r2, r3, loadRow(c + 4 * lanes, width: width), loadRow(c + 5 * lanes, width: width)
    )
}

@_transparent
private func startTile(_ row: CodeRow) -> WeightTile { (row, row, row, row, row, row) }

// MARK: - Floating-point products

@_transparent
private func multiplyFloats(_ args: QuantizedProductArguments, _ step: PanelStep, width: Int) {
    let lanes = width * laneCount
    let expanded = UnsafeMutableRawPointer(step.expanded).assumingMemoryBound(to: Float.self)
    var weights = UnsafePointer(expanded)
    if let type = args.weightType {
        if type == .float32 {
            weights = args.panel.assumingMemoryBound(to: Float.self) + step.channel * lanes
        } else {
            widenWeights(args.panel, type, from: step.channel * lanes, count: step.channels * lanes, into: expanded)
        }
    } else {
        expandWeights(
            args, channel: step.channel, channels: step.channels, scales: step.scales, offsets: step.offsets, lanes: lanes,
            into: expanded)
    }
    var row = 0
    while row < args.rows {
        if tileRows > 4 && args.rows - row <= 4 {
            let (a, c, count) = (
                args.values! + row * args.valueStride + step.channel, step.c + row * lanes, args.rows - row
            )
            if width == 1 {
                addShortRowsByOne(a, stride: args.valueStride, count: count, weights, channels: step.channels, c)
            } else {
                addShortRowsByTwo(a, stride: args.valueStride, count: count, weights, channels: step.channels, c)
            }
            break
        }
        var tile = zeroTile()
        let rows = rowPointers(
            args.values! + row * args.valueStride + step.channel, stride: args.valueStride, count: args.rows - row)
        accumulate(&tile, rows, step: 1, panel: weights, depth: step.channels, width: width)
        add(&tile, step.c + row * lanes, stride: lanes, width: width)
        store(tile, step.c + row * lanes, stride: lanes, width: width)
        row += tileRows
    }
}

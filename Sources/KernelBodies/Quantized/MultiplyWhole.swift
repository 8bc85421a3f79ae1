// Rows of codes times a panel of weights of one scale per output: y = function(s · (S · Σ codes · codes − offset · Σ codes) + …).
//
// The integers are summed over the whole depth, so nothing is rounded before they are multiplied with the two scales:
//
//     for each step of the depth:  for each strip of rows:  C += Σ a · w, exact       last step: C = C · row's scale · scale …
//
// What the arithmetic allows, in multiply-adds per instruction of the vector ports: VNNI sums four per lane in one, which is four times
// what single precision has. AVX2 multiplies bytes into pairs of 16 bits (vpmaddubsw), adds these (vpmaddwd) and accumulates (vpaddd):
// 32 in three instructions, on three ports, where single precision has 16 on two of them. That is twice as many, if pairs do not
// overflow: 255·(w₀ + w₁) has to fit in 16 bits. Moving the sign from one operand to the other makes them fit, which takes a fourth
// instruction per product and leaves 1.33 times (1.2 with the signs of codes restored). Products of 16 bits (vpmaddwd, vpaddd) reach
// 1.5 times, and 1.7 times with one step of Strassen's recursion.
//
// But few pairs of real weights are loud, because the largest weight of a row sets the scale: 1.5% of those of a normal distribution
// and a depth of 1152, 0.3% of a Laplace distribution. So weights are split, w = quiet + remainder. The quiet part replaces the
// panel's step in scratch, at 9 instructions per 32 weights and task. The remainder is a list of words (four channels) for each output.
// It is multiplied with lanes that are rows, for which the codes are stored by columns as well:
//
//     for each block of 4·laneCount rows:  for each output:  Σ of its words · codes of all rows       transposed into C
//
// A word costs what a word of the panel costs, so 3% of loud words take 3% of the time. Both parts are exact, so no result depends on
// which way was taken; weights with many loud pairs, and calls with few rows, have the sign moved instead.

import KernelInterface

/// The memory of a task.
private struct WholeStep {
    /// The quiet codes of one step.
    var quiet: UnsafeMutablePointer<UInt8>
    /// One scale per lane.
    var scales: UnsafeMutablePointer<Float>
    /// The initial values of the sums.
    var starts: UnsafeMutablePointer<Int32>
    /// The sums of remainders of some outputs, before they are transposed.
    var turned: UnsafeMutablePointer<Int32>
    /// Sums as integers, and as floats after the last step.
    var c: UnsafeMutablePointer<Float>
    var codes: UnsafePointer<UInt8>
    /// The first channel of the activations and the number of channels.
    var channel = 0
    var channels = 0
    var isFirst = true
    var isLast = false
    /// Whether C has sums already before the first step.
    var hasSums = false
}

@inline(never)
func multiplyWholePanelOfOne(_ args: QuantizedProductArguments) { multiplyWholePanel(args, width: 1) }

@inline(never)
func multiplyWholePanelOfTwo(_ args: QuantizedProductArguments) { multiplyWholePanel(args, width: 2) }

@_transparent
private func multiplyWholePanel(_ args: QuantizedProductArguments, width: Int) {
    let lanes = width * laneCount
    let scratch = args.scratch
    let scales = (scratch + QuantizedScratch.expandedBytes).assumingMemoryBound(to: Float.self)
    let offsets = scales + QuantizedScratch.scaleFloats
    let starts = offsets + QuantizedScratch.scaleFloats
    let quiet = scratch.assumingMemoryBound(to: UInt8.self)
    var step = WholeStep(
        quiet: quiet, scales: scales, starts: UnsafeMutableRawPointer(starts).assumingMemoryBound(to: Int32.self),
        turned: UnsafeMutableRawPointer(offsets).assumingMemoryBound(to: Int32.self),
        c: starts + QuantizedScratch.scaleFloats, codes: quiet)
    let panel = args.panel.assumingMemoryBound(to: UInt8.self)
    widen(args.weightScales, args.scaleType, from: 0, count: lanes, into: scales)
    startSums(args, step, lanes: lanes)
    step.hasSums = args.turnedCodes != nil
    if step.hasSums { multiplyRemainders(args, step, lanes: lanes) }
    let depth = args.depth > 0 ? (args.depth + 3) / 4 * 4 : args.paddedDepth
    // Equal steps, of whole registers of four channels.
    let count = (depth + QuantizedScratch.codeDepth - 1) / QuantizedScratch.codeDepth
    let size = args.groupList == nil ? ((depth + count - 1) / count + 3) / 4 * 4 : args.groupSize
    var done = 0
    while done < depth {
        step.channel = done
        step.channels = minimum(size, depth - done)
        step.isLast = done + step.channels == depth
        var stored = done
        if let list = args.groupList { stored = Int(list[done / args.groupSize]) * args.groupSize }
        step.codes = panel + stored * lanes
        if step.hasSums {
            makeQuiet(panel + stored * lanes, into: step.quiet, bytes: step.channels * lanes)
            step.codes = UnsafePointer(step.quiet)
        }
        multiplyRows(args, step, width: width)
        step.isFirst = false
        done += step.channels
    }
    if let offsets = args.offsets { subtractOffsets(args, step.c, offsets, lanes: lanes) }
    let up = step.c + QuantizedScratch.sumFloats
    if let factors = args.up { widen(factors, args.factorType, from: 0, count: args.rank * lanes, into: up) }
    finishSums(args, step.c, up: up, width: width)
    writeRows(args, step.c, lanes: lanes)
}

/// starts = −zero · Σ codes of the groups that take part.
@_transparent
private func startSums(_ args: QuantizedProductArguments, _ step: WholeStep, lanes: Int) {
    let zero = IntVector(repeating: args.turnedCodes == nil ? byteZero : args.zeroCode)
    for x in 0..<lanes / laneCount {
        var sum = IntVector(repeating: 0)
        for place in 0..<args.paddedDepth / args.groupSize {
            var group = place
            if let list = args.groupList { group = Int(list[place]) }
            sum = sum &+ loadIntegers(args.codeSums! + group * lanes + x * laneCount)
        }
        storeIntegers(IntVector(repeating: 0) &- sum &* zero, step.starts + x * laneCount)
    }
}

@_transparent
private func loadIntegers(_ pointer: UnsafePointer<Int32>) -> IntVector {
    UnsafeRawPointer(pointer).loadUnaligned(as: IntVector.self)
}

@_transparent
private func storeIntegers(_ value: IntVector, _ pointer: UnsafeMutablePointer<Int32>) {
    UnsafeMutableRawPointer(pointer).storeBytes(of: value, as: IntVector.self)
}

/// C −= offset · Σ of the row's activations. All groups have one offset.
@inline(never)
private func subtractOffsets(
    _ args: QuantizedProductArguments, _ c: UnsafeMutablePointer<Float>, _ offsets: UnsafePointer<Float>, lanes: Int
) {
    let groups = args.paddedDepth / args.groupSize
    for row in 0..<args.rows {
        var sum: Float = 0
        for group in 0..<groups { sum += args.sums[row * groups + group] }
        for x in 0..<lanes / laneCount {
            let line = c + row * lanes + x * laneCount
            store(multiplyAdd(splat(-sum), load(offsets + x * laneCount), load(line)), line)
        }
    }
}

// MARK: - Quiet weights and their remainders

@inline(never)
private func makeQuiet(_ source: UnsafePointer<UInt8>, into target: UnsafeMutablePointer<UInt8>, bytes: Int) {
    let (source, target) = (UnsafeRawPointer(source), UnsafeMutableRawPointer(target))
    var offset = 0
    while offset < bytes {
        let weights = (source + offset).loadUnaligned(as: CodeVector.self)
        (target + offset).storeBytes(of: quietWeights(weights), as: CodeVector.self)
        offset += 4 * laneCount
    }
}

/// C = starts + Σ remainders · codes, for all rows and some more that fill a block.
@inline(never)
private func multiplyRemainders(_ args: QuantizedProductArguments, _ step: WholeStep, lanes: Int) {
    let block = 4 * laneCount
    let blockBytes = args.paddedDepth * block
    let c = UnsafeMutableRawPointer(step.c).assumingMemoryBound(to: Int32.self)
    let (words, ends) = (args.remainders!, args.remainderStarts!)
    var columns = UnsafeRawPointer(args.turnedCodes!)
    var row = 0
    while row < args.rows {
        for lane in 0..<lanes {
            let start = splatWord(step.starts[lane])
            var (s0, s1, s2, s3) = (start, start, start, start)
            for place in Int(ends[lane])..<Int(ends[lane + 1]) {
                let word = words[place]
                let bytes = (word & 0xff) << 8 | (word & 0xff00) << 16
                let weights = splatWord(Int32(truncatingIfNeeded: bytes))
                let codes = columns + Int(word >> 16) * 4 * block
                s0 = addQuietProducts(s0, codes.loadUnaligned(as: CodeVector.self), weights)
                s1 = addQuietProducts(s1, (codes + block).loadUnaligned(as: CodeVector.self), weights)
                s2 = addQuietProducts(s2, (codes + 2 * block).loadUnaligned(as: CodeVector.self), weights)
                s3 = addQuietProducts(s3, (codes + 3 * block).loadUnaligned(as: CodeVector.self), weights)
            }
            let target = step.turned + lane % laneCount * block
            storeIntegers(byteSums(s0), target)
            storeIntegers(byteSums(s1), target + laneCount)
            storeIntegers(byteSums(s2), target + 2 * laneCount)
            storeIntegers(byteSums(s3), target + 3 * laneCount)
            if lane % laneCount == laneCount - 1 {
                transposeWords(
                    step.turned, stride: block, rows: laneCount, columns: block,
                    into: c + row * lanes + lane - (laneCount - 1), destinationStride: lanes)
            }
        }
        columns += blockBytes
        row += block
    }
}

// MARK: - Products

/// Multiplies the step with all rows, a tile at a time. A vector and the last rows have tiles of their own.
@_transparent
private func multiplyRows(_ args: QuantizedProductArguments, _ step: WholeStep, width: Int) {
    var row = 0
    while row < args.rows {
        let left = args.rows - row
        // Seven or eight rows are two tiles of four, which is faster than six and two.
        let rows = left == 1 ? 1 : left <= 4 || (byteRows == 6 && (left == 7 || left == 8)) ? 4 : byteRows
        switch (width, rows, step.hasSums) {
        case (1, 1, false): multiplyRowByOne(args, step, row)
        case (1, 4, false): multiplyShortStripByOne(args, step, row)
        case (1, _, false): multiplyStripByOne(args, step, row)
        case (_, 1, false): multiplyRowByTwo(args, step, row)
        case (_, 4, false): multiplyShortStripByTwo(args, step, row)
        case (_, _, false): multiplyStripByTwo(args, step, row)
        case (1, 1, true): multiplyQuietRowByOne(args, step, row)
        case (1, 4, true): multiplyQuietShortStripByOne(args, step, row)
        case (1, _, true): multiplyQuietStripByOne(args, step, row)
        case (_, 1, true): multiplyQuietRowByTwo(args, step, row)
        case (_, 4, true): multiplyQuietShortStripByTwo(args, step, row)
        case (_, _, true): multiplyQuietStripByTwo(args, step, row)
        }
        row += rows
    }
}

// One function per shape of the tile, not inlined: the tile needs every register.

@inline(never)
private func multiplyRowByOne(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 1, width: 1, isQuiet: false)
}

@inline(never)
private func multiplyShortStripByOne(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 1, isQuiet: false)
}

@inline(never)
private func multiplyStripByOne(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: byteRows, width: 1, isQuiet: false)
}

@inline(never)
private func multiplyRowByTwo(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 1, width: 2, isQuiet: false)
}

@inline(never)
private func multiplyShortStripByTwo(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 2, isQuiet: false)
}

@inline(never)
private func multiplyStripByTwo(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: byteRows, width: 2, isQuiet: false)
}

@inline(never)
private func multiplyQuietRowByOne(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 1, width: 1, isQuiet: true)
}

@inline(never)
private func multiplyQuietShortStripByOne(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 1, isQuiet: true)
}

@inline(never)
private func multiplyQuietStripByOne(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: byteRows, width: 1, isQuiet: true)
}

@inline(never)
private func multiplyQuietRowByTwo(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 1, width: 2, isQuiet: true)
}

@inline(never)
private func multiplyQuietShortStripByTwo(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: 4, width: 2, isQuiet: true)
}

@inline(never)
private func multiplyQuietStripByTwo(_ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int) {
    multiplyStrip(args, step, row, rows: byteRows, width: 2, isQuiet: true)
}

/// C += Σ_k a·w over a step for `rows` rows; after the last one C = sums · weight scale · row's scale.
@_transparent
private func multiplyStrip(
    _ args: QuantizedProductArguments, _ step: WholeStep, _ row: Int, rows: Int, width: Int, isQuiet: Bool
) {
    let lanes = width * laneCount
    let count = minimum(rows, args.rows - row)
    let a = codePointers(args.codes! + row * args.codeStride + step.channel, stride: args.codeStride, count: count)
    let line = step.c + row * lanes
    let c = UnsafeMutableRawPointer(line).assumingMemoryBound(to: Int32.self)
    var tile = startTile(startRow(step.starts, width: width))
    if isQuiet || !step.isFirst { tile = loadTile(c, rows: rows, width: width) }
    accumulateBytes(&tile, rows: rows, a, from: 0, weights: step.codes, depth: step.channels, width: width, isQuiet: isQuiet)
    // C has memory for rows past the last.
    if !step.isLast {
        storeSums(tile.r0, c, width: width)
        if rows > 1 {
            storeSums(tile.r1, c + lanes, width: width)
            storeSums(tile.r2, c + 2 * lanes, width: width)
            storeSums(tile.r3, c + 3 * lanes, width: width)
        }
        if rows > 4 {
            storeSums(tile.r4, c + 4 * lanes, width: width)
            storeSums(tile.r5, c + 5 * lanes, width: width)
        }
        if rows > 6 {
            storeSums(tile.r6, c + 6 * lanes, width: width)
            storeSums(tile.r7, c + 7 * lanes, width: width)
        }
        return
    }
    let (groups, last) = (args.paddedDepth / args.groupSize, count - 1)
    let scale = loadRow(step.scales, width: width)
    let scales = args.scales + row * groups
    storeScaled(tile.r0, scale, scales[0], line, width: width)
    if rows > 1 {
        storeScaled(tile.r1, scale, scales[minimum(1, last) * groups], line + lanes, width: width)
        storeScaled(tile.r2, scale, scales[minimum(2, last) * groups], line + 2 * lanes, width: width)
        storeScaled(tile.r3, scale, scales[minimum(3, last) * groups], line + 3 * lanes, width: width)
    }
    if rows > 4 {
        storeScaled(tile.r4, scale, scales[minimum(4, last) * groups], line + 4 * lanes, width: width)
        storeScaled(tile.r5, scale, scales[minimum(5, last) * groups], line + 5 * lanes, width: width)
    }
    if rows > 6 {
        storeScaled(tile.r6, scale, scales[minimum(6, last) * groups], line + 6 * lanes, width: width)
        storeScaled(tile.r7, scale, scales[minimum(7, last) * groups], line + 7 * lanes, width: width)
    }
}

@_transparent
private func startTile(_ row: CodeRow) -> CodeTile { (row, row, row, row, row, row, row, row) }

/// Loads the integers of `rows` rows.
@_transparent
private func loadTile(_ c: UnsafePointer<Int32>, rows: Int, width: Int) -> CodeTile {
    let lanes = width * laneCount
    var tile = startTile(startRow(c, width: width))
    if rows > 1 {
        tile.r1 = startRow(c + lanes, width: width)
        tile.r2 = startRow(c + 2 * lanes, width: width)
        tile.r3 = startRow(c + 3 * lanes, width: width)
    }
    if rows > 4 {
        tile.r4 = startRow(c + 4 * lanes, width: width)
        tile.r5 = startRow(c + 5 * lanes, width: width)
    }
    if rows > 6 {
        tile.r6 = startRow(c + 6 * lanes, width: width)
        tile.r7 = startRow(c + 7 * lanes, width: width)
    }
    return tile
}

@_transparent
private func storeSums(_ row: CodeRow, _ pointer: UnsafeMutablePointer<Int32>, width: Int) {
    storeIntegers(byteSums(row.x0), pointer)
    if width > 1 { storeIntegers(byteSums(row.x1), pointer + laneCount) }
}

/// Stores sums · scale of each output · scale of the row.
@_transparent
private func storeScaled(
    _ row: CodeRow, _ scale: PanelRow, _ rowScale: Float, _ pointer: UnsafeMutablePointer<Float>, width: Int
) {
    store(floats(byteSums(row.x0)) * scale.x0 * splat(rowScale), pointer)
    if width > 1 { store(floats(byteSums(row.x1)) * scale.x1 * splat(rowScale), pointer + laneCount) }
}

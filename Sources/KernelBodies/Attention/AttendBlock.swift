// Attention of one query block by tiled online softmax (FlashAttention-2, algorithm 1), with both products transposed:
//
//     S = K·Qᵀ   [keys][queries]      m ← max(m, colmax S)      P = e^(S − m)      l ← α·l + colsum P
//     Oᵀ ← α·Oᵀ + Vᵀ·P   [channels][queries]                    α = e^(m_old − m_new)
//
// Lanes are queries. Maximum, sum and rescaling are therefore vertical, and neither K nor V is packed: K rows and V columns are
// the broadcast operand of the register tile; Q (packed once per block, times softmaxScale) and P are its panels. Panels of
// queries are one to three vectors wide, so that a panel's scores stay in the first-level cache from one product to the next.
//
// Operators choose the key ranges, resolve head geometry and use threads; none of that is handled here. AttentionOperands.swift
// packs Q and writes the output.

public import KernelInterface

/// Pointers into the scratch of one block.
private struct Workspace {
    var packedQuery: UnsafeMutablePointer<Float>
    var accumulator: UnsafeMutablePointer<Float>
    var scores: UnsafeMutablePointer<Float>
    var maxima: UnsafeMutablePointer<Float>
    var sums: UnsafeMutablePointer<Float>
    /// A copy of a step's values, used only when its ragged keys have values that are not finite.
    var finiteValues: UnsafeMutablePointer<Float>
}

/// The keys of one step, as the float rows that the register tile reads from the caller's memory or from a staged copy.
private struct KeyBlock {
    var keys: UnsafePointer<Float>
    var keyStride: Int
    var values: UnsafePointer<Float>
    var valueStride: Int
    /// Position of row 0 in the sequence.
    var begin: Int
    var count: Int
    /// The positions of gathered rows, which are not adjacent; nil for adjacent rows.
    var positions: UnsafePointer<Int32>?
    /// Whether some value is not finite, in a call with a bias that may hide its key from some rows.
    var hasHidden = false
    /// The next step's rows, which are prefetched during this step; nil when there is no next step or rows are staged.
    var nextKeys: UnsafePointer<Float>?
    var nextValues: UnsafePointer<Float>?
}

extension Kernels {
    /// See `AttentionArguments`.
    public static func attendBlock(_ arguments: UnsafePointer<AttentionArguments>) {
        var args = arguments.pointee
        let stagesKeys = needsStaging(args.key, channels: args.headDim)
        let stagesValues = needsStaging(args.value, channels: args.valueDim)
        let gathers = args.gatheredKeyCount > 0
        let layout = AttentionScratch(
            headDim: args.headDim, valueDim: args.valueDim, queryRows: args.queryRows, stagesKeys: stagesKeys || gathers,
            stagesValues: stagesValues || gathers)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        let vectors = (args.queryRows + laneCount - 1) / laneCount
        let space = Workspace(
            packedQuery: scratch + layout.packedQuery, accumulator: scratch + layout.accumulator,
            scores: scratch + layout.scores, maxima: scratch + layout.statistics,
            sums: scratch + layout.statistics + vectors * laneCount, finiteValues: scratch + layout.finiteValues)

        forEachPanel(vectors: vectors) { row, width in
            packQueries(args, row: row, lanes: width * laneCount, into: space.packedQuery + row * args.headDim)
        }
        for x in 0..<vectors * laneCount {
            // A sink logit counts as a key of value 0 that every row saw first.
            space.maxima[x] = args.sinkLogit
            space.sums[x] = args.sinkLogit == -.infinity ? 0 : 1
        }
        for x in 0..<(args.valueDim + tileRows) * vectors * laneCount { space.accumulator[x] = 0 }

        let keyRows = args.key.base.assumingMemoryBound(to: Float.self)
        let valueRows = args.value.base.assumingMemoryBound(to: Float.self)
        let pattern = (from: args.visibleFrom, to: args.visibleTo)
        for index in 0..<args.keyRangeCount {
            let range = args.keyRanges![index]
            args.visibleFrom = range.isGlobal ? args.globalFrom : pattern.from
            args.visibleTo = range.isGlobal ? args.globalTo : pattern.to
            var key = maximum(range.begin, args.visibleFrom)
            let end = minimum(range.end, args.queryRows - 1 + args.visibleTo)
            while key < end {
                let count = minimum(AttentionScratch.keyBlock, end - key)
                var block = KeyBlock(
                    keys: scratch + layout.keys, keyStride: args.headDim, values: scratch + layout.values,
                    valueStride: args.valueDim, begin: key, count: count)
                if stagesKeys {
                    Kernels.stageRows(args.key, first: key, count: count, channels: args.headDim, into: scratch + layout.keys)
                } else {
                    block.keys = keyRows + key * args.key.stride
                    block.keyStride = args.key.stride
                }
                if stagesValues {
                    Kernels.stageRows(
                        args.value, first: key, count: count, channels: args.valueDim, into: scratch + layout.values)
                } else {
                    block.values = valueRows + key * args.value.stride
                    block.valueStride = args.value.stride
                }
                key += count
                if !stagesKeys && !stagesValues && (key < end || index + 1 < args.keyRangeCount) {
                    let following = key < end ? range : args.keyRanges![index + 1]
                    let from = following.isGlobal ? args.globalFrom : pattern.from
                    let next = key < end ? key : maximum(following.begin, from)
                    block.nextKeys = keyRows + next * args.key.stride
                    block.nextValues = valueRows + next * args.value.stride
                }
                if args.bias != nil {
                    block.hasHidden = holdsNonFinite(
                        block.values, stride: block.valueStride, count: count, channels: args.valueDim)
                }
                attendKeyBlock(args, space, block, vectors: vectors)
            }
        }
        args.visibleFrom = -(1 << 60)
        args.visibleTo = 1 << 60
        args.limits = nil
        var first = 0
        while first < args.gatheredKeyCount {
            let count = minimum(AttentionScratch.keyBlock, args.gatheredKeyCount - first)
            for row in 0..<count {
                let key = Int(args.gatheredKeys![first + row])
                Kernels.stageRows(
                    args.key, first: key, count: 1, channels: args.headDim, into: scratch + layout.keys + row * args.headDim)
                Kernels.stageRows(
                    args.value, first: key, count: 1, channels: args.valueDim,
                    into: scratch + layout.values + row * args.valueDim)
            }
            let block = KeyBlock(
                keys: scratch + layout.keys, keyStride: args.headDim, values: scratch + layout.values,
                valueStride: args.valueDim,
                begin: 0, count: count, positions: args.gatheredKeys! + first)
            attendKeyBlock(args, space, block, vectors: vectors)
            first += count
        }
        forEachPanel(vectors: vectors) { row, width in
            writeOutput(
                args, row: row, lanes: width * laneCount, accumulator: space.accumulator + row * (args.valueDim + tileRows),
                maxima: space.maxima + row, sums: space.sums + row)
        }
    }
}

/// Attends one step of keys with all panels of the block.
@_transparent
private func attendKeyBlock(_ args: AttentionArguments, _ space: Workspace, _ block: KeyBlock, vectors: Int) {
    forEachPanel(vectors: vectors) { row, width in
        switch width {
        case 1: attendPanelOfOne(args, space, block, row: row)
        case 2: attendPanelOfTwo(args, space, block, row: row)
        default: attendPanelOfThree(args, space, block, row: row)
        }
    }
}

/// Rows in the caller's memory are used in place when they are adjacent floats. Others are copied step by step, because of
/// their type or because rows that are far apart share few cache sets.
@_transparent
private func needsStaging(_ operand: RowOperand, channels: Int) -> Bool {
    operand.type != .float32 || operand.stride != channels
}

// One function per width, not inlined: the tile needs every register, and constants of other loops must not occupy any.

@inline(never)
private func attendPanelOfOne(_ args: AttentionArguments, _ space: Workspace, _ block: KeyBlock, row: Int) {
    attendPanel(args, space, block, row: row, width: 1)
}

@inline(never)
private func attendPanelOfTwo(_ args: AttentionArguments, _ space: Workspace, _ block: KeyBlock, row: Int) {
    attendPanel(args, space, block, row: row, width: 2)
}

@inline(never)
private func attendPanelOfThree(_ args: AttentionArguments, _ space: Workspace, _ block: KeyBlock, row: Int) {
    attendPanel(args, space, block, row: row, width: 3)
}

/// Attends one step of keys with one panel.
@_transparent
private func attendPanel(
    _ args: AttentionArguments, _ space: Workspace, _ block: KeyBlock, row: Int, width: Int
) {
    let lanes = width * laneCount
    let lastRow = minimum(row + lanes, args.queryRows) - 1
    // The limits of the panel, counted from the step's first key: of the keys that some row sees, and of those that all rows see.
    var some = (from: row + args.visibleFrom - block.begin, to: lastRow + args.visibleTo - block.begin)
    var all = (from: lastRow + args.visibleFrom - block.begin, to: row + args.visibleTo - block.begin)
    if args.limits != nil {
        let limits = panelLimits(args.limits!, stride: args.limitStride, rows: row, through: lastRow)
        some = (from: limits.0 - block.begin, to: limits.3 - block.begin)
        all = (from: limits.1 - block.begin, to: limits.2 - block.begin)
    }
    let low = maximum(0, some.from)
    let high = minimum(block.count, some.to)
    if low >= high { return }
    // [low, high) without the ragged ends.
    let commonLow = minimum(high, maximum(low, all.from))
    let commonHigh = maximum(commonLow, minimum(high, all.to))

    let count = high - low
    let keys = block.keys + low * block.keyStride
    let values = block.values + low * block.valueStride
    let scores = space.scores
    let firstKey = block.begin + low

    // The first panel of the block prefetches the next step.
    scorePanel(
        block, keys, count: count, headDim: args.headDim, packedQuery: space.packedQuery + row * args.headDim,
        scores: scores, fetchesNext: row == 0 && block.nextKeys != nil, width: width)
    if args.logitsSoftCap > 0 || args.aliBiSlope != 0 || args.bias != nil {
        adjustScores(
            args, scores, row: row, width: width, firstKey: firstKey, positions: block.positions, count: count)
    }
    maskScores(args, scores, row: row, width: width, firstKey: firstKey, keys: 0, until: commonLow - low)
    maskScores(args, scores, row: row, width: width, firstKey: firstKey, keys: commonHigh - low, until: count)

    if args.pvSkipThreshold < .infinity
        && isNegligible(
            scores, count: count, maxima: space.maxima + row, rows: lastRow + 1 - row, below: args.pvSkipThreshold,
            width: width)
    {
        return
    }
    let rescale = softmaxPanel(scores, count: count, maxima: space.maxima + row, sums: space.sums + row, width: width)
    let accumulator = space.accumulator + row * (args.valueDim + tileRows)
    // With a bias, any key may be hidden from some rows, so that all keys count as ragged.
    let ends = block.hasHidden ? (0, count, count, count) : (0, commonLow - low, commonHigh - low, count)
    if block.hasHidden || hasNonFinite(values, stride: block.valueStride, channels: args.valueDim, ends) {
        // A non-finite value must not reach, as 0·∞, queries that do not see its key. So the products use a copy in which the
        // non-finite values of ragged keys are zeros, and these values are added afterwards, lane by lane.
        let copy = space.finiteValues
        copyFinite(values, stride: block.valueStride, count: count, channels: args.valueDim, ends, into: copy)
        accumulateValues(
            copy, stride: args.valueDim, count: count, valueDim: args.valueDim, scores: scores, accumulator: accumulator,
            rescale: rescale, width: width)
        for key in 0..<count where key < ends.1 || key >= ends.2 {
            if block.hasHidden {
                addUnhiddenNonFinite(
                    args, values + key * block.valueStride, scores + key * lanes, accumulator, row: row, key: firstKey + key,
                    width: width)
                continue
            }
            addNonFinite(
                args, values + key * block.valueStride, scores + key * lanes, accumulator, row: row, key: firstKey + key,
                width: width)
        }
    } else {
        accumulateValues(
            values, stride: block.valueStride, count: count, valueDim: args.valueDim, scores: scores,
            accumulator: accumulator, rescale: rescale, width: width)
    }
}

/// The channels that a score sums in one chain. Scores of 20 and more are common in trained models, and the rounding error of a
/// score is the relative error of its probability. Chains of 64 or 128 exceed the recorded cases' bound of 3e-6. Chains of 16
/// meet it and cost 1% of the time, because units that the products leave idle add the running sums.
@_transparent
private var scoreDepth: Int { 16 }

/// S = K·Qᵀ, `scoreDepth` channels at a time over all keys of the step.
///
/// Sixteen channels are one cache line of a row. With `fetchesNext`, that line of the next step's keys and values is prefetched
/// each time, so that reading it from memory or the last-level cache overlaps with the arithmetic.
@_transparent
private func scorePanel(
    _ block: KeyBlock, _ keys: UnsafePointer<Float>, count: Int, headDim: Int, packedQuery: UnsafePointer<Float>,
    scores: UnsafeMutablePointer<Float>, fetchesNext: Bool, width: Int
) {
    let stride = block.keyStride
    let lanes = width * laneCount
    var channel = 0
    while channel < headDim {
        let depth = minimum(scoreDepth, headDim - channel)
        let panel = packedQuery + channel * lanes
        var key = 0
        while key < count {
            if fetchesNext {
                for r in 0..<tileRows {
                    prefetch(block.nextKeys! + (key + r) * stride + channel)
                    prefetch(block.nextValues! + (key + r) * block.valueStride + channel)
                }
            }
            var tile = zeroTile()
            let rows = rowPointers(keys + key * stride + channel, stride: stride, count: count - key)
            accumulate(&tile, rows, step: 1, panel: panel, depth: depth, width: width)
            if channel > 0 { add(&tile, scores + key * lanes, stride: lanes, width: width) }
            store(tile, scores + key * lanes, stride: lanes, width: width)
            key += tileRows
        }
        channel += depth
    }
}

/// Oᵀ ← α·Oᵀ + Vᵀ·P.
@_transparent
private func accumulateValues(
    _ values: UnsafePointer<Float>, stride: Int, count: Int, valueDim: Int, scores: UnsafePointer<Float>,
    accumulator: UnsafeMutablePointer<Float>, rescale: PanelRow, width: Int
) {
    let lanes = width * laneCount
    var channel = 0
    while channel < valueDim {
        var tile = zeroTile()
        let columns = rowPointers(values + channel, stride: 1, count: valueDim - channel)
        accumulate(&tile, columns, step: stride, panel: scores, depth: count, width: width)
        let target = accumulator + channel * lanes
        add(&tile, target, stride: lanes, times: rescale, width: width)
        store(tile, target, stride: lanes, width: width)
        channel += tileRows
    }
}

/// Online softmax over the rows of `scores`, which become P. Updates m and l, and returns α.
@_transparent
private func softmaxPanel(
    _ scores: UnsafeMutablePointer<Float>, count: Int, maxima: UnsafeMutablePointer<Float>,
    sums: UnsafeMutablePointer<Float>, width: Int
) -> PanelRow {
    let lanes = width * laneCount
    let before = loadRow(maxima, width: width)
    var m = before
    for key in 0..<count { m = maximum(loadRow(scores + key * lanes, width: width), m) }
    store(m, maxima, width: width)
    // A row that has seen no key yet has m = −∞. Subtracting 0 instead gives e^−∞ = 0 and no NaN.
    m = zeroingNegativeInfinity(m)
    let rescale = exp(before - m)
    var l = splatRow(0)
    for key in 0..<count {
        let p = exp(loadRow(scores + key * lanes, width: width) - m)
        l = l + p
        store(p, scores + key * lanes, width: width)
    }
    store(multiplyAdd(loadRow(sums, width: width), rescale, l), sums, width: width)
    return rescale
}

// MARK: - Diagonals, bias and caps

/// Replaces the scores of keys [keys, until) of the step by −∞ in the lanes whose query does not see the key.
@_transparent
private func maskScores(
    _ args: AttentionArguments, _ scores: UnsafeMutablePointer<Float>, row: Int, width: Int, firstKey: Int, keys: Int,
    until: Int
) {
    let lanes = width * laneCount
    for key in keys..<maximum(keys, until) {
        let line = scores + key * lanes
        let hidden = splatRow(-.infinity)
        let kept = select(visibleLanes(args, row, firstKey + key, width: width), loadRow(line, width: width), else: hidden)
        store(kept, line, width: width)
    }
}

/// The lanes that see `key`. Lane 0 is the query `row`.
@_transparent
private func visibleLanes(_ args: AttentionArguments, _ row: Int, _ key: Int, width: Int) -> PanelMask {
    if args.limits != nil {
        let from = args.limits! + row
        return panelMask(from: from, to: from + args.limitStride, holding: Int32(truncatingIfNeeded: key), width: width)
    }
    // Distances to the limits, clamped to a range wider than a panel, so that 64-bit positions fit in 32-bit lanes.
    let from = Int32(truncatingIfNeeded: maximum(-1024, minimum(1024, key - row - args.visibleFrom)))
    let to = Int32(truncatingIfNeeded: maximum(-1024, minimum(1024, key - row - args.visibleTo)))
    return panelMask(lanesUpTo: from, above: to)
}

/// The keys of a step that only some queries of the panel see: [0, 1) and [2, 3), where the digits are elements of the tuple.
private typealias RaggedEnds = (Int, Int, Int, Int)

/// Whether a ragged key has an infinite or NaN value. Only for those does 0·x differ from 0.
@_transparent
private func hasNonFinite(_ values: UnsafePointer<Float>, stride: Int, channels: Int, _ ends: RaggedEnds) -> Bool {
    var sum: Float = 0
    for key in ends.0..<ends.1 {
        for channel in 0..<channels { sum += values[key * stride + channel] * 0 }
    }
    for key in ends.2..<ends.3 {
        for channel in 0..<channels { sum += values[key * stride + channel] * 0 }
    }
    return sum != 0
}

/// Adds p·v for the non-finite values of one key, in the lanes that see it.
@_transparent
private func addNonFinite(
    _ args: AttentionArguments, _ values: UnsafePointer<Float>, _ probabilities: UnsafePointer<Float>,
    _ accumulator: UnsafeMutablePointer<Float>, row: Int, key: Int, width: Int
) {
    let mask = visibleLanes(args, row, key, width: width)
    for channel in 0..<args.valueDim where values[channel] * 0 != 0 {
        let line = accumulator + channel * width * laneCount
        let o = loadRow(line, width: width)
        store(select(mask, multiplyAdd(values[channel], loadRow(probabilities, width: width), o), else: o), line, width: width)
    }
}

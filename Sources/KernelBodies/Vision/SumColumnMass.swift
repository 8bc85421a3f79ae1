// Attention mass of keys: sums of probabilities over query rows, with scores computed again and never stored as a matrix.
//
//     S = K·Qᵀ   [keys][queries]      mass[k] += Σ_r e^(S[k, r] − shift_r) · weight_r
//
// As in attention, lanes are queries: shifts and weights are vectors, Q is packed once per call, and K is read in place. Scores of
// 128 keys and one panel stay in the first-level cache. The sums of a key over panels are kept lane by lane, so that lanes are added
// once per key and call. Without shifts, the same scores give the maximum and the sum of exponentials of every row instead.
//
// Masks, chosen queries, heads and threads are the operator's.

public import KernelInterface

/// Pointers into the scratch of one call.
private struct Workspace {
    var packedQuery: UnsafeMutablePointer<Float>
    var scores: UnsafeMutablePointer<Float>
    /// `[keyBlock][laneCount]`.
    var laneSums: UnsafeMutablePointer<Float>
}

/// Adjacent keys of one step, as rows that the tile reads.
private struct KeyStep {
    var keys: UnsafePointer<Float>
    var stride: Int
    /// Position of row 0 in the sequence.
    var first: Int
    var count: Int
}

extension Kernels {
    public static func sumColumnMass(_ arguments: UnsafePointer<ColumnMassArguments>) {
        let args = arguments.pointee
        let stagesKeys = args.key.type != .float32 || args.key.stride != args.headDim
        let layout = ColumnMassScratch(headDim: args.headDim, stagesKeys: stagesKeys)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        let space = Workspace(
            packedQuery: scratch + layout.packedQuery, scores: scratch + layout.scores, laneSums: scratch + layout.laneSums)
        let vectors = (args.queryRows + laneCount - 1) / laneCount
        forEachPanel(vectors: vectors) { row, width in
            packRows(args, row: row, lanes: width * laneCount, into: space.packedQuery + row * args.headDim)
        }
        var key = args.firstKey
        while key < args.endKey {
            let count = minimum(ColumnMassScratch.keyBlock, args.endKey - key)
            var step = KeyStep(keys: scratch + layout.keys, stride: args.headDim, first: key, count: count)
            if stagesKeys {
                Kernels.stageRows(args.key, first: key, count: count, channels: args.headDim, into: scratch + layout.keys)
            } else {
                step.keys = args.key.base.assumingMemoryBound(to: Float.self) + key * args.key.stride
            }
            if args.mass != nil {
                for x in 0..<count { store(splat(0), space.laneSums + x * laneCount) }
            }
            forEachPanel(vectors: vectors) { row, width in
                switch width {
                case 1: sumPanelOfOne(args, space, step, row: row)
                case 2: sumPanelOfTwo(args, space, step, row: row)
                default: sumPanelOfThree(args, space, step, row: row)
                }
            }
            if let mass = args.mass {
                for x in 0..<count { mass[key - args.firstKey + x] += laneSum(load(space.laneSums + x * laneCount)) }
            }
            key += count
        }
    }
}

/// Packs rows as a panel [headDim][lanes], times softmaxScale. Missing rows are zero.
@inline(never)
private func packRows(_ args: ColumnMassArguments, row: Int, lanes: Int, into packed: UnsafeMutablePointer<Float>) {
    let rows = minimum(lanes, args.queryRows - row)
    if rows < lanes {
        for x in 0..<lanes * args.headDim { packed[x] = 0 }
    }
    transpose(
        args.query + row * args.headDim, stride: args.headDim, rows: rows, columns: args.headDim, times: args.softmaxScale,
        into: packed, destinationStride: lanes)
}

// One function per width, not inlined: the tile needs every register.

@inline(never)
private func sumPanelOfOne(_ args: ColumnMassArguments, _ space: Workspace, _ step: KeyStep, row: Int) {
    sumPanel(args, space, step, row: row, width: 1)
}

@inline(never)
private func sumPanelOfTwo(_ args: ColumnMassArguments, _ space: Workspace, _ step: KeyStep, row: Int) {
    sumPanel(args, space, step, row: row, width: 2)
}

@inline(never)
private func sumPanelOfThree(_ args: ColumnMassArguments, _ space: Workspace, _ step: KeyStep, row: Int) {
    sumPanel(args, space, step, row: row, width: 3)
}

/// Scores one step of keys with one panel, and adds up what the call wants.
@_transparent
private func sumPanel(_ args: ColumnMassArguments, _ space: Workspace, _ step: KeyStep, row: Int, width: Int) {
    let lanes = width * laneCount
    let lastRow = minimum(row + lanes, args.queryRows) - 1
    let limits = panelLimits(args.limits, stride: args.limitStride, rows: row, through: lastRow)
    let low = maximum(0, limits.0 - step.first)
    let high = minimum(step.count, limits.3 - step.first)
    if low >= high { return }
    // Keys that all rows see need no mask, unless the panel has lanes that are no row: 0 · ∞ would make them NaN.
    let isPadded = row + lanes > args.queryRows
    let commonLow = isPadded ? high : minimum(high, maximum(low, limits.1 - step.first))
    let commonHigh = isPadded ? high : maximum(commonLow, minimum(high, limits.2 - step.first))

    let count = high - low
    scoreKeys(
        step.keys + low * step.stride, stride: step.stride, count: count, headDim: args.headDim,
        packedQuery: space.packedQuery + row * args.headDim, scores: space.scores, width: width)
    let common = (from: commonLow - low, to: commonHigh - low)
    if args.mass != nil {
        addProbabilities(
            args, space.scores, row: row, firstKey: step.first + low, count: count, common: common,
            sums: space.laneSums + low * laneCount, width: width)
    } else {
        updateStatistics(
            args, space.scores, row: row, firstKey: step.first + low, count: count, common: common, width: width)
    }
}

/// The channels that a score sums in one chain; see `scoreDepth` of attention, whose scores these are.
@_transparent
private var chainDepth: Int { 16 }

/// S = K·Qᵀ.
@_transparent
private func scoreKeys(
    _ keys: UnsafePointer<Float>, stride: Int, count: Int, headDim: Int, packedQuery: UnsafePointer<Float>,
    scores: UnsafeMutablePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    var channel = 0
    while channel < headDim {
        let depth = minimum(chainDepth, headDim - channel)
        let panel = packedQuery + channel * lanes
        var key = 0
        while key < count {
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

/// The lanes that see `key`. Lane 0 is the query `row`.
@_transparent
private func lanesSeeing(_ args: ColumnMassArguments, _ row: Int, _ key: Int, width: Int) -> PanelMask {
    let from = args.limits + row
    return panelMask(from: from, to: from + args.limitStride, holding: Int32(truncatingIfNeeded: key), width: width)
}

/// sums[key] += Σ e^(s − shift) · weight over the vectors of the panel. Hidden probabilities are selected as 0, so that neither a
/// NaN key nor a NaN row passes a mask.
@_transparent
private func addProbabilities(
    _ args: ColumnMassArguments, _ scores: UnsafePointer<Float>, row: Int, firstKey: Int, count: Int,
    common: (from: Int, to: Int), sums: UnsafeMutablePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    let shift = loadRow(args.shifts! + row, width: width)
    let weight = loadRow(args.weights! + row, width: width)
    for key in 0..<count {
        var p = exp(capped(loadRow(scores + key * lanes, width: width) - shift)) * weight
        if key < common.from || key >= common.to {
            p = select(lanesSeeing(args, row, firstKey + key, width: width), p, else: splatRow(0))
        }
        var sum = p.x0
        if width > 1 { sum = sum + p.x1 }
        if width > 2 { sum = sum + p.x2 }
        store(load(sums + key * laneCount) + sum, sums + key * laneCount)
    }
}

/// Lane-wise the smaller of x and 88, above which `exp` has no meaning. Only a shift that does not belong to the scores leads there.
@_transparent
private func capped(_ x: PanelRow) -> PanelRow {
    (minimum(x.x0, splat(88)), minimum(x.x1, splat(88)), minimum(x.x2, splat(88)))
}

/// The online maximum and sum of exponentials of every row.
@_transparent
private func updateStatistics(
    _ args: ColumnMassArguments, _ scores: UnsafeMutablePointer<Float>, row: Int, firstKey: Int, count: Int,
    common: (from: Int, to: Int), width: Int
) {
    let lanes = width * laneCount
    let before = loadRow(args.maxima! + row, width: width)
    var m = before
    for key in 0..<count {
        var s = loadRow(scores + key * lanes, width: width)
        if key < common.from || key >= common.to {
            s = select(lanesSeeing(args, row, firstKey + key, width: width), s, else: splatRow(-.infinity))
            store(s, scores + key * lanes, width: width)
        }
        m = maximum(s, m)
    }
    store(m, args.maxima! + row, width: width)
    // A row that has seen no key yet has m = −∞. Subtracting 0 instead gives e^−∞ = 0 and no NaN.
    m = zeroingNegativeInfinity(m)
    var l = splatRow(0)
    for key in 0..<count { l = l + exp(loadRow(scores + key * lanes, width: width) - m) }
    store(multiplyAdd(loadRow(args.sums! + row, width: width), exp(before - m), l), args.sums! + row, width: width)
}

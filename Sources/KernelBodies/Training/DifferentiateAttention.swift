// The backward pass of softmax attention for one query head and a run of keys (FlashAttention-2, algorithm 2): probabilities are
// computed again from Q, K and LSE, and no N×N matrix is stored. With D = rowsum(dO∘O), for a block of queries and a block of keys:
//
//     P  = e^(scale·K·Qᵀ − LSE)              [keys][queries]
//     dS = scale · P∘(V·dOᵀ − D)             [keys][queries]
//     dV += P·dO        dK += dS·Q           [keys][channels]
//     dQ += dSᵀ·K                            [queries][channels]
//
// These are five products. Lanes are queries in the first two and channels in the others, so that LSE and D, one number per query,
// are vertical, and no matrix of the size of P is transposed: rows of K and V, rows of P and dS, and columns of dS are the broadcast
// operands of the register tile. Only Qᵀ and dOᵀ are packed, once per block of queries, both times the scale. −LSE and −scale·D are
// what the sums of the first two products begin with.
//
// Tiles that a mask hides are skipped, and the sums of the last three products leave out what is hidden from all rows of a tile.
// Operators choose the keys and resolve head geometry. AttentionGradientOperands.swift stages rows.

public import KernelInterface

/// One block of queries and one of keys.
private struct Step {
    var packedQuery: UnsafeMutablePointer<Float>
    var packedOutputGradient: UnsafeMutablePointer<Float>
    /// −LSE and −scale·D of the queries.
    var offsets: UnsafeMutablePointer<Float>
    var deltas: UnsafeMutablePointer<Float>
    /// P and dS, [keys][`gradientStride`].
    var probabilities: UnsafeMutablePointer<Float>
    var scoreGradients: UnsafeMutablePointer<Float>
    var queries = 0
    var keys = 0
    var queriesAreFinite = true
    var outputGradientsAreFinite = true
    /// Query r of the block sees the keys from r + `from` to r + `to` of the block.
    var from = 0
    var to = 0
    var keyRows: UnsafePointer<Float>
    var keyStride = 0
    var valueRows: UnsafePointer<Float>
    var valueStride = 0
}

/// target[r] += Σ_i weights[r][i] · source[i], over the i with r + `lower` ≤ i < r + `upper`.
private struct Product {
    var weights: UnsafePointer<Float>
    var rowStride: Int
    var depthStride: Int
    var rows: Int
    var depth: Int
    var lower: Int
    var upper: Int
    /// Rows, padded to whole vectors.
    var source: UnsafePointer<Float>
    var sourceStride: Int
    var channels: Int
    var target: UnsafeMutablePointer<Float>
    var targetStride: Int
    /// Memory for one tile.
    var edge: UnsafeMutablePointer<Float>
}

/// `AttentionGradientScratch.queryBlock`. As a literal, it becomes a part of addresses.
@_transparent
private var gradientStride: Int { 96 }

extension Kernels {
    /// See `AttentionGradientArguments`.
    public static func differentiateAttention(_ arguments: UnsafePointer<AttentionGradientArguments>) {
        let args = arguments.pointee
        let layout = AttentionGradientScratch(headDim: args.headDim, valueDim: args.valueDim)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        clearGradients(args)
        let step = Step(
            packedQuery: scratch + layout.packedQuery, packedOutputGradient: scratch + layout.packedOutputGradient,
            offsets: scratch + layout.statistics, deltas: scratch + layout.statistics + gradientStride,
            probabilities: scratch + layout.probabilities, scoreGradients: scratch + layout.scoreGradients,
            keyRows: args.key, valueRows: args.value)
        let passKeys = AttentionGradientScratch.passKeys(headDim: args.headDim, valueDim: args.valueDim)
        var first = args.firstKey
        while first < args.endKey {
            let end = minimum(first + passKeys, args.endKey)
            differentiatePass(args, layout, step, keys: first, until: end)
            first = end
        }
    }
}

/// All queries with some keys, whose rows and gradients stay in the second-level cache from one block of queries to the next.
@inline(never)
private func differentiatePass(
    _ args: AttentionGradientArguments, _ layout: AttentionGradientScratch, _ step: Step, keys: Int, until: Int
) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    var step = step
    var query = maximum(args.firstQuery, keys - args.visibleTo + 1)
    let endQuery = minimum(args.endQuery, until - args.visibleFrom)
    while query < endQuery {
        step.queries = minimum(gradientStride, endQuery - query)
        let queryRows = args.query + query * args.queryStride
        let outputGradientRows = args.outputGradient + query * args.outputGradientStride
        packLanes(
            queryRows, stride: args.queryStride, count: step.queries, channels: args.headDim, times: args.softmaxScale,
            into: step.packedQuery)
        packLanes(
            outputGradientRows, stride: args.outputGradientStride, count: step.queries, channels: args.valueDim,
            times: args.softmaxScale, into: step.packedOutputGradient)
        summarizeQueries(args, query: query, count: step.queries, offsets: step.offsets, deltas: step.deltas)
        step.queriesAreFinite = padFiniteRows(
            queryRows, stride: args.queryStride, count: step.queries, channels: args.headDim, into: scratch + layout.queryRows)
        step.outputGradientsAreFinite = padFiniteRows(
            outputGradientRows, stride: args.outputGradientStride, count: step.queries, channels: args.valueDim,
            into: scratch + layout.outputGradientRows)

        var key = maximum(keys, query + args.visibleFrom)
        let end = minimum(until, query + step.queries - 1 + args.visibleTo)
        while key < end {
            step.keys = minimum(AttentionGradientScratch.keyBlock, end - key)
            differentiateStep(args, layout, step, query: query, key: key)
            key += step.keys
        }
        query += step.queries
    }
}

/// The queries of a step, which are packed, with the keys from `key` on.
@inline(never)
private func differentiateStep(
    _ args: AttentionGradientArguments, _ layout: AttentionGradientScratch, _ step: Step, query: Int, key: Int
) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let paddedHead = AttentionGradientScratch.padded(args.headDim)
    let paddedValue = AttentionGradientScratch.padded(args.valueDim)
    var step = step
    step.from = query + args.visibleFrom - key
    step.to = query + args.visibleTo - key
    step.keyRows = args.key + key * args.keyStride
    step.keyStride = args.keyStride
    step.valueRows = args.value + key * args.valueStride
    step.valueStride = args.valueStride
    // Rows that are far apart share few cache sets, and those of keys are also read as vectors.
    if args.keyStride != args.headDim || args.headDim % laneCount != 0 {
        padRows(
            step.keyRows, stride: args.keyStride, count: step.keys, channels: args.headDim, into: scratch + layout.keys)
        step.keyRows = UnsafePointer(scratch + layout.keys)
        step.keyStride = paddedHead
    }
    if args.valueStride != args.valueDim {
        padRows(
            step.valueRows, stride: args.valueStride, count: step.keys, channels: args.valueDim, into: scratch + layout.values)
        step.valueRows = UnsafePointer(scratch + layout.values)
        step.valueStride = paddedValue
    }
    forEachPanel(vectors: (step.queries + laneCount - 1) / laneCount) { row, width in
        switch width {
        case 1: differentiatePanelOfOne(args, step, row: row)
        case 2: differentiatePanelOfTwo(args, step, row: row)
        default: differentiatePanelOfThree(args, step, row: row)
        }
    }

    // Rows that are not finite must not reach, as 0·∞, what does not see them.
    var product = Product(
        weights: step.probabilities, rowStride: gradientStride, depthStride: 1, rows: step.keys, depth: step.queries,
        lower: 1 - step.to, upper: 1 - step.from, source: scratch + layout.outputGradientRows, sourceStride: paddedValue,
        channels: args.valueDim, target: args.valueGradient + key * args.valueGradientStride,
        targetStride: args.valueGradientStride, edge: scratch + layout.edge)
    multiplyStep(product)
    if !step.outputGradientsAreFinite {
        addNonFinite(product, args.outputGradient + query * args.outputGradientStride, stride: args.outputGradientStride)
    }

    product.weights = UnsafePointer(step.scoreGradients)
    product.source = UnsafePointer(scratch + layout.queryRows)
    product.sourceStride = paddedHead
    product.channels = args.headDim
    product.target = args.keyGradient + key * args.keyGradientStride
    product.targetStride = args.keyGradientStride
    multiplyStep(product)
    if !step.queriesAreFinite { addNonFinite(product, args.query + query * args.queryStride, stride: args.queryStride) }

    var keysAreFinite = true
    let isRagged = step.queries - 1 + step.from > 0 || step.to < step.keys
    product.source = step.keyRows
    product.sourceStride = step.keyStride
    if isRagged && !areFinite(step.keyRows, stride: step.keyStride, count: step.keys, channels: args.headDim) {
        keysAreFinite = padFiniteRows(
            step.keyRows, stride: step.keyStride, count: step.keys, channels: args.headDim, into: scratch + layout.finiteKeys)
        product.source = UnsafePointer(scratch + layout.finiteKeys)
        product.sourceStride = paddedHead
    }
    (product.rowStride, product.depthStride) = (1, gradientStride)
    (product.rows, product.depth) = (step.queries, step.keys)
    (product.lower, product.upper) = (step.from, step.to)
    product.target = args.queryGradient + query * args.queryGradientStride
    product.targetStride = args.queryGradientStride
    multiplyStep(product)
    if !keysAreFinite { addNonFinite(product, step.keyRows, stride: step.keyStride) }
}

// MARK: - Probabilities and gradients of scores

// One function per width, not inlined: the tile needs every register, and constants of other loops must not occupy any.

@inline(never)
private func differentiatePanelOfOne(_ args: AttentionGradientArguments, _ step: Step, row: Int) {
    differentiatePanel(args, step, row: row, width: 1)
}

@inline(never)
private func differentiatePanelOfTwo(_ args: AttentionGradientArguments, _ step: Step, row: Int) {
    differentiatePanel(args, step, row: row, width: 2)
}

@inline(never)
private func differentiatePanelOfThree(_ args: AttentionGradientArguments, _ step: Step, row: Int) {
    differentiatePanel(args, step, row: row, width: 3)
}

/// P and dS of the queries from `row` on. Every tile with a visible pair is written whole, with zeros where keys are hidden.
@_transparent
private func differentiatePanel(_ args: AttentionGradientArguments, _ step: Step, row: Int, width: Int) {
    let lastRow = minimum(row + width * laneCount, step.queries) - 1
    // The keys that some query of the panel sees, in whole tiles.
    let low = maximum(0, row + step.from) / tileRows * tileRows
    let some = minimum(step.keys, lastRow + step.to)
    let high = minimum(step.keys, (some + tileRows - 1) / tileRows * tileRows)
    if low >= high { return }
    // [low, high) without the ragged ends.
    let commonLow = minimum(high, maximum(low, lastRow + step.from))
    let commonHigh = maximum(commonLow, minimum(high, row + step.to))

    let probabilities = step.probabilities + row
    accumulateKeys(
        step.keyRows, stride: step.keyStride, keys: low, until: high, count: step.keys, depth: args.headDim,
        panel: step.packedQuery + row * args.headDim, from: step.offsets + row, into: probabilities, times: nil, width: width)
    hideKeys(step, probabilities, row: row, keys: low, until: commonLow, as: -.infinity, width: width)
    hideKeys(step, probabilities, row: row, keys: commonHigh, until: high, as: -.infinity, width: width)
    for key in low..<high {
        let line = probabilities + key * gradientStride
        store(exp(loadRow(line, width: width)), line, width: width)
    }

    let scoreGradients = step.scoreGradients + row
    accumulateKeys(
        step.valueRows, stride: step.valueStride, keys: low, until: high, count: step.keys, depth: args.valueDim,
        panel: step.packedOutputGradient + row * args.valueDim, from: step.deltas + row, into: scoreGradients,
        times: probabilities, width: width)
    hideKeys(step, scoreGradients, row: row, keys: low, until: commonLow, as: 0, width: width)
    hideKeys(step, scoreGradients, row: row, keys: commonHigh, until: high, as: 0, width: width)
}

/// target[key] = (start + rows[key] · panel) · factors[key], for the keys of [keys, until), in tiles.
@_transparent
private func accumulateKeys(
    _ rows: UnsafePointer<Float>, stride: Int, keys: Int, until: Int, count: Int, depth: Int, panel: UnsafePointer<Float>,
    from start: UnsafePointer<Float>, into target: UnsafeMutablePointer<Float>, times factors: UnsafePointer<Float>?, width: Int
) {
    let start = loadRow(start, width: width)
    var key = keys
    while key < until {
        var tile: Tile = (start, start, start, start, start, start, start, start)
        accumulate(
            &tile, rowPointers(rows + key * stride, stride: stride, count: count - key), step: 1, panel: panel, depth: depth,
            width: width)
        if factors != nil {
            multiplyRows(&tile, by: factors! + key * gradientStride, stride: gradientStride, width: width)
        }
        store(tile, target + key * gradientStride, stride: gradientStride, width: width)
        key += tileRows
    }
}

/// C ← C ∘ rows of memory, `stride` floats apart.
@_transparent
private func multiplyRows(_ c: inout Tile, by pointer: UnsafePointer<Float>, stride: Int, width: Int) {
    c.r0 = c.r0 * loadRow(pointer, width: width)
    c.r1 = c.r1 * loadRow(pointer + stride, width: width)
    c.r2 = c.r2 * loadRow(pointer + 2 * stride, width: width)
    c.r3 = c.r3 * loadRow(pointer + 3 * stride, width: width)
    if tileRows > 4 {
        c.r4 = c.r4 * loadRow(pointer + 4 * stride, width: width)
        c.r5 = c.r5 * loadRow(pointer + 5 * stride, width: width)
        c.r6 = c.r6 * loadRow(pointer + 6 * stride, width: width)
        c.r7 = c.r7 * loadRow(pointer + 7 * stride, width: width)
    }
}

/// Replaces what the keys of [keys, until) have in lanes that do not see them.
@_transparent
private func hideKeys(
    _ step: Step, _ matrix: UnsafeMutablePointer<Float>, row: Int, keys: Int, until: Int, as hidden: Float, width: Int
) {
    for key in keys..<maximum(keys, until) {
        // Distances to the limits, clamped to a range wider than a panel, so that 64-bit positions fit in 32-bit lanes.
        let from = Int32(truncatingIfNeeded: maximum(-1024, minimum(1024, key - row - step.from)))
        let to = Int32(truncatingIfNeeded: maximum(-1024, minimum(1024, key - row - step.to)))
        let line = matrix + key * gradientStride
        let mask = panelMask(lanesUpTo: from, above: to)
        store(select(mask, loadRow(line, width: width), else: splatRow(hidden)), line, width: width)
    }
}

// MARK: - Products with P and dS

@_transparent
private func multiplyStep(_ product: Product) {
    forEachPanel(vectors: (product.channels + laneCount - 1) / laneCount) { column, width in
        switch width {
        case 1: multiplyStepOfOne(product, column: column)
        case 2: multiplyStepOfTwo(product, column: column)
        default: multiplyStepOfThree(product, column: column)
        }
    }
}

@inline(never)
private func multiplyStepOfOne(_ product: Product, column: Int) { multiplyColumns(product, column: column, width: 1) }

@inline(never)
private func multiplyStepOfTwo(_ product: Product, column: Int) { multiplyColumns(product, column: column, width: 2) }

@inline(never)
private func multiplyStepOfThree(_ product: Product, column: Int) { multiplyColumns(product, column: column, width: 3) }

@_transparent
private func multiplyColumns(_ product: Product, column: Int, width: Int) {
    let columns = minimum(width * laneCount, product.channels - column)
    var row = 0
    while row < product.rows {
        let rows = minimum(tileRows, product.rows - row)
        let low = maximum(0, row + product.lower)
        let high = minimum(product.depth, row + rows - 1 + product.upper)
        if low < high {
            var tile = zeroTile()
            accumulateRows(
                &tile,
                rowPointers(
                    product.weights + row * product.rowStride + low * product.depthStride, stride: product.rowStride,
                    count: rows),
                step: product.depthStride, source: product.source + low * product.sourceStride + column,
                stride: product.sourceStride, depth: high - low, width: width)
            let target = product.target + row * product.targetStride + column
            if rows == tileRows && columns == width * laneCount {
                add(&tile, target, stride: product.targetStride, width: width)
                store(tile, target, stride: product.targetStride, width: width)
            } else {
                store(tile, product.edge, stride: width * laneCount, width: width)
                addEdge(
                    product.edge, stride: width * laneCount, rows: rows, columns: columns, to: target,
                    targetStride: product.targetStride)
            }
        }
        row += tileRows
    }
}

/// C += A·B with rows of B `stride` floats apart.
@_transparent
private func accumulateRows(
    _ c: inout Tile, _ a: RowPointers, step: Int, source: UnsafePointer<Float>, stride: Int, depth: Int, width: Int
) {
    var offset = 0
    var b = source
    for _ in 0..<depth {
        let row = loadRow(b, width: width)
        c.r0 = multiplyAdd(a.p0[offset], row, c.r0)
        c.r1 = multiplyAdd(a.p1[offset], row, c.r1)
        c.r2 = multiplyAdd(a.p2[offset], row, c.r2)
        c.r3 = multiplyAdd(a.p3[offset], row, c.r3)
        if tileRows > 4 {
            c.r4 = multiplyAdd(a.p4[offset], row, c.r4)
            c.r5 = multiplyAdd(a.p5[offset], row, c.r5)
            c.r6 = multiplyAdd(a.p6[offset], row, c.r6)
            c.r7 = multiplyAdd(a.p7[offset], row, c.r7)
        }
        b += stride
        offset &+= step
    }
}

/// Adds the products with values that are not finite, which `padFiniteRows` has replaced by zeros, to the rows that see them.
@inline(never)
private func addNonFinite(_ product: Product, _ source: UnsafePointer<Float>, stride: Int) {
    for i in 0..<product.depth {
        let first = maximum(0, i - product.upper + 1)
        let end = minimum(product.rows, i - product.lower + 1)
        for channel in 0..<product.channels where source[i * stride + channel] * 0 != 0 {
            for row in first..<maximum(first, end) {
                let weight = product.weights[row * product.rowStride + i * product.depthStride]
                product.target[row * product.targetStride + channel] += weight * source[i * stride + channel]
            }
        }
    }
}

// A linear recurrence in chunks of tokens, after Dao and Gu ("Transformers are SSMs", 2024, section 6) and Yang et al. ("Gated Linear
// Attention Transformers with Hardware-Efficient Training", 2024). With D(j → i) the decay from token j to token i of a chunk, and S
// the state before it:
//
//     Y[i] = D(0 → i) ∘ q[i] · S + Σ_{j ≤ i} W[i][j] · v[j]        W[i][j] = q[i] · D(j → i) ∘ k[j] · Δ[j]
//     S ← D(0 → last) ∘ S + Σ_j k[j] · D(j → last) · Δ[j] · v[j]ᵀ
//
// The columns of a state, which are channels of values, do not depend on each other. They are cut into panels of the register tile,
// and a state is kept as panels while a sequence is computed, so that it is the panel of the first product without packing. A tile
// of outputs takes both of its sums in registers. Decays of whole heads scale rows of tiles and values, so that all heads that read
// a key head share q, k and their products.
//
// W has skips on its diagonal. Its tile on the diagonal is multiplied as a triangle, so that no output sees a later token, whatever
// that holds. Decays are products of factors in 0…1 and never quotients.

public import KernelInterface

/// One panel of a head's state and of its values, for one chunk.
private struct PanelStep {
    var query: UnsafePointer<Float>
    var key: UnsafePointer<Float>
    var weights: UnsafePointer<Float>
    var values: UnsafeMutablePointer<Float>
    var state: UnsafeMutablePointer<Float>
    var edge: UnsafeMutablePointer<Float>
    /// Per token: the decay from the chunk's start, and Δ times the decay to its end.
    var fromStart: UnsafePointer<Float>
    var toEnd: UnsafePointer<Float>
    /// Per row of the state: the decay of the whole chunk.
    var stateFactors: UnsafePointer<Float>
    var start: Int
    var count: Int
    var head: Int
    var column: Int
}

extension Kernels {
    /// See `LinearRecurrenceArguments`.
    public static func recurChunks(_ arguments: UnsafePointer<LinearRecurrenceArguments>) {
        let args = arguments.pointee
        let isPerChannel = args.decay == .perChannel
        let layout = LinearRecurrenceScratch(
            keyDim: args.keyDim, valueDim: args.valueDim, chunk: args.chunk, heads: args.heads, hasChannelDecays: isPerChannel)
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        let vectors = (args.valueDim + laneCount - 1) / laneCount
        for head in 0..<args.heads {
            forEachPanel(vectors: vectors) { column, width in
                loadState(
                    args, head: head, column: column, lanes: width * laneCount, rows: layout.stateRows,
                    into: scratch + layout.states + head * layout.stateCount + layout.stateRows * column)
            }
        }
        var start = 0
        while start < args.tokens {
            let count = minimum(args.chunk, args.tokens - start)
            packValues(args, layout, start: start, count: count)
            if !isPerChannel {
                stageKeys(args, layout, start: start, count: count)
                multiplyPairs(layout, scratch, keyDim: args.keyDim, count: count)
            }
            for head in 0..<args.heads {
                if isPerChannel {
                    stageKeys(args, layout, start: start, count: count)
                    weighChannelPairs(args, layout, head: head, start: start, count: count)
                } else {
                    findDecays(args, layout, head: head, start: start, count: count)
                    weighPairs(args, layout, head: head, count: count)
                }
                advanceHead(args, layout, head: head, start: start, count: count)
            }
            start += count
        }
        for head in 0..<args.heads {
            forEachPanel(vectors: vectors) { column, width in
                storeState(
                    args, head: head, column: column, lanes: width * laneCount,
                    from: scratch + layout.states + head * layout.stateCount + layout.stateRows * column)
            }
        }
    }
}

/// Takes all panels of a head over one chunk.
@inline(never)
private func advanceHead(
    _ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, head: Int, start: Int, count: Int
) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let vectors = (args.valueDim + laneCount - 1) / laneCount
    forEachPanel(vectors: vectors) { column, width in
        let step = PanelStep(
            query: scratch + layout.query, key: scratch + layout.key, weights: scratch + layout.weights,
            values: scratch + layout.values + head * layout.valueCount + layout.tokens * column,
            state: scratch + layout.states + head * layout.stateCount + layout.stateRows * column,
            edge: scratch + layout.edge, fromStart: scratch + layout.fromStart,
            toEnd: scratch + layout.toEnd,
            stateFactors: scratch + layout.stateFactors, start: start, count: count, head: head, column: column)
        switch width {
        case 1: advancePanelOfOne(args, step)
        case 2: advancePanelOfTwo(args, step)
        default: advancePanelOfThree(args, step)
        }
    }
}

// One function per width, not inlined: the tile needs every register.

@inline(never)
private func advancePanelOfOne(_ args: LinearRecurrenceArguments, _ step: PanelStep) { advancePanel(args, step, width: 1) }

@inline(never)
private func advancePanelOfTwo(_ args: LinearRecurrenceArguments, _ step: PanelStep) { advancePanel(args, step, width: 2) }

@inline(never)
private func advancePanelOfThree(_ args: LinearRecurrenceArguments, _ step: PanelStep) { advancePanel(args, step, width: 3) }

@_transparent
private func advancePanel(_ args: LinearRecurrenceArguments, _ step: PanelStep, width: Int) {
    let lanes = width * laneCount
    var row = 0
    while row < step.count {
        prefetchOutputs(args, step, row: row, lanes: lanes)
        var tile = zeroTile()
        accumulate(
            &tile, rowPointers(step.query + row * rowStride, stride: rowStride, count: tileRows), step: 1,
            panel: step.state, depth: args.keyDim, width: width)
        scaleRows(&tile, by: step.fromStart + row)
        let weights = step.weights + row * rowStride
        accumulate(
            &tile, rowPointers(weights, stride: rowStride, count: tileRows), step: 1, panel: step.values, depth: row,
            width: width)
        accumulateTriangle(&tile, weights + row, stride: rowStride, panel: step.values + row * lanes, width: width)
        if args.output.type == .float32 && row + tileRows <= step.count && step.column + lanes <= args.valueDim {
            store(
                tile,
                args.output.base.assumingMemoryBound(to: Float.self) + step.head * args.outputHeadStride
                    + (step.start + row) * args.output.stride + step.column, stride: args.output.stride, width: width)
        } else {
            store(tile, step.edge, stride: lanes, width: width)
            writeOutputs(
                args, step.edge, head: step.head, column: step.column, lanes: lanes, first: step.start + row,
                count: minimum(tileRows, step.count - row))
        }
        row += tileRows
    }
    for token in 0..<step.count {
        let values = step.values + token * lanes
        store(loadRow(values, width: width) * splatRow(step.toEnd[token]), values, width: width)
    }
    var channel = 0
    while channel < args.keyDim {
        var tile = zeroTile()
        accumulate(
            &tile, rowPointers(step.key + channel, stride: 1, count: tileRows), step: rowStride, panel: step.values,
            depth: step.count, width: width)
        let state = step.state + channel * lanes
        addRows(&tile, state, stride: lanes, times: step.stateFactors + channel, width: width)
        store(tile, state, stride: lanes, width: width)
        channel += tileRows
    }
}

/// Fetches the output rows of a tile, which are far apart, so that processors do not do it by themselves.
@_transparent
private func prefetchOutputs(_ args: LinearRecurrenceArguments, _ step: PanelStep, row: Int, lanes: Int) {
    let bytes = lanes * byteCount(args.output.type)
    var output =
        UnsafeRawPointer(args.output.base)
        + (step.head * args.outputHeadStride + (step.start + row) * args.output.stride + step.column)
        * byteCount(args.output.type)
    for _ in 0..<tileRows {
        var offset = 0
        while offset < bytes {
            prefetchNear(output + offset)
            offset += 64
        }
        output += args.output.stride * byteCount(args.output.type)
    }
}

/// The products of all queries and keys of a chunk at or below the diagonal, and those beside it in whole tiles.
@inline(never)
private func multiplyPairs(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, count: Int
) {
    let vectors = (count + laneCount - 1) / laneCount
    forEachPanel(vectors: vectors) { token, width in
        transpose(
            scratch + layout.key + token * rowStride, stride: rowStride, rows: width * laneCount,
            columns: keyDim, times: 1, into: scratch + layout.keyPanel, destinationStride: width * laneCount)
        let first = token / tileRows * tileRows
        switch width {
        case 1: multiplyPairsOfOne(layout, scratch, keyDim: keyDim, row: first, count: count, token: token)
        case 2: multiplyPairsOfTwo(layout, scratch, keyDim: keyDim, row: first, count: count, token: token)
        default: multiplyPairsOfThree(layout, scratch, keyDim: keyDim, row: first, count: count, token: token)
        }
    }
}

@inline(never)
private func multiplyPairsOfOne(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, row: Int, count: Int, token: Int
) {
    multiplyPairs(layout, scratch, keyDim: keyDim, row: row, count: count, token: token, width: 1)
}

@inline(never)
private func multiplyPairsOfTwo(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, row: Int, count: Int, token: Int
) {
    multiplyPairs(layout, scratch, keyDim: keyDim, row: row, count: count, token: token, width: 2)
}

@inline(never)
private func multiplyPairsOfThree(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, row: Int, count: Int, token: Int
) {
    multiplyPairs(layout, scratch, keyDim: keyDim, row: row, count: count, token: token, width: 3)
}

/// products[i][j] = q[i] · k[j] for rows i from `row` on and the tokens j of a panel of keys.
@_transparent
private func multiplyPairs(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, row: Int, count: Int,
    token: Int, width: Int
) {
    var row = row
    while row < count {
        var tile = zeroTile()
        accumulate(
            &tile,
            rowPointers(scratch + layout.query + row * rowStride, stride: rowStride, count: tileRows), step: 1,
            panel: scratch + layout.keyPanel, depth: keyDim, width: width)
        store(
            tile, scratch + layout.products + row * rowStride + token, stride: rowStride, width: width)
        row += tileRows
    }
}

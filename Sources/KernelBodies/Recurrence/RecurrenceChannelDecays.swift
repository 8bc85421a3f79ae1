// Weights of pairs of tokens where every channel of a key decays by itself, as in gated linear attention.
//
//     W[i][j] = Σ_n q[i][n] · k[j][n] · D_n(j → i)
//
// A chunk is cut into blocks of 16 tokens. Of pairs in different blocks, the decay is that from j to the end of the block before i's,
// which goes to the key, times that from there to i, which goes to the query: then W is a product of matrices. Of pairs in one block,
// the key is taken along from token to token and multiplied by each decay. So every factor is a product of decays in 0…1: it may
// become 0, and never overflows. Queries leave as those times the decay from the chunk's start, keys as those times the decay to
// its end.

import KernelInterface

/// Weighs the pairs of a chunk of a head, and prepares its queries, keys and decays for the products with values and state.
@inline(never)
func weighChannelPairs(
    _ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, head: Int, start: Int, count: Int
) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let width = layout.keyWidth
    let (query, key, decays) = (scratch + layout.query, scratch + layout.key, scratch + layout.channelDecays)
    let (local, before) = (scratch + layout.blockQueries, scratch + layout.channelFactors)
    let running = before + width
    findChannelDecays(args, layout, head: head, start: start, count: count)
    for token in 0..<layout.tokens {
        scratch[layout.fromStart + token] = 1
        scratch[layout.toEnd + token] = 1
    }
    fill(before, 1, count: width)
    var first = 0
    while first < count {
        let rows = minimum(LinearRecurrenceScratch.channelBlock, count - first)
        // Queries times the decay from the block's start, and from the chunk's start.
        fill(running, 1, count: width)
        for row in 0..<rows {
            let (q, d, own) = (query + (first + row) * rowStride, decays + (first + row) * rowStride, local + row * rowStride)
            var channel = 0
            while channel < width {
                let factor = flushed(load(running + channel) * load(d + channel))
                store(factor, running + channel)
                let value = load(q + channel)
                store(value * factor, own + channel)
                store(value * (factor * load(before + channel)), q + channel)
                channel += laneCount
            }
        }
        for row in rows..<LinearRecurrenceScratch.channelBlock { fill(local + row * rowStride, 0, count: width) }
        if first > 0 { multiplyBlockPairs(layout, scratch, keyDim: args.keyDim, row: first, rows: rows) }
        // `running` is the decay of the whole block now. Local queries over decays are not the raw ones, so these are staged again.
        for row in 0..<rows {
            stageRow(
                args.query, start + first + row, channels: args.keyDim, times: args.scale, padded: width,
                into: local + row * rowStride)
        }
        multiplyChannels(before, by: running, count: width)
        for token in 0..<first { multiplyChannels(key + token * rowStride, by: running, count: width) }
        for row in 0..<rows {
            takeAlong(layout, scratch, row: row, rows: rows, first: first)
        }
        first += rows
    }
    for row in 0..<count { scratch[layout.weights + row * rowStride + row] += args.skips[head] }
    for row in count..<(count + tileRows - 1) / tileRows * tileRows {
        for token in 0..<count { scratch[layout.weights + row * rowStride + token] = 0 }
    }
    copy(before, to: scratch + layout.stateFactors, count: width)
}

/// The decays of the channels of a head over a chunk. Those that fill up rows are 1.
@inline(never)
private func findChannelDecays(
    _ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, head: Int, start: Int, count: Int
) {
    var steps = args.steps
    steps.base += head * args.stepHeadStride * byteCount(steps.type)
    let decays = args.scratch.assumingMemoryBound(to: Float.self) + layout.channelDecays
    for token in 0..<count {
        let row = decays + token * rowStride
        stageRow(steps, start + token, channels: args.keyDim, times: 1, padded: layout.keyWidth, into: row)
        var channel = 0
        while channel < layout.keyWidth {
            store(exp(minimum(load(row + channel), splat(0))), row + channel)
            channel += laneCount
        }
    }
}

/// The weights of one key and the queries of its block from its own on: the key times the decays up to each of them. Leaves the key
/// times the decay to the block's end.
@inline(never)
private func takeAlong(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, row: Int, rows: Int, first: Int
) {
    let width = layout.keyWidth
    let key = scratch + layout.key + (first + row) * rowStride
    for other in row..<rows {
        let query = scratch + layout.blockQueries + other * rowStride
        let decay = scratch + layout.channelDecays + (first + other) * rowStride
        var sum = splat(0)
        var channel = 0
        while channel < width {
            var value = load(key + channel)
            if other > row {
                value = value * load(decay + channel)
                store(value, key + channel)
            }
            sum = multiplyAdd(value, load(query + channel), sum)
            channel += laneCount
        }
        scratch[layout.weights + (first + other) * rowStride + first + row] = laneSum(sum)
    }
}

/// The weights of the queries of a block and all keys before it, which are times the decay to the block's start.
@inline(never)
private func multiplyBlockPairs(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, row: Int, rows: Int
) {
    forEachPanel(vectors: row / laneCount) { token, width in
        transpose(
            scratch + layout.key + token * rowStride, stride: rowStride, rows: width * laneCount,
            columns: keyDim, times: 1, into: scratch + layout.keyPanel, destinationStride: width * laneCount)
        let target = scratch + layout.weights + row * rowStride + token
        switch width {
        case 1: multiplyBlockPairsOfOne(layout, scratch, keyDim: keyDim, rows: rows, into: target)
        case 2: multiplyBlockPairsOfTwo(layout, scratch, keyDim: keyDim, rows: rows, into: target)
        default: multiplyBlockPairsOfThree(layout, scratch, keyDim: keyDim, rows: rows, into: target)
        }
    }
}

@inline(never)
private func multiplyBlockPairsOfOne(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, rows: Int,
    into target: UnsafeMutablePointer<Float>
) {
    multiplyBlockPairs(layout, scratch, keyDim: keyDim, rows: rows, into: target, width: 1)
}

@inline(never)
private func multiplyBlockPairsOfTwo(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, rows: Int,
    into target: UnsafeMutablePointer<Float>
) {
    multiplyBlockPairs(layout, scratch, keyDim: keyDim, rows: rows, into: target, width: 2)
}

@inline(never)
private func multiplyBlockPairsOfThree(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, rows: Int,
    into target: UnsafeMutablePointer<Float>
) {
    multiplyBlockPairs(layout, scratch, keyDim: keyDim, rows: rows, into: target, width: 3)
}

@_transparent
private func multiplyBlockPairs(
    _ layout: LinearRecurrenceScratch, _ scratch: UnsafeMutablePointer<Float>, keyDim: Int, rows: Int,
    into target: UnsafeMutablePointer<Float>, width: Int
) {
    var row = 0
    while row < rows {
        var tile = zeroTile()
        accumulate(
            &tile,
            rowPointers(scratch + layout.blockQueries + row * rowStride, stride: rowStride, count: tileRows),
            step: 1, panel: scratch + layout.keyPanel, depth: keyDim, width: width)
        store(tile, target + row * rowStride, stride: rowStride, width: width)
        row += tileRows
    }
}

/// A decay, which is 0 below about 2⁻¹⁰⁰, as those of whole heads are.
@_transparent
private func flushed(_ decay: Vector) -> Vector { decay.replacing(with: splat(0), where: decay .< splat(0x1p-100)) }

/// x[n] ← x[n] · factors[n].
@_transparent
private func multiplyChannels(_ x: UnsafeMutablePointer<Float>, by factors: UnsafePointer<Float>, count: Int) {
    var channel = 0
    while channel < count {
        store(load(x + channel) * load(factors + channel), x + channel)
        channel += laneCount
    }
}

@_transparent
private func fill(_ x: UnsafeMutablePointer<Float>, _ value: Float, count: Int) {
    var channel = 0
    while channel < count {
        store(splat(value), x + channel)
        channel += laneCount
    }
}

@_transparent
private func copy(_ x: UnsafePointer<Float>, to y: UnsafeMutablePointer<Float>, count: Int) {
    var channel = 0
    while channel < count {
        store(load(x + channel), y + channel)
        channel += laneCount
    }
}

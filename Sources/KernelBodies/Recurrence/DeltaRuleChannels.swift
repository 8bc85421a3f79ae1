// The coefficients of a chunk of the delta rule whose decays differ from channel to channel of the key (Kimi Delta Attention).
//
//     A_ij = β_i Σ_c k_ic k_jc Π_(j < t ≤ i) α_tc        P_ij = Σ_c q_ic k_jc Π_(j < t ≤ i) α_tc
//
// A quotient of products of decays would overflow, so rows go by sub-blocks of eight. Between two sub-blocks the products part at
// the start of the later one: that of the later side runs from there, that of the earlier side up to there. Both are at most 1, and
// the sums are products of matrices. Inside a sub-block every pair has its running product. All are products of the α, never
// exponentials of differences, so that a decay of 0 forgets and nothing else.

import KernelInterface

/// Makes the coefficients of a head, and its keys and queries times their decays.
@inline(never)
func weighDeltaChannels(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, token: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    for row in 0..<count {
        scratch[layout.beta + row] = element(args.beta, token + row, head)
        scratch[layout.gain + row] = -scratch[layout.beta + row]
        scratch[layout.entry + row] = 1
        scratch[layout.exit + row] = 1
    }
    stageFactors(args, layout, head: head, token: token, count: count)
    weighFromStart(layout, scratch, count: count)
    weighToEnd(layout, scratch, count: count)
    var first = 0
    while first < count {
        let rows = minimum(DeltaRuleScratch.subBlock, count - first)
        weighSubBlock(layout, scratch, first: first, rows: rows)
        if first > 0 { multiplySubBlock(args, layout, first: first, rows: rows) }
        multiplyInside(layout, scratch, first: first, rows: rows)
        for row in first..<first + rows {
            let coefficients = scratch + layout.solving + row * layout.stride
            let factor = splat(scratch[layout.gain + row])
            var column = 0
            while column <= row {
                store(load(coefficients + column) * factor, coefficients + column)
                column += laneCount
            }
        }
        if first + rows < count { appendSubBlock(args, layout, first: first, rows: rows) }
        first += rows
    }
}

/// A product of decays, with 0 for what is so small that products with it would be subnormal numbers, which take a hundred times
/// as long. NaN stays.
@_transparent
private func flushed(_ decay: Vector) -> Vector { decay.replacing(with: splat(0), where: decay .< splat(1e-30)) }

/// α of every token and channel.
@inline(never)
private func stageFactors(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, token: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    var operand = args.logDecay
    operand.base += head * args.logDecayHeadStride * byteCount(operand.type)
    for row in 0..<count {
        let target = scratch + layout.factors + row * layout.keyStride
        stageRow(operand, token + row, channels: args.keyDim, times: 1, padded: layout.keyStride, into: target)
        var channel = 0
        while channel < layout.keyStride {
            store(exp(boundedLogDecay(load(target + channel))), target + channel)
            channel += laneCount
        }
    }
}

/// Keys and queries times the decay from the start of the chunk to their token.
@inline(never)
private func weighFromStart(_ layout: DeltaRuleScratch, _ scratch: UnsafeMutablePointer<Float>, count: Int) {
    var channel = 0
    while channel < layout.keyStride {
        var decay = splat(1)
        for row in 0..<count {
            let index = row * layout.keyStride + channel
            decay = flushed(decay * load(scratch + layout.factors + index))
            store(load(scratch + layout.key + index) * decay, scratch + layout.enteringKey + index)
            store(load(scratch + layout.query + index) * decay, scratch + layout.enteringQuery + index)
        }
        store(decay, scratch + layout.lastDecay + channel)
        channel += laneCount
    }
}

/// Keys times the decay from their token to the end of the chunk.
@inline(never)
private func weighToEnd(_ layout: DeltaRuleScratch, _ scratch: UnsafeMutablePointer<Float>, count: Int) {
    var channel = 0
    while channel < layout.keyStride {
        var decay = splat(1)
        var row = count - 1
        while row >= 0 {
            let index = row * layout.keyStride + channel
            store(load(scratch + layout.key + index) * decay, scratch + layout.leavingKey + index)
            decay = flushed(decay * load(scratch + layout.factors + index))
            row -= 1
        }
        channel += laneCount
    }
}

/// Keys and queries of a sub-block times the decay from its start to their token, and the decay of the whole sub-block.
@inline(never)
private func weighSubBlock(_ layout: DeltaRuleScratch, _ scratch: UnsafeMutablePointer<Float>, first: Int, rows: Int) {
    let size = DeltaRuleScratch.subBlock * layout.keyStride
    let keys = scratch + layout.subBlocks
    var channel = 0
    while channel < layout.keyStride {
        var decay = splat(1)
        for row in 0..<rows {
            let index = (first + row) * layout.keyStride + channel
            let local = row * layout.keyStride + channel
            decay = flushed(decay * load(scratch + layout.factors + index))
            store(load(scratch + layout.key + index) * decay, keys + local)
            store(load(scratch + layout.query + index) * decay, keys + size + local)
        }
        store(decay, keys + 2 * size + channel)
        channel += laneCount
    }
}

/// The products of a sub-block with the keys of all earlier ones.
@inline(never)
private func multiplySubBlock(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, first: Int, rows: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let size = DeltaRuleScratch.subBlock * layout.keyStride
    var row = 0
    while row < rows {
        let count = minimum(tileRows, rows - row)
        let keys = scratch + layout.subBlocks + row * layout.keyStride
        let target = (first + row) * layout.stride
        var column = 0
        while column < first {
            let panel = UnsafePointer(scratch + layout.transposedKey + column * args.keyDim)
            var tile = zeroTile()
            accumulate(
                &tile, rowPointers(keys, stride: layout.keyStride, count: count), step: 1, panel: panel, depth: args.keyDim,
                width: 2)
            store(tile, scratch + layout.solving + target + column, stride: layout.stride, width: 2)
            tile = zeroTile()
            accumulate(
                &tile, rowPointers(keys + size, stride: layout.keyStride, count: count), step: 1, panel: panel,
                depth: args.keyDim, width: 2)
            store(tile, scratch + layout.answering + target + column, stride: layout.stride, width: 2)
            column += 2 * laneCount
        }
        row += tileRows
    }
}

/// The products of the tokens of a sub-block with each other. The element of a token and itself is that of P only.
@inline(never)
private func multiplyInside(_ layout: DeltaRuleScratch, _ scratch: UnsafeMutablePointer<Float>, first: Int, rows: Int) {
    // The key of a token, times the decay up to the row that it meets.
    let decayed = scratch + layout.subBlocks
    for column in first..<first + rows {
        var channel = 0
        while channel < layout.keyStride {
            store(load(scratch + layout.key + column * layout.keyStride + channel), decayed + channel)
            channel += laneCount
        }
        for row in column..<first + rows {
            let index = row * layout.keyStride
            var (keySum, querySum) = (splat(0), splat(0))
            channel = 0
            while channel < layout.keyStride {
                var key = load(decayed + channel)
                if row > column {
                    key = key * load(scratch + layout.factors + index + channel)
                    store(key, decayed + channel)
                }
                keySum = multiplyAdd(load(scratch + layout.key + index + channel), key, keySum)
                querySum = multiplyAdd(load(scratch + layout.query + index + channel), key, querySum)
                channel += laneCount
            }
            scratch[layout.solving + row * layout.stride + column] = laneSum(keySum)
            scratch[layout.answering + row * layout.stride + column] = laneSum(querySum)
        }
    }
}

/// Moves the keys of earlier sub-blocks to the end of this one, and adds those of this one: what the next sub-block meets.
@inline(never)
private func appendSubBlock(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, first: Int, rows: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let panelColumns = 2 * laneCount
    let keys = scratch + layout.subBlocks
    let wholeDecay = keys + 2 * DeltaRuleScratch.subBlock * layout.keyStride
    var column = 0
    while column < first {
        let panel = scratch + layout.transposedKey + column * args.keyDim
        for channel in 0..<args.keyDim {
            let factor = splat(wholeDecay[channel])
            let target = panel + channel * panelColumns
            store(load(target) * factor, target)
            store(load(target + laneCount) * factor, target + laneCount)
        }
        column += panelColumns
    }
    var channel = 0
    while channel < layout.keyStride {
        var decay = splat(1)
        var row = rows - 1
        while row >= 0 {
            let index = (first + row) * layout.keyStride + channel
            store(load(scratch + layout.key + index) * decay, keys + row * layout.keyStride + channel)
            decay = flushed(decay * load(scratch + layout.factors + index))
            row -= 1
        }
        channel += laneCount
    }
    let start = first / panelColumns * panelColumns
    let panel = scratch + layout.transposedKey + start * args.keyDim
    if start == first {
        // What the scratch holds must not be multiplied by decays again and again, until it is subnormal.
        for index in 0..<args.keyDim * panelColumns { panel[index] = 0 }
    }
    transpose(
        keys, stride: layout.keyStride, rows: rows, columns: args.keyDim, times: 1, into: panel + (first - start),
        destinationStride: panelColumns)
}

// The tokens of a chunk of the delta rule: normalised queries and keys, their products, and decays per token. See
// ChunkDeltaRule.swift for what becomes of them.

import KernelInterface

/// Copies rows of queries or keys to floats, divides them by √(Σx² + ε) if they are normalised, and multiplies them by `scale`.
@inline(never)
func stageDeltaRows(
    _ operand: RowOperand, _ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, token: Int, count: Int, scale: Float,
    into rows: UnsafeMutablePointer<Float>
) {
    for row in 0..<count {
        let target = rows + row * layout.keyStride
        stageRow(
            operand, token + row, channels: args.keyDim, times: args.normalizes ? 1 : scale, padded: layout.keyStride,
            into: target)
        if !args.normalizes { continue }
        var squares = splat(0)
        var channel = 0
        while channel < layout.keyStride {
            let x = load(target + channel)
            squares = multiplyAdd(x, x, squares)
            channel += laneCount
        }
        let factors = splat(scale / (laneSum(squares) + args.epsilon).squareRoot())
        channel = 0
        while channel < layout.keyStride {
            store(load(target + channel) * factors, target + channel)
            channel += laneCount
        }
    }
}

/// ln α of a token: at most 0, and at least −128, whose exponential is 0 like that of everything below it. NaN stays.
@_transparent
func boundedLogDecay(_ value: Float) -> Float { value > 0 ? 0 : value < -128 ? -128 : value }

/// The same, lane by lane.
@_transparent
func boundedLogDecay(_ value: Vector) -> Vector { maximum(splat(-128), minimum(value, splat(0))) }

/// The lower triangles of K·Kᵀ and Q·Kᵀ, which all value heads of a key head share.
@inline(never)
func multiplyDeltaRows(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let panelColumns = 2 * laneCount
    var first = 0
    while first < count {
        let columns = minimum(panelColumns, count - first)
        transpose(
            scratch + layout.key + first * layout.keyStride, stride: layout.keyStride, rows: columns, columns: args.keyDim,
            times: 1, into: scratch + layout.transposedKey + first * args.keyDim, destinationStride: panelColumns)
        first += panelColumns
    }
    multiplyTriangle(args, layout, count: count, scratch + layout.key, into: scratch + layout.keyProducts)
    multiplyTriangle(args, layout, count: count, scratch + layout.query, into: scratch + layout.queryProducts)
}

@inline(never)
private func multiplyTriangle(
    _ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, count: Int, _ rows: UnsafePointer<Float>,
    into products: UnsafeMutablePointer<Float>
) {
    let panels = UnsafePointer(args.scratch.assumingMemoryBound(to: Float.self) + layout.transposedKey)
    var row = 0
    while row < count {
        let left = rowPointers(
            rows + row * layout.keyStride, stride: layout.keyStride, count: minimum(tileRows, count - row))
        var column = 0
        while column < row + tileRows {
            var tile = zeroTile()
            accumulate(&tile, left, step: 1, panel: panels + column * args.keyDim, depth: args.keyDim, width: 2)
            store(tile, products + row * layout.stride + column, stride: layout.stride, width: 2)
            column += 2 * laneCount
        }
        row += tileRows
    }
}

/// Makes the coefficients of a head whose decays are one per token, or 1.
///
/// G is kept as a sum of two floats, so that the difference of two of its elements is as exact as the decays between them, whatever
/// came before. Elements above the diagonal are computed, too, and not read.
@inline(never)
func weighDeltaTokens(_ args: DeltaRuleArguments, _ layout: DeltaRuleScratch, head: Int, token: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let (beta, gain) = (scratch + layout.beta, scratch + layout.gain)
    let (entry, exit) = (scratch + layout.entry, scratch + layout.exit)
    let (high, low) = (scratch + layout.cumulative, scratch + layout.cumulativeRest)
    var sum = 0.0
    for row in 0..<count {
        beta[row] = element(args.beta, token + row, head)
        if args.decay == .perToken { sum += Double(boundedLogDecay(element(args.logDecay, token + row, head))) }
        high[row] = Float(sum)
        low[row] = Float(sum - Double(high[row]))
    }
    let (lastHigh, lastLow) = (high[count - 1], low[count - 1])
    var row = 0
    while row < count {
        let (h, l) = (load(high + row), load(low + row))
        let e = exp(h)
        store(e, entry + row)
        store(splat(0) - load(beta + row) * e, gain + row)
        store(exp(minimum((splat(lastHigh) - h) + (splat(lastLow) - l), splat(0))), exit + row)
        row += laneCount
    }
    let last = splat(entry[count - 1])
    var channel = 0
    while channel < layout.stateRows {
        store(last, scratch + layout.lastDecay + channel)
        channel += laneCount
    }
    for row in 0..<count {
        let offset = row * layout.stride
        let (h, l) = (splat(high[row]), splat(low[row]))
        let negativeBeta = splat(-beta[row])
        var column = 0
        while column <= row {
            let difference = (h - load(high + column)) + (l - load(low + column))
            let weight = exp(minimum(difference, splat(0)))
            let index = offset + column
            store(load(scratch + layout.queryProducts + index) * weight, scratch + layout.answering + index)
            store(load(scratch + layout.keyProducts + index) * (weight * negativeBeta), scratch + layout.solving + index)
            column += laneCount
        }
    }
}

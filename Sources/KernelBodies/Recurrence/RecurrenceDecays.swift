// Decays of heads: step sizes, sums of logarithms, and weights of pairs of tokens.
//
// A sum of logarithms over a chunk may be much larger than one of its terms, and a decay between two tokens is the exponential of the
// difference of two sums. Sums are therefore kept as a high and a low part, of 48 bits together: the difference of the high parts is
// exact where they are near each other. Terms are cut at −1000, so that a sum stays finite after a decay of 0.

import KernelInterface

/// Finds the decays of a head over a chunk, and the vectors of them. Lanes past the chunk are zero.
@inline(never)
func findDecays(
    _ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, head: Int, start: Int, count: Int
) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let (sizes, high, low) = (scratch + layout.stepSizes, scratch + layout.high, scratch + layout.low)
    let (fromStart, toEnd) = (scratch + layout.fromStart, scratch + layout.toEnd)
    let vectors = (count + laneCount - 1) / laneCount
    let least = splat(LinearRecurrenceScratch.leastLogDecay)
    for token in count..<layout.tokens {
        sizes[token] = 0
        fromStart[token] = 0
        high[token] = 0
    }
    switch args.decay {
    case .perToken, .discretized: for token in 0..<count { high[token] = element(args.steps, start + token, head) }
    case .perHead, .perChannel: for token in 0..<count { high[token] = args.rates[head] }
    }
    if args.decay == .discretized {
        let (bias, rate) = (splat(args.biases[head]), splat(args.rates[head]))
        let (smallest, largest) = (splat(args.leastStep), splat(args.largestStep))
        for x in 0..<vectors {
            let size = minimum(maximum(smallest, softplus(load(high + x * laneCount) + bias)), largest)
            store(size, sizes + x * laneCount)
            store(maximum(least, size * rate), high + x * laneCount)
        }
        for token in count..<vectors * laneCount { sizes[token] = 0 }
    } else {
        for token in 0..<count { sizes[token] = 1 }
        for x in 0..<vectors {
            store(maximum(least, minimum(load(high + x * laneCount), splat(0))), high + x * laneCount)
        }
    }
    var sum = 0.0
    for token in 0..<count {
        sum += Double(high[token])
        high[token] = Float(sum)
        low[token] = Float(sum - Double(high[token]))
    }
    for token in count..<layout.tokens {
        high[token] = 0
        low[token] = 0
    }
    let (lastHigh, lastLow) = (splat(high[count - 1]), splat(low[count - 1]))
    for x in 0..<vectors {
        let (h, l) = (load(high + x * laneCount), load(low + x * laneCount))
        store(pairDecay(h + l), fromStart + x * laneCount)
        store(pairDecay((lastHigh - h) + (lastLow - l)) * load(sizes + x * laneCount), toEnd + x * laneCount)
    }
    let whole = splat(fromStart[count - 1])
    var channel = 0
    while channel < layout.keyWidth {
        store(whole, scratch + layout.stateFactors + channel)
        channel += laneCount
    }
}

/// weights[i][j] = products[i][j] · D(j → i) · Δ[j] for j ≤ i, and the skip of the head added for j = i. What lies beyond the
/// diagonal, up to whole vectors, has no meaning.
@inline(never)
func weighPairs(_ args: LinearRecurrenceArguments, _ layout: LinearRecurrenceScratch, head: Int, count: Int) {
    let scratch = args.scratch.assumingMemoryBound(to: Float.self)
    let (sizes, high, low) = (scratch + layout.stepSizes, scratch + layout.high, scratch + layout.low)
    let skip = args.skips[head]
    for row in 0..<count {
        let products = scratch + layout.products + row * rowStride
        let weights = scratch + layout.weights + row * rowStride
        let (rowHigh, rowLow) = (splat(high[row]), splat(low[row]))
        var token = 0
        while token <= row {
            let decay = pairDecay((rowHigh - load(high + token)) + (rowLow - load(low + token)))
            store(load(products + token) * (decay * load(sizes + token)), weights + token)
            token += laneCount
        }
        weights[row] += skip
    }
    // Rows that fill up the last tile are multiplied, too.
    for row in count..<(count + tileRows - 1) / tileRows * tileRows {
        let weights = scratch + layout.weights + row * rowStride
        for token in 0..<count { weights[token] = 0 }
    }
}

/// The decay with a logarithm, which is 0 where that is below `leastPairLogDecay`. Lanes past the diagonal have positive logarithms,
/// and no meaning.
@_transparent
func pairDecay(_ logarithm: Vector) -> Vector {
    let least = splat(LinearRecurrenceScratch.leastPairLogDecay)
    return exp(minimum(logarithm, splat(0)).replacing(with: splat(-100), where: logarithm .< least))
}

/// log(1 + eˣ) = max(x, 0) + log(1 + e^−|x|), with a relative error below 6e-7 + 2e-8·|x|; 0 below −87.7, NaN for NaN.
///
/// With u = e^−|x| in 0…1 and s = u/(2 + u), log(1 + u) = 2·artanh s = 2s·(1 + s²/3 + s⁴/5 + …). s² is at most 1/9, so that the first
/// term left out, s¹⁶/17, is below 2e-9. Beyond x = 17 the second part is below half a unit in the last place of the first.
@_transparent
func softplus(_ x: Vector) -> Vector {
    let u = exp(splat(0) - magnitude(x))
    let s = u / (splat(2) + u)
    let t = s * s
    var p = splat(1 / 15)
    p = multiplyAdd(p, t, splat(1 / 13))
    p = multiplyAdd(p, t, splat(1 / 11))
    p = multiplyAdd(p, t, splat(1 / 9))
    p = multiplyAdd(p, t, splat(1 / 7))
    p = multiplyAdd(p, t, splat(1 / 5))
    p = multiplyAdd(p, t, splat(1 / 3))
    p = multiplyAdd(p, t, splat(1))
    return multiplyAdd(s + s, p, maximum(splat(0), x))
}

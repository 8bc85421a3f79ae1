// What attention does to scores and values on request or in rare cases, apart from the hot loop: soft cap, ALiBi slope and bias, the
// test for negligible steps, and values that are not finite. Each is called once per panel and step at most.

import KernelInterface

/// Whether Q is packed with softmaxScale/cap, so that products are the arguments of tanh.
///
/// Of a cap far from 1 the quotient would lose digits to underflow, or its products would overflow where scores do not.
@_transparent
func foldsSoftCap(_ cap: Float) -> Bool { cap > 0x1p-24 && cap < 0x1p24 }

/// Soft cap, ALiBi slope and bias, in that order. Keys are adjacent from `firstKey` on, or at `positions`.
@inline(never)
func adjustScores(
    _ args: AttentionArguments, _ scores: UnsafeMutablePointer<Float>, row: Int, width: Int, firstKey: Int,
    positions: UnsafePointer<Int32>?, count: Int
) {
    let lanes = width * laneCount
    if args.logitsSoftCap > 0 {
        let cap = splat(args.logitsSoftCap)
        if foldsSoftCap(args.logitsSoftCap) {
            for x in 0..<count * width { store(tanh(load(scores + x * laneCount)) * cap, scores + x * laneCount) }
        } else {
            for x in 0..<count * width { capScores(scores + x * laneCount, cap: cap) }
        }
    }
    if args.aliBiSlope != 0 {
        for key in 0..<count {
            let position = positions == nil ? firstKey + key : Int(positions![key])
            for lane in 0..<lanes {
                let distance = Float(position - (row + lane) - args.aliBiOffset)
                let term = args.aliBiIsSymmetric ? -absolute(distance) : distance
                scores[key * lanes + lane] += args.aliBiSlope * term
            }
        }
    }
    if let bias = args.bias {
        for lane in 0..<minimum(lanes, args.queryRows - row) {
            let line = bias + (row + lane) * args.biasStride + firstKey
            for key in 0..<count {
                let sum = scores[key * lanes + lane] + line[key]
                // Selected, so that a NaN key does not pass a bias that hides it.
                scores[key * lanes + lane] = line[key] == -.infinity ? -.infinity : sum
            }
        }
    }
}

/// cap·tanh(s/cap) for caps of any size. Below a quotient of 2⁻¹² that is s to a third of a rounding, and s itself is exact also where
/// the quotient has lost its digits.
@_transparent
func capScores(_ scores: UnsafeMutablePointer<Float>, cap: Vector) {
    let s = load(scores)
    let quotient = s / cap
    store((tanh(quotient) * cap).replacing(with: s, where: quotient * quotient .< splat(0x1p-24)), scores)
}

@_transparent
private func absolute(_ x: Float) -> Float { x < 0 ? -x : x }

/// Whether any of adjacent or strided rows has an infinite or NaN element: only those make 0·x differ from 0.
@inline(never)
func holdsNonFinite(_ values: UnsafePointer<Float>, stride: Int, count: Int, channels: Int) -> Bool {
    var (a, b) = (splat(0), splat(0))
    var last: Float = 0
    let whole = channels / laneCount * laneCount
    for key in 0..<count {
        let line = values + key * stride
        var x = 0
        while x + 2 * laneCount <= whole {
            a = multiplyAdd(load(line + x), splat(0), a)
            b = multiplyAdd(load(line + x + laneCount), splat(0), b)
            x += 2 * laneCount
        }
        if x < whole { a = multiplyAdd(load(line + x), splat(0), a) }
        for channel in whole..<channels { last += line[channel] * 0 }
    }
    let sums = a + b
    for lane in 0..<laneCount { last += sums[lane] }
    return last != 0
}

/// Whether every score of the step lies `below` or more under the running maximum of its row, NaN counting as no. e^−`below` then
/// bounds every probability of the step, relative to the largest of its row. Lanes past `rows` are padding.
@inline(never)
func isNegligible(
    _ scores: UnsafeMutablePointer<Float>, count: Int, maxima: UnsafePointer<Float>, rows: Int, below: Float, width: Int
) -> Bool {
    let lanes = width * laneCount
    // Rows past the step are free once it is scored.
    let exceeding = scores + AttentionScratch.keyBlock * lanes
    var x = 0
    while x < lanes {
        // Differences, because m − `below` is m itself at large m. A row that has seen nothing has m = −∞; less the lowest
        // finite number, hidden scores stay −∞ and others exceed.
        let m = maximum(splat(-.greatestFiniteMagnitude), load(maxima + x))
        var kept = splat(1)
        for key in 0..<count {
            kept = splat(0).replacing(with: kept, where: load(scores + key * lanes + x) - m .<= splat(-below))
        }
        store(kept, exceeding + x)
        x += laneCount
    }
    for lane in 0..<rows where exceeding[lane] == 0 { return false }
    return true
}

/// Adjacent rows, with zeros for the non-finite values of ragged keys.
@inline(never)
func copyFinite(
    _ values: UnsafePointer<Float>, stride: Int, count: Int, channels: Int, _ ends: (Int, Int, Int, Int),
    into copy: UnsafeMutablePointer<Float>
) {
    for key in 0..<count {
        let isRagged = key < ends.1 || key >= ends.2
        for channel in 0..<channels {
            let value = values[key * stride + channel]
            copy[key * channels + channel] = isRagged && value * 0 != 0 ? 0 : value
        }
    }
}

/// Adds p·v for the non-finite values of one key to the rows that see it, by position and by bias.
@inline(never)
func addUnhiddenNonFinite(
    _ args: AttentionArguments, _ values: UnsafePointer<Float>, _ probabilities: UnsafePointer<Float>,
    _ accumulator: UnsafeMutablePointer<Float>, row: Int, key: Int, width: Int
) {
    let lanes = width * laneCount
    for lane in 0..<minimum(lanes, args.queryRows - row) {
        let query = row + lane
        let isVisible = key >= query + args.visibleFrom && key < query + args.visibleTo
        if !isVisible || args.bias![query * args.biasStride + key] == -.infinity { continue }
        for channel in 0..<args.valueDim where values[channel] * 0 != 0 {
            accumulator[channel * lanes + lane] += values[channel] * probabilities[lane]
        }
    }
}

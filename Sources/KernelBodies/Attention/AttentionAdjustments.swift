// The optional and rare parts of attention, apart from the hot loop: soft cap, ALiBi slope and bias of scores, the test for
// negligible steps, and values that are not finite. Each function is called at most once per panel and step, or per ragged key.

import KernelInterface

/// Whether Q is packed times softmaxScale/cap, so that the products are the arguments of tanh.
///
/// With a cap far from 1, the quotient would lose digits to underflow, or the products would overflow where scores do not.
@_transparent
func foldsSoftCap(_ cap: Float) -> Bool { cap > 0x1p-24 && cap < 0x1p24 }

/// Applies soft cap, ALiBi slope and bias, in that order. Keys are adjacent from `firstKey` on, or at `positions`.
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
                // A NaN score plus −∞ would stay NaN, so a hidden key is selected and not added.
                scores[key * lanes + lane] = line[key] == -.infinity ? -.infinity : sum
            }
        }
    }
}

/// cap·tanh(s/cap) for caps of any size. For quotients below 2⁻¹² this is s to within a third of a rounding, and s is used.
/// That is exact even where the quotient has lost digits to underflow.
@_transparent
func capScores(_ scores: UnsafeMutablePointer<Float>, cap: Vector) {
    let s = load(scores)
    let quotient = s / cap
    store((tanh(quotient) * cap).replacing(with: s, where: quotient * quotient .< splat(0x1p-24)), scores)
}

@_transparent
private func absolute(_ x: Float) -> Float { x < 0 ? -x : x }

/// The least and the largest lower limit of some rows, and the least and the largest upper one.
@inline(never)
func panelLimits(_ limits: UnsafePointer<Int32>, stride: Int, rows first: Int, through last: Int) -> (Int, Int, Int, Int) {
    var (leastFrom, largestFrom) = (limits[first], limits[first])
    var (leastTo, largestTo) = (limits[stride + first], limits[stride + first])
    for row in first...last {
        let (from, to) = (limits[row], limits[stride + row])
        leastFrom = from < leastFrom ? from : leastFrom
        largestFrom = from > largestFrom ? from : largestFrom
        leastTo = to < leastTo ? to : leastTo
        largestTo = to > largestTo ? to : largestTo
    }
    return (Int(leastFrom), Int(largestFrom), Int(leastTo), Int(largestTo))
}

/// Whether any element of the rows is infinite or NaN. Only for those does 0·x differ from 0.
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

/// Whether every score of the step is at least `below` under the running maximum of its row; NaN is not. Then every probability
/// of the step is at most e^−`below` of the largest of its row. Lanes from `rows` on are padding.
@inline(never)
func isNegligible(
    _ scores: UnsafeMutablePointer<Float>, count: Int, maxima: UnsafePointer<Float>, rows: Int, below: Float, width: Int
) -> Bool {
    let lanes = width * laneCount
    // The rows past the step are unused once it is scored.
    let exceeding = scores + AttentionScratch.keyBlock * lanes
    var x = 0
    while x < lanes {
        // Differences are compared, because m − `below` is m itself for large m. A row that has seen no key has m = −∞; the
        // lowest finite number in its place keeps hidden scores at −∞ and lets all others exceed.
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

/// Copies rows to adjacent ones, with zeros for the non-finite values of ragged keys.
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

/// Adds p·v for the non-finite values of one key, in the rows that see it by position and by bias.
@inline(never)
func addUnhiddenNonFinite(
    _ args: AttentionArguments, _ values: UnsafePointer<Float>, _ probabilities: UnsafePointer<Float>,
    _ accumulator: UnsafeMutablePointer<Float>, row: Int, key: Int, width: Int
) {
    let lanes = width * laneCount
    for lane in 0..<minimum(lanes, args.queryRows - row) {
        let query = row + lane
        var isVisible = key >= query + args.visibleFrom && key < query + args.visibleTo
        if let limits = args.limits {
            isVisible = key >= Int(limits[query]) && key < Int(limits[args.limitStride + query])
        }
        if !isVisible || args.bias![query * args.biasStride + key] == -.infinity { continue }
        for channel in 0..<args.valueDim where values[channel] * 0 != 0 {
            accumulator[channel * lanes + lane] += values[channel] * probabilities[lane]
        }
    }
}

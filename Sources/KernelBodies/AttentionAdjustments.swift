// What attention does to scores and values on request or in rare cases, apart from the hot loop: soft cap, ALiBi slope and bias, the
// test for negligible steps, and finite copies of values. Each is called once per panel and step at most.

import KernelInterface

/// Soft cap, ALiBi slope and bias, in that order.
@inline(never)
func adjustScores(
    _ args: AttentionArguments, _ scores: UnsafeMutablePointer<Float>, row: Int, width: Int, firstKey: Int, count: Int
) {
    let lanes = width * laneCount
    if args.logitsSoftCap > 0 {  // Q was packed with softmaxScale/cap
        let cap = splat(args.logitsSoftCap)
        for x in 0..<count * width { store(tanh(load(scores + x * laneCount)) * cap, scores + x * laneCount) }
    }
    if args.aliBiSlope != 0 {
        for key in 0..<count {
            for lane in 0..<lanes {
                let distance = Float(firstKey + key - (row + lane) - args.aliBiOffset)
                scores[key * lanes + lane] += args.aliBiSlope * distance
            }
        }
    }
    if let bias = args.bias {
        for lane in 0..<minimum(lanes, args.queryRows - row) {
            let line = bias + (row + lane) * args.biasStride + firstKey
            for key in 0..<count { scores[key * lanes + lane] += line[key] }
        }
    }
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

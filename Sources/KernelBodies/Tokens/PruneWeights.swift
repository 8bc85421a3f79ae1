// The second step of Twilight (arXiv 2502.02770, algorithm 1): keeps those of some tokens whose softmax weights add up to p.
//
//     w = softmax(scores)
//     low = 0, high = max w or w of token 0
//     repeat  mid = (low + high)/2
//             a = min{w : w > low}, at most high          b = max{w : w ≤ high}, at least low
//             Σ{w : w > mid} ≥ p ?  low = mid  :  high = min(mid, b)
//     until   b − a ≤ epsilon                             a and b from before the update
//     kept = {i : w_i > low}
//
// The steps and the threshold are those of `TopP.bisection`, unless a sum is within its rounding of p. Two things make them
// fast, and nothing is sorted. One pass over the weights computes the sum above mid and the weights next to mid on both sides,
// which are the next a or the next b. And most rounds happen above a cut: the weights above it are copied once, and rounds with
// mid above the cut read only the copy. Only flat rows have rounds below it, which read all weights.
//
// Sums are in single precision over blocks of at most 512 weights, in four chains of vectors, and blocks are added in double
// precision. A weight passes through 512/(4·lanes) + 2 + log₂ lanes roundings of 2⁻²⁴ whatever the length of the row: 36 with
// four lanes, 21 with eight and 14 with sixteen. Chains and blocks depend only on the length.

public import KernelInterface

/// Weights summed in single precision. The sum across lanes that ends a block costs as much as four of its eight or more steps.
@_transparent
private var blockFloats: Int { 512 }

extension Kernels {
    /// See `PruneArguments`.
    public static func pruneWeights(_ arguments: UnsafePointer<PruneArguments>) {
        let args = arguments.pointee
        let padded = PruneScratch.padded(args.count)
        let words = padded / 64
        let list = args.scratch.assumingMemoryBound(to: Float.self)
        for word in 0..<words { args.kept[word] = 0 }
        for row in 0..<args.rows {
            let weights = args.scores + row * args.scoreStride
            let kept = args.kept + row * args.keptStride
            if args.keptStride != 0 && row > 0 { for word in 0..<words { kept[word] = 0 } }
            for x in args.count..<padded { weights[x] = -.infinity }

            let total = exponentiate(weights, padded, largest(of: weights, padded))
            if total == 0 {
                (args.thresholds[row], args.masses[row]) = (0, 0)
                continue
            }
            if !(total < .infinity) {
                markUnordered(weights, args.count, kept)
                (args.thresholds[row], args.masses[row]) = (.nan, .nan)
                continue
            }
            let found = bisect(args, weights, padded, factor: Float(1 / total), list: list)
            mark(weights, padded, above: found.threshold, kept)
            (args.thresholds[row], args.masses[row]) = found
        }
    }
}

// MARK: - Softmax

/// The largest score, ignoring NaN.
@inline(never)
private func largest(of scores: UnsafePointer<Float>, _ count: Int) -> Float {
    var (a, b, c, d) = (splat(-.infinity), splat(-.infinity), splat(-.infinity), splat(-.infinity))
    var x = 0
    while x < count {
        a = maximum(load(scores + x), a)
        b = maximum(load(scores + x + laneCount), b)
        c = maximum(load(scores + x + 2 * laneCount), c)
        d = maximum(load(scores + x + 3 * laneCount), d)
        x += 4 * laneCount
    }
    return largestLane(maximum(maximum(a, b), maximum(c, d)))
}

@_transparent
private func largestLane(_ value: Vector) -> Float {
    var result = value[0]
    for lane in 1..<laneCount { result = value[lane] > result ? value[lane] : result }
    return result
}

@_transparent
private func smallestLane(_ value: Vector) -> Float {
    var result = value[0]
    for lane in 1..<laneCount { result = value[lane] < result ? value[lane] : result }
    return result
}

/// Replaces scores by e^(scores − top) and returns their sum, which is NaN when a score is NaN or +∞.
///
/// From a row without a finite score nothing is subtracted, so that hidden tokens keep a weight of 0.
@inline(never)
private func exponentiate(_ scores: UnsafeMutablePointer<Float>, _ count: Int, _ top: Float) -> Double {
    let shift = splat(top == -.infinity ? 0 : top)
    var sum = 0.0
    var x = 0
    while x < count {
        let end = minimum(count, x + blockFloats)
        var (a, b, c, d) = (splat(0), splat(0), splat(0), splat(0))
        while x < end {
            let p = scores + x
            let (e, f) = (exp(load(p) - shift), exp(load(p + laneCount) - shift))
            let (g, h) = (exp(load(p + 2 * laneCount) - shift), exp(load(p + 3 * laneCount) - shift))
            store(e, p)
            store(f, p + laneCount)
            store(g, p + 2 * laneCount)
            store(h, p + 3 * laneCount)
            a += e
            b += f
            c += g
            d += h
            x += 4 * laneCount
        }
        sum += Double(laneSum((a + b) + (c + d)))
    }
    return sum
}

// MARK: - Bisection

/// Scales the weights by `factor`, and finds the threshold and the mass above it.
@_transparent
private func bisect(
    _ args: PruneArguments, _ weights: UnsafeMutablePointer<Float>, _ padded: Int, factor: Float,
    list: UnsafeMutablePointer<Float>
) -> (threshold: Float, mass: Float) {
    // The search never goes far below (1 − p)/n: the weights up to there add up to at most 1 − p, so that the mass above is at
    // least p. Few weights of a typical row are above four times that bound, because most are far below their mean, and only
    // nearly flat rows search below it.
    let cut = 4 * (1 - args.topP) / Float(args.count)
    let (listed, least, most) = normalise(weights, padded, factor: factor, cut: cut, list: list)
    var low: Float = 0
    var high: Float = 0
    if args.startsAtMaximum {
        high = largest(of: weights, padded)
    } else if args.first >= 0 {
        high = weights[args.first]
    }
    // min{w : w > low} and max{w : w ≤ high}, before they are limited to high and low.
    var (aboveLow, belowHigh) = (least, high)
    while true {
        let middle = low / 2 + high / 2
        let isListed = middle > cut
        let part = split(isListed ? list : weights, isListed ? listed : padded, at: middle, below: isListed ? most : 0)
        let a = aboveLow < high ? aboveLow : high
        let b = belowHigh > low ? belowHigh : low
        if Float(part.sum) >= args.topP {
            low = middle
            aboveLow = part.above
        } else if b < middle {
            high = b
            belowHigh = b
        } else {
            high = middle
            belowHigh = part.below
        }
        if b - a <= args.epsilon { break }
    }
    let isListed = low > cut
    return (low, Float(split(isListed ? list : weights, isListed ? listed : padded, at: low, below: 0).sum))
}

/// Scales the weights and copies those above `cut` to the list, padded with zeros to whole steps. Returns the list's padded
/// length, the smallest weight above 0 (+∞ for none) and the largest one that is not copied.
@inline(never)
private func normalise(
    _ weights: UnsafeMutablePointer<Float>, _ count: Int, factor: Float, cut: Float, list: UnsafeMutablePointer<Float>
) -> (listed: Int, least: Float, most: Float) {
    let (scale, limit, zero) = (splat(factor), splat(cut), splat(0))
    var (least, most) = (splat(.infinity), zero)
    var listed = 0
    var x = 0
    while x < count {
        let w = load(weights + x) * scale
        store(w, weights + x)
        least = minimum(least, w.replacing(with: .infinity, where: w .<= zero))
        most = maximum(w.replacing(with: 0, where: w .> limit), most)
        var bits = signBits(limit - w)
        while bits != 0 {
            list[listed] = weights[x + bits.trailingZeroBitCount]
            listed += 1
            bits &= bits - 1
        }
        x += laneCount
    }
    let padded = (listed + 63) / 64 * 64
    for i in listed..<padded { list[i] = 0 }
    return (padded, smallestLane(least), largestLane(most))
}

/// Σ{w : w > middle}, min{w : w > middle} (+∞ for none), and max{w : w ≤ middle}, which is at least `below`.
@inline(never)
private func split(
    _ weights: UnsafePointer<Float>, _ count: Int, at middle: Float, below: Float
) -> (sum: Double, above: Float, below: Float) {
    let limit = splat(middle)
    var (least, most) = (splat(.infinity), splat(below))
    var sum = 0.0
    var x = 0
    while x < count {
        let end = minimum(count, x + blockFloats)
        var (a, b, c, d) = (splat(0), splat(0), splat(0), splat(0))
        while x < end {
            let p = weights + x
            let (e, f) = (load(p), load(p + laneCount))
            let (g, h) = (load(p + 2 * laneCount), load(p + 3 * laneCount))
            a += kept(e, limit)
            b += kept(f, limit)
            c += kept(g, limit)
            d += kept(h, limit)
            least = minimum(
                least,
                minimum(minimum(over(e, limit), over(f, limit)), minimum(over(g, limit), over(h, limit))))
            most = maximum(
                maximum(maximum(under(e, limit), under(f, limit)), maximum(under(g, limit), under(h, limit))), most)
            x += 4 * laneCount
        }
        sum += Double(laneSum((a + b) + (c + d)))
    }
    return (sum, smallestLane(least), largestLane(most))
}

/// Weights up to the limit become 0, and add nothing to a sum.
@_transparent
private func kept(_ w: Vector, _ limit: Vector) -> Vector { w.replacing(with: 0, where: w .<= limit) }

/// Weights up to the limit become +∞, and are not a minimum.
@_transparent
private func over(_ w: Vector, _ limit: Vector) -> Vector { w.replacing(with: .infinity, where: w .<= limit) }

/// Weights above the limit become 0, and are not a maximum.
@_transparent
private func under(_ w: Vector, _ limit: Vector) -> Vector { w.replacing(with: 0, where: w .> limit) }

// MARK: - Marks

/// Sets the bits of the weights above the threshold. A threshold is not negative, so that padding (weight 0) has no bits.
@inline(never)
private func mark(_ weights: UnsafePointer<Float>, _ count: Int, above threshold: Float, _ kept: UnsafeMutablePointer<UInt64>) {
    let limit = splat(threshold)
    var x = 0
    while x < count {
        var (word, lane) = (UInt64(0), 0)
        while lane < 64 {
            word |= signBits(limit - load(weights + x + lane)) &<< UInt64(truncatingIfNeeded: lane)
            lane += laneCount
        }
        kept[x / 64] |= word
        x += 64
    }
}

/// Marks all non-zero weights of a row with NaN or +∞, so that attention propagates them.
@inline(never)
private func markUnordered(_ weights: UnsafePointer<Float>, _ count: Int, _ kept: UnsafeMutablePointer<UInt64>) {
    for x in 0..<count where weights[x] != 0 { kept[x / 64] |= 1 &<< UInt64(truncatingIfNeeded: x % 64) }
}

// Statistics of one piece of a row of logits: the largest entries and Σ e^(x − m).
//
// The piece is read from memory once, while the exponentials of the piece before it were added up. The first pass widens and caps the entries and finds their maximum m; the second one adds up
// exponentials and collects the entries that may be among the largest. An entry is a candidate while it is above the threshold, the
// k-th largest of those seen so far. When the list of candidates is full, its k largest are found by partitioning, and the smallest
// of them is the new threshold. So a list of 4k candidates is partitioned log₄(n / k) times for entries in random order.
//
// Entries that equal the threshold lose against it, because entries are seen in the order of their indices.

public import KernelInterface

extension Kernels {
    public static func summarizeLogits(_ arguments: UnsafePointer<SummarizeLogitsArguments>) {
        let args = arguments.pointee
        // Whole vectors of floats are read where they are.
        let isDirect = args.logits.type == .float32 && args.softCap == 0 && args.count % laneCount == 0
        let scratch = args.scratch.assumingMemoryBound(to: Float.self)
        let values = isDirect ? args.logits.base.assumingMemoryBound(to: Float.self) : UnsafePointer(scratch)
        let maximum = isDirect ? largestEntry(values, count: args.count) : widenPiece(args, scratch)
        args.sums[0] = maximum
        args.sums[1] = sumPiece(args, values, maximum)
        // A sum that is not NaN has no NaN among its entries, so that the largest one is the maximum.
        if args.kept == 1 && args.sums[1] == args.sums[1] {
            let index = firstEntry(values, count: args.count, equal: maximum)
            args.keys[0] = LogitKey.key(values[index], index: args.first + index)
        } else {
            collectLargest(args, values)
        }
    }
}

/// The largest entry that is a number, or −∞, of whole vectors.
@inline(never)
private func largestEntry(_ values: UnsafePointer<Float>, count: Int) -> Float {
    var (a, b) = (splat(-.infinity), splat(-.infinity))
    var (c, d) = (a, b)
    var column = 0
    while column + 4 * laneCount <= count {
        // The second operand is the result when the first is NaN.
        a = maximum(load(values + column), a)
        b = maximum(load(values + column + laneCount), b)
        c = maximum(load(values + column + 2 * laneCount), c)
        d = maximum(load(values + column + 3 * laneCount), d)
        column += 4 * laneCount
    }
    while column < count {
        a = maximum(load(values + column), a)
        column += laneCount
    }
    let largest = maximum(maximum(a, b), maximum(c, d))
    var result = -Float.infinity
    for lane in 0..<laneCount where largest[lane] > result { result = largest[lane] }
    return result
}

/// Entries as floats, with −∞ after the last one up to a whole vector. Returns the largest that is a number, or −∞.
@inline(never)
private func widenPiece(_ args: SummarizeLogitsArguments, _ values: UnsafeMutablePointer<Float>) -> Float {
    let (base, type) = (args.logits.base, args.logits.type)
    let isCapped = args.softCap > 0
    let (cap, inverse) = (splat(args.softCap), splat(isCapped ? 1 / args.softCap : 0))
    var largest = splat(-.infinity)
    var column = 0
    while column < args.count {
        let rest = args.count - column
        var x =
            rest >= laneCount
            ? loadLanes(base, type, column) : loadLastLanes(base, type, column, rest, filler: -.infinity)
        if isCapped {
            x = cap * tanh(x * inverse)
            if rest < laneCount { for lane in rest..<laneCount { x[lane] = -.infinity } }
        }
        store(x, values + column)
        // The second operand is the result when the first is NaN.
        largest = maximum(x, largest)
        column += laneCount
    }
    var result = -Float.infinity
    for lane in 0..<laneCount where largest[lane] > result { result = largest[lane] }
    return result
}

/// Σ e^(x − m), in four chains of at most `pieceColumns` / 4·`laneCount` vectors.
@inline(never)
private func sumPiece(
    _ args: SummarizeLogitsArguments, _ values: UnsafePointer<Float>, _ maximum: Float
) -> Float {
    // ∞ − ∞ is NaN, and −∞ − −∞, too. Only NaN itself must be one here.
    if maximum == .infinity || maximum == -.infinity {
        for column in 0..<args.count where values[column] != values[column] { return .nan }
        return maximum == .infinity ? .infinity : 0
    }
    let m = splat(maximum)
    // As many lines of the next piece are fetched as vectors are summed, or half as many if entries have 16 bits.
    let isWide = args.logits.type == .float32
    let next = args.logits.base + args.count * (isWide ? 4 : 2)
    var total = splat(0)
    let end = (args.count + laneCount - 1) / laneCount * laneCount
    var column = 0
    while column + 4 * laneCount <= end {
        let stop = minimum(end / (4 * laneCount) * (4 * laneCount), column + 64 * laneCount)
        var (s0, s1, s2, s3) = (splat(0), splat(0), splat(0), splat(0))
        while column < stop {
            if args.hasNext {
                // Four vectors are at most four lines, and at least two.
                let lines = next + column * (isWide ? 4 : 2)
                prefetchLines(lines, byteCount: 4 * laneCount * (isWide ? 4 : 2))
            }
            s0 += exp(load(values + column) - m)
            s1 += exp(load(values + column + laneCount) - m)
            s2 += exp(load(values + column + 2 * laneCount) - m)
            s3 += exp(load(values + column + 3 * laneCount) - m)
            column += 4 * laneCount
        }
        total += (s0 + s1) + (s2 + s3)
    }
    while column < end {
        total += exp(load(values + column) - m)
        column += laneCount
    }
    return laneSum(total)
}

/// Prefetches the cache lines of some bytes.
@_transparent
private func prefetchLines(_ start: UnsafeRawPointer, byteCount: Int) {
    var offset = 0
    while offset < byteCount {
        prefetch((start + offset).assumingMemoryBound(to: Float.self))
        offset += 64
    }
}

/// The index of the first entry that equals `value`; entries are filled up to whole vectors with −∞. 0 when there is none.
@inline(never)
private func firstEntry(_ values: UnsafePointer<Float>, count: Int, equal value: Float) -> Int {
    let wanted = splat(value)
    var column = 0
    while column < count {
        let lanes = signBits(splat(0).replacing(with: splat(-1), where: load(values + column) .== wanted))
        if lanes != 0 { return column + lanes.trailingZeroBitCount }
        column += laneCount
    }
    return 0
}

/// Writes the keys of the `kept` largest entries.
@inline(never)
private func collectLargest(_ args: SummarizeLogitsArguments, _ values: UnsafePointer<Float>) {
    let layout = LogitScratch(kept: args.kept)
    let list = (args.scratch + layout.candidateOffset).assumingMemoryBound(to: UInt64.self)
    var count = 0
    // No comparison with NaN holds, so everything is a candidate at first. It is again if the k-th largest is NaN, and then the
    // ranks decide.
    var (threshold, leastRank) = (splat(.nan), UInt32(0))
    var column = 0
    while column < args.count {
        let x = load(values + column)
        var lanes = signBits(splat(-1).replacing(with: splat(0), where: x .<= threshold))
        if lanes != 0 {
            let rest = args.count - column
            if rest < laneCount { lanes &= (1 << UInt64(rest)) &- 1 }
            while lanes != 0 {
                let index = column + lanes.trailingZeroBitCount
                lanes &= lanes &- 1
                if LogitKey.rank(values[index]) > leastRank {
                    list[count] = LogitKey.key(values[index], index: args.first + index)
                    count += 1
                }
            }
            // Room for one more vector must be left.
            if count > layout.candidates - laneCount {
                partitionLargest(list, count: count, kept: args.kept)
                count = args.kept
                var least = list[0]
                for i in 1..<count where list[i] < least { least = list[i] }
                threshold = splat(LogitKey.value(least))
                leastRank = UInt32(truncatingIfNeeded: least >> 32)
            }
        }
        column += laneCount
    }
    if count > args.kept { partitionLargest(list, count: count, kept: args.kept) }
    for i in 0..<args.kept { args.keys[i] = list[i] }
}

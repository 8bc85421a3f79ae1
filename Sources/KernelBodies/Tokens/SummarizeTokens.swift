// Metadata of the keys of a page: means, or the extremes of every channel, rounded outward so that bounds remain bounds.

public import KernelInterface

extension Kernels {
    /// See `SummarizeTokensArguments`.
    public static func summarizeTokens(_ arguments: UnsafePointer<SummarizeTokensArguments>) {
        let args = arguments.pointee
        let channels = args.key.channels
        let row = args.scratch
        let summary = row + TokenLayout.padded(channels)
        if args.isMean {
            for channel in 0..<channels { summary[channel] = 0 }
        } else if args.extendsRow {
            loadTokens(args.target, slot: args.row, count: 1, into: summary)
        } else {
            for channel in 0..<channels {
                summary[channel] = -.infinity
                summary[channels + channel] = .infinity
            }
        }
        for token in 0..<args.count {
            loadTokens(args.key, slot: args.slot + token, count: 1, into: row)
            if args.isMean {
                for channel in 0..<channels { summary[channel] += row[channel] }
            } else {
                widen(summary, summary + channels, by: row, channels: channels)
            }
        }
        if args.isMean {
            for channel in 0..<channels { summary[channel] /= Float(args.count) }
        }
        storeSummary(args, summary, count: args.isMean ? channels : 2 * channels)
    }
}

/// Extends the largest and the smallest value of every channel by those of a row.
@inline(never)
private func widen(
    _ largest: UnsafeMutablePointer<Float>, _ smallest: UnsafeMutablePointer<Float>, by row: UnsafePointer<Float>,
    channels: Int
) {
    var x = 0
    while x + laneCount <= channels {
        let value = load(row + x)
        store(maximum(value, load(largest + x)), largest + x)
        store(minimum(load(smallest + x), value), smallest + x)
        x += laneCount
    }
    while x < channels {
        if row[x] > largest[x] { largest[x] = row[x] }
        if row[x] < smallest[x] { smallest[x] = row[x] }
        x += 1
    }
}

/// Stores a row of metadata in its format: largest values are rounded up, smallest down, and means to nearest.
@inline(never)
private func storeSummary(_ args: SummarizeTokensArguments, _ summary: UnsafeMutablePointer<Float>, count: Int) {
    let base = args.target.base + args.row * args.target.stride
    let half = args.isMean ? 0 : count / 2
    switch args.target.format {
    case .float32:
        let target = base.assumingMemoryBound(to: Float.self)
        for x in 0..<count { target[x] = summary[x] }
    case .float16:
        let target = base.assumingMemoryBound(to: UInt16.self)
        if args.isMean {
            for x in 0..<count { target[x] = narrowToHalf(summary[x]) }
        } else {
            storeHalvesAbove(summary, sign: 1, count: half, into: target)
            storeHalvesAbove(summary + half, sign: -1, count: half, into: target + half)
        }
    default:
        var (low, high) = (summary[0], summary[0])
        for x in 1..<count {
            if summary[x] < low { low = summary[x] }
            if summary[x] > high { high = summary[x] }
        }
        let bytes = base.assumingMemoryBound(to: UInt8.self)
        let offset = halfBelow(low)
        let first = widenHalf(offset)
        // Codes end at 255; 254 leaves one for rounding up.
        let scale = halfAbove((high - first) / 254)
        let inverse = scale == 0 ? 0 : 1 / widenHalf(scale)
        // Larger than the rounding errors of the division.
        let margin: Float = 1.0 / 1024
        for x in 0..<count {
            let value = (summary[x] - first) * inverse
            let code =
                args.isMean || value == 0
                ? value.rounded(.toNearestOrEven) : x < half ? (value + margin).rounded(.up) : (value - margin).rounded(.down)
            bytes[x] = UInt8(truncatingIfNeeded: Int32(code < 0 ? 0 : code > 255 ? 255 : code))
        }
        args.target.scales![args.row] = scale
        args.target.offsets![args.row] = offset
    }
}

/// Stores values, or their negatives twice negated, as the halves that are not below them.
@inline(never)
private func storeHalvesAbove(
    _ values: UnsafePointer<Float>, sign: Float, count: Int, into target: UnsafeMutablePointer<UInt16>
) {
    let factor = splat(sign)
    let flip = IntVector(repeating: sign < 0 ? 0x8000 : 0)
    var x = 0
    while x + laneCount <= count {
        storeLowHalves(halvesAbove(load(values + x) * factor) ^ flip, target + x)
        x += laneCount
    }
    while x < count {
        target[x] = halfAbove(values[x] * sign) ^ (sign < 0 ? 0x8000 : 0)
        x += 1
    }
}

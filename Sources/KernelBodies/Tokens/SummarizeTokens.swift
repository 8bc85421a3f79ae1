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
                for channel in 0..<channels {
                    let value = row[channel]
                    if value > summary[channel] { summary[channel] = value }
                    if value < summary[channels + channel] { summary[channels + channel] = value }
                }
            }
        }
        if args.isMean {
            for channel in 0..<channels { summary[channel] /= Float(args.count) }
        }
        storeSummary(args, summary, count: args.isMean ? channels : 2 * channels)
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
        for x in 0..<count {
            let value = summary[x]
            if args.isMean {
                target[x] = narrowToHalf(value)
            } else {
                target[x] = x < half ? halfAbove(value) : halfAbove(-value) ^ 0x8000
            }
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

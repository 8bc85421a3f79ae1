// RMSNorm within groups of channels, with a gate g = z / (1 + e⁻ᶻ) before or after it:
//
//     before    u = x ⊙ g,  y = u / √(mean u² + ε) · w
//     after     u = x,      y = u / √(mean u² + ε) · w ⊙ g
//
// A group is read from memory once: u is staged as floats in the scratch while its squares are summed, and the second pass reads the
// scratch. So y may be the memory of x or z. Sums are those of NormalizeRows.swift: four chains of 16 vectors each, then totals.

public import KernelInterface

extension Kernels {
    public static func normalizeGated(
        _ arguments: UnsafePointer<GatedNormArguments>, scratch: UnsafeMutablePointer<Float>
    ) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            for group in 0..<args.groups {
                let start = group * args.channels
                let squares = args.gatesBefore ? stageGated(args, row, start, scratch) : stagePlain(args, row, start, scratch)
                let factor = 1 / (squares / Float(args.channels) + args.epsilon).squareRoot()
                if args.gatesBefore {
                    writePlain(args, row, start, scratch, factor)
                } else {
                    writeGated(args, row, start, scratch, factor)
                }
            }
        }
    }
}

@inline(never)
private func stageGated(_ args: GatedNormArguments, _ row: Int, _ start: Int, _ scratch: UnsafeMutablePointer<Float>) -> Float {
    stage(args, row, start, scratch, gated: true)
}

@inline(never)
private func stagePlain(_ args: GatedNormArguments, _ row: Int, _ start: Int, _ scratch: UnsafeMutablePointer<Float>) -> Float {
    stage(args, row, start, scratch, gated: false)
}

@inline(never)
private func writeGated(
    _ args: GatedNormArguments, _ row: Int, _ start: Int, _ scratch: UnsafePointer<Float>, _ factor: Float
) {
    write(args, row, start, scratch, factor, gated: true)
}

@inline(never)
private func writePlain(
    _ args: GatedNormArguments, _ row: Int, _ start: Int, _ scratch: UnsafePointer<Float>, _ factor: Float
) {
    write(args, row, start, scratch, factor, gated: false)
}

/// u of one group to the scratch; returns Σ u².
@_transparent
private func stage(
    _ args: GatedNormArguments, _ row: Int, _ start: Int, _ scratch: UnsafeMutablePointer<Float>, gated: Bool
) -> Float {
    let x = args.x.base + (row * args.x.stride + start) * byteCount(args.x.type)
    let z = args.z.base + (row * args.z.stride + start) * byteCount(args.z.type)
    var squares = splat(0)
    var channel = 0
    while channel + 4 * laneCount <= args.channels {
        let end = minimum(args.channels / (4 * laneCount) * (4 * laneCount), channel + 64 * laneCount)
        var (q0, q1, q2, q3) = (splat(0), splat(0), splat(0), splat(0))
        while channel < end {
            var u0 = loadLanes(x, args.x.type, channel)
            var u1 = loadLanes(x, args.x.type, channel + laneCount)
            var u2 = loadLanes(x, args.x.type, channel + 2 * laneCount)
            var u3 = loadLanes(x, args.x.type, channel + 3 * laneCount)
            if gated {
                u0 = u0 * silu(loadLanes(z, args.z.type, channel))
                u1 = u1 * silu(loadLanes(z, args.z.type, channel + laneCount))
                u2 = u2 * silu(loadLanes(z, args.z.type, channel + 2 * laneCount))
                u3 = u3 * silu(loadLanes(z, args.z.type, channel + 3 * laneCount))
            }
            store(u0, scratch + channel)
            store(u1, scratch + channel + laneCount)
            store(u2, scratch + channel + 2 * laneCount)
            store(u3, scratch + channel + 3 * laneCount)
            q0 = multiplyAdd(u0, u0, q0)
            q1 = multiplyAdd(u1, u1, q1)
            q2 = multiplyAdd(u2, u2, q2)
            q3 = multiplyAdd(u3, u3, q3)
            channel += 4 * laneCount
        }
        squares += (q0 + q1) + (q2 + q3)
    }
    while channel < args.channels {
        let count = args.channels - channel
        // Missing lanes are 0, so that they add nothing. The scratch has room for them.
        var u =
            count >= laneCount
            ? loadLanes(x, args.x.type, channel) : loadLastLanes(x, args.x.type, channel, count, filler: 0)
        if gated {
            u =
                u
                * silu(
                    count >= laneCount
                        ? loadLanes(z, args.z.type, channel) : loadLastLanes(z, args.z.type, channel, count, filler: 0))
        }
        store(u, scratch + channel)
        squares = multiplyAdd(u, u, squares)
        channel += laneCount
    }
    return laneSum(squares)
}

/// y = u · factor · weight, times the gate.
@_transparent
private func write(
    _ args: GatedNormArguments, _ row: Int, _ start: Int, _ scratch: UnsafePointer<Float>, _ factor: Float, gated: Bool
) {
    let y = args.y.base + (row * args.y.stride + start) * byteCount(args.y.type)
    let z = args.z.base + (row * args.z.stride + start) * byteCount(args.z.type)
    let weight = args.weight + start
    let f = splat(factor)
    var channel = 0
    while channel + laneCount <= args.channels {
        var value = load(scratch + channel) * f * load(weight + channel)
        if gated { value = value * silu(loadLanes(z, args.z.type, channel)) }
        storeLanes(value, y, args.y.type, channel)
        channel += laneCount
    }
    let rest = args.channels - channel
    if rest > 0 {
        var value = load(scratch + channel) * f * loadLastLanes(UnsafeRawPointer(weight), .float32, channel, rest, filler: 0)
        if gated { value = value * silu(loadLastLanes(z, args.z.type, channel, rest, filler: 0)) }
        storeLastLanes(value, y, args.y.type, channel, rest)
    }
}

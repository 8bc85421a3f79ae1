// Rotary embedding in place, by a table of cosines and sines:
//
//     half-split     y[i] = x[i] cos − x[i + n] sin      y[i + n] = x[i + n] cos + x[i] sin        n pairs
//     interleaved    y[2i] = x[2i] cos − x[2i + 1] sin   y[2i + 1] = x[2i + 1] cos + x[2i] sin
//
// Channels past the last pair are not touched.

public import KernelInterface

extension Kernels {
    public static func rotateRows(_ arguments: UnsafePointer<RotateArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let x = args.x.base + row * args.x.stride * byteCount(args.x.type)
            let cosines = args.table + row * args.tableStride
            let sines = cosines + args.layout.width
            if args.layout.isInterleaved {
                rotateNeighbours(x, args.x.type, cosines, sines, args.direction, channels: 2 * args.layout.pairs)
            } else {
                rotateHalves(x, args.x.type, cosines, sines, args.direction, pairs: args.layout.pairs)
            }
        }
    }
}

@inline(never)
private func rotateHalves(
    _ x: UnsafeMutableRawPointer, _ type: StorageType, _ cosines: UnsafePointer<Float>, _ sines: UnsafePointer<Float>,
    _ direction: Float, pairs: Int
) {
    let sign = splat(direction)
    var pair = 0
    while pair + laneCount <= pairs {
        let (a, b) = (loadLanes(x, type, pair), loadLanes(x, type, pairs + pair))
        let (cosine, sine) = (load(cosines + pair), sign * load(sines + pair))
        storeLanes(multiplyAdd(a, cosine, splat(0) - b * sine), x, type, pair)
        storeLanes(multiplyAdd(b, cosine, a * sine), x, type, pairs + pair)
        pair += laneCount
    }
    let rest = pairs - pair
    if rest > 0 {
        let a = loadLastLanes(x, type, pair, rest, filler: 0)
        let b = loadLastLanes(x, type, pairs + pair, rest, filler: 0)
        // The table has whole vectors.
        let (cosine, sine) = (load(cosines + pair), sign * load(sines + pair))
        storeLastLanes(multiplyAdd(a, cosine, splat(0) - b * sine), x, type, pair, rest)
        storeLastLanes(multiplyAdd(b, cosine, a * sine), x, type, pairs + pair, rest)
    }
}

@inline(never)
private func rotateNeighbours(
    _ x: UnsafeMutableRawPointer, _ type: StorageType, _ cosines: UnsafePointer<Float>, _ sines: UnsafePointer<Float>,
    _ direction: Float, channels: Int
) {
    let sign = splat(direction)
    var channel = 0
    while channel + laneCount <= channels {
        let a = loadLanes(x, type, channel)
        storeLanes(
            multiplyAdd(a, load(cosines + channel), exchangingNeighbours(a) * (sign * load(sines + channel))), x, type, channel)
        channel += laneCount
    }
    let rest = channels - channel
    if rest > 0 {
        let a = loadLastLanes(x, type, channel, rest, filler: 0)
        storeLastLanes(
            multiplyAdd(a, load(cosines + channel), exchangingNeighbours(a) * (sign * load(sines + channel))), x, type, channel,
            rest)
    }
}

@_transparent
private func exchangingNeighbours(_ x: Vector) -> Vector {
    var result = x
    result.evenHalf = x.oddHalf
    result.oddHalf = x.evenHalf
    return result
}

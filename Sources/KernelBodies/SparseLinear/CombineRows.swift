// Sums of weighted rows, for the outputs of a token's experts: y = ((w₀·r₀ + w₁·r₁) + …) + the rows of shared experts.
//
// Every token adds its own rows in the order of its list, so that no other token and no thread changes the result.

public import KernelInterface

extension Kernels {
    /// See `CombineRowsArguments`.
    public static func combineRows(_ arguments: UnsafePointer<CombineRowsArguments>) {
        let args = arguments.pointee
        for token in 0..<args.tokens {
            let y = args.y.base + token * args.y.stride * byteCount(args.y.type)
            let places = args.places + token * args.listed
            let weights = args.weights + token * args.listed
            var channel = 0
            while channel + laneCount <= args.channels {
                var sum = splat(0)
                for i in 0..<args.listed {
                    sum = multiplyAdd(splat(weights[i]), load(args.rows + Int(places[i]) * args.stride + channel), sum)
                }
                for block in 0..<args.blocks {
                    sum = sum + load(args.extra + block * args.blockStride + token * args.extraStride + channel)
                }
                storeLanes(sum, y, args.y.type, channel)
                channel += laneCount
            }
            if channel < args.channels { combineLastLanes(args, token, from: channel, into: y) }
        }
    }
}

/// The channels after the last whole vector.
@inline(never)
private func combineLastLanes(
    _ args: CombineRowsArguments, _ token: Int, from channel: Int, into y: UnsafeMutableRawPointer
) {
    let count = args.channels - channel
    var sum = splat(0)
    for i in 0..<args.listed {
        let row = args.rows + Int(args.places[token * args.listed + i]) * args.stride
        let weight = splat(args.weights[token * args.listed + i])
        sum = multiplyAdd(weight, loadLastLanes(row, .float32, channel, count, filler: 0), sum)
    }
    for block in 0..<args.blocks {
        let row = args.extra + block * args.blockStride + token * args.extraStride
        sum = sum + loadLastLanes(row, .float32, channel, count, filler: 0)
    }
    storeLastLanes(sum, y, args.y.type, channel, count)
}

// Conversion of key groups to 6-bit codes around their mean, for antidiagonal scoring in integers.

public import KernelInterface

extension Kernels {
    /// See `KeyCodeArguments`.
    public static func encodeKeyGroups(_ arguments: UnsafePointer<KeyCodeArguments>) {
        let args = arguments.pointee
        let depth = args.headDim * args.stride
        let padded = AntidiagonalScratch.codeDepth(headDim: args.headDim, stride: args.stride)
        let centred = args.scratch.assumingMemoryBound(to: Float.self)
        let limit = Float(codeLimit)
        let whole = depth / laneCount * laneCount
        for group in args.firstGroup..<args.endGroup {
            let first = group * args.stride
            let tokens = minimum(args.stride, args.keyTokens - first)
            Kernels.stageRows(args.key, first: first, count: tokens, channels: args.headDim, into: centred)
            for x in tokens * args.headDim..<depth { centred[x] = 0 }
            let top = centre(centred, mean: args.mean, tokens: args.stride, channels: args.headDim)
            args.scales[group] = top / limit
            let factor = top == 0 ? 0 : limit / top
            let codes = args.codes + group * padded
            let shift = IntVector(repeating: Int32(truncatingIfNeeded: codeLimit))
            var x = 0
            while x < whole {
                storeLowBytes(nearest(load(centred + x) * splat(factor)) &+ shift, codes + x)
                x += laneCount
            }
            // The last channels are copied to a register of zeros first.
            while x < padded {
                var values = splat(0)
                for lane in 0..<minimum(laneCount, maximum(0, depth - x)) { values[lane] = centred[x + lane] }
                storeLowBytes(nearest(values * splat(factor)) &+ shift, codes + x)
                x += laneCount
            }
        }
    }
}

/// Subtracts the mean from every token and returns the largest magnitude.
@_transparent
private func centre(_ rows: UnsafeMutablePointer<Float>, mean: UnsafePointer<Float>, tokens: Int, channels: Int) -> Float {
    var top = splat(0)
    var tail: Float = 0
    for token in 0..<tokens {
        let row = rows + token * channels
        var x = 0
        while x + laneCount <= channels {
            let value = load(row + x) - load(mean + x)
            top = maximum(magnitude(value), top)
            store(value, row + x)
            x += laneCount
        }
        while x < channels {
            row[x] -= mean[x]
            tail = row[x].magnitude > tail ? row[x].magnitude : tail
            x += 1
        }
    }
    for lane in 0..<laneCount where top[lane] > tail { tail = top[lane] }
    return tail
}

// Activations on their way into a quantised product: x / smooth becomes codes and scales, x · downᵀ the input of the up-projection.
//
//     for each step of channels, read once:
//         low += x · down                        for strips of rows, on the register tile
//         per row and group:  v = x / smooth     scale = max |v| / limit     code = nearest(v / scale)
//
// The rules, down to where a value is rounded, are those of the papers' own kernels: see `ActivationFormat`.

public import KernelInterface

/// See `QuantizeArguments`.
public func quantizeActivations(_ arguments: UnsafePointer<QuantizeArguments>) {
    let args = arguments.pointee
    let staged = args.scratch.assumingMemoryBound(to: Float.self)
    let down = staged + QuantizedScratch.stagedFloats
    let smoothed = down + QuantizedScratch.downFloats
    let groups = args.paddedDepth / args.groupSize
    if args.coding == .int8PerToken { scaleTokens(args, staged: staged, smoothed: smoothed) }
    if let low = args.low {
        for x in 0..<(args.rows + tileRows - 1) / tileRows * tileRows * args.lowStride { low[x] = 0 }
    }
    var start = 0
    while start < args.paddedDepth {
        let padded = minimum(QuantizedScratch.activationDepth, args.paddedDepth - start)
        let channels = minimum(padded, args.depth - start)
        var (rows, stride) = (UnsafePointer(staged), channels)
        if args.x.type == .float32 {
            rows = UnsafePointer(args.x.base.assumingMemoryBound(to: Float.self)) + start
            stride = args.x.stride
        } else {
            stage(channelsFrom(start, of: args.x), first: 0, count: args.rows, channels: channels, into: staged)
        }
        if args.low != nil { projectDown(args, rows, stride: stride, start: start, channels: channels, expanded: down) }
        for row in 0..<args.rows {
            smooth(args, rows + row * stride, start: start, channels: channels, padded: padded, into: smoothed)
            if let values = args.values {
                let target = values + row * args.valueStride + start
                for x in 0..<padded { target[x] = smoothed[x] }
                continue
            }
            let codes = args.codes! + row * args.codeStride + start
            for group in 0..<padded / args.groupSize {
                let place = row * groups + start / args.groupSize + group
                encode(
                    args, smoothed + group * args.groupSize, tokenScale: args.scales[row * groups],
                    codes: codes + group * args.groupSize, place: place)
            }
        }
        start += padded
    }
}

@_transparent
private func channelsFrom(_ start: Int, of x: RowOperand) -> RowOperand {
    RowOperand(base: x.base + start * (x.type == .float32 ? 4 : 2), stride: x.stride, type: x.type)
}

// MARK: - Low-rank down-projection

/// low += x · down over a step of channels.
@_transparent
private func projectDown(
    _ args: QuantizeArguments, _ x: UnsafePointer<Float>, stride: Int, start: Int, channels: Int,
    expanded: UnsafeMutablePointer<Float>
) {
    var vector = 0
    while vector < args.lowVectors {
        let width = minimum(panelVectors, args.lowVectors - vector)
        let lanes = width * laneCount
        widen(
            args.down!, args.factorType, from: vector * laneCount * args.depth + start * lanes, count: channels * lanes,
            into: expanded)
        let low = args.low! + vector * laneCount
        switch width {
        case 1: projectByOne(args, x, stride, channels, expanded, low)
        case 2: projectByTwo(args, x, stride, channels, expanded, low)
        default: projectByThree(args, x, stride, channels, expanded, low)
        }
        vector += width
    }
}

@inline(never)
private func projectByOne(
    _ args: QuantizeArguments, _ x: UnsafePointer<Float>, _ stride: Int, _ channels: Int, _ down: UnsafePointer<Float>,
    _ low: UnsafeMutablePointer<Float>
) { project(args, x, stride, channels, down, low, width: 1) }

@inline(never)
private func projectByTwo(
    _ args: QuantizeArguments, _ x: UnsafePointer<Float>, _ stride: Int, _ channels: Int, _ down: UnsafePointer<Float>,
    _ low: UnsafeMutablePointer<Float>
) { project(args, x, stride, channels, down, low, width: 2) }

@inline(never)
private func projectByThree(
    _ args: QuantizeArguments, _ x: UnsafePointer<Float>, _ stride: Int, _ channels: Int, _ down: UnsafePointer<Float>,
    _ low: UnsafeMutablePointer<Float>
) { project(args, x, stride, channels, down, low, width: 3) }

@_transparent
private func project(
    _ args: QuantizeArguments, _ x: UnsafePointer<Float>, _ stride: Int, _ channels: Int, _ down: UnsafePointer<Float>,
    _ low: UnsafeMutablePointer<Float>, width: Int
) {
    var row = 0
    while row < args.rows {
        var tile = zeroTile()
        let rows = rowPointers(x + row * stride, stride: stride, count: args.rows - row)
        accumulate(&tile, rows, step: 1, panel: down, depth: channels, width: width)
        add(&tile, low + row * args.lowStride, stride: args.lowStride, width: width)
        store(tile, low + row * args.lowStride, stride: args.lowStride, width: width)
        row += tileRows
    }
}

// MARK: - Codes

/// v = (x + shift) / smooth, each rounded to the type of x; padding is 0.
@_transparent
private func smooth(
    _ args: QuantizeArguments, _ x: UnsafePointer<Float>, start: Int, channels: Int, padded: Int,
    into target: UnsafeMutablePointer<Float>
) {
    let whole = channels / laneCount * laneCount
    let shift = splat(args.shift)
    var channel = 0
    while channel < padded {
        var v = splat(0)
        var divisor = splat(1)
        if channel < whole {
            v = load(x + channel)
            if let smooth = args.smooth { divisor = load(smooth + start + channel) }
        } else {
            for lane in 0..<maximum(0, channels - channel) {
                v[lane] = x[channel + lane]
                if let smooth = args.smooth { divisor[lane] = smooth[start + channel + lane] }
            }
        }
        if args.coding == .uint4 { v = rounded(v + shift, args.x.type) }
        if args.smooth != nil { v = rounded(v / divisor, args.x.type) }
        store(v, target + channel)
        channel += laneCount
    }
    if args.coding == .uint4 {
        for x in channels..<maximum(channels, padded) { target[x] = 0 }
    }
}

@_transparent
private func rounded(_ value: Vector, _ type: StorageType) -> Vector {
    switch type {
    case .float32: value
    case .float16: roundedToHalf(value)
    case .bfloat16: roundedToBFloat16(value)
    }
}

@_transparent
private func rounded(_ value: Float, _ type: StorageType) -> Float { rounded(splat(value), type)[0] }

/// max |v| of some channels; NaN when one of them is not finite.
@_transparent
private func range(_ v: UnsafePointer<Float>, _ count: Int) -> Float {
    var top = splat(0)
    var zeros = splat(0)
    var x = 0
    while x < count {
        let value = load(v + x)
        top = maximum(magnitude(value), top)
        zeros = multiplyAdd(value, splat(0), zeros)
        x += laneCount
    }
    return largest(top) + zeros.sum()
}

/// One scale per token, kept in the place of its first group: max |v| / 127, rounded to the type of x.
@inline(never)
private func scaleTokens(_ args: QuantizeArguments, staged: UnsafeMutablePointer<Float>, smoothed: UnsafeMutablePointer<Float>)
{
    let groups = args.paddedDepth / args.groupSize
    for row in 0..<args.rows {
        var top: Float = 0
        var start = 0
        while start < args.paddedDepth {
            let padded = minimum(QuantizedScratch.activationDepth, args.paddedDepth - start)
            let channels = minimum(padded, args.depth - start)
            var x = UnsafePointer(staged)
            if args.x.type == .float32 {
                x = UnsafePointer(args.x.base.assumingMemoryBound(to: Float.self)) + row * args.x.stride + start
            } else {
                stage(channelsFrom(start, of: args.x), first: row, count: 1, channels: channels, into: staged)
            }
            smooth(args, x, start: start, channels: channels, padded: padded, into: smoothed)
            let local = range(smoothed, padded)
            // NaN stays.
            top = local > top || local != local ? local : top
            start += padded
        }
        args.scales[row * groups] = rounded(top / 127, args.x.type)
    }
}

/// One group: its scale, its codes, and their sum.
@_transparent
private func encode(
    _ args: QuantizeArguments, _ v: UnsafePointer<Float>, tokenScale: Float, codes: UnsafeMutablePointer<UInt8>, place: Int
) {
    var scale = tokenScale
    var stored = tokenScale
    switch args.coding {
    case .float, .int8PerToken: break
    case .int8PerGroup: scale = range(v, args.groupSize) * (1 / 127)
    case .int4: scale = range(v, args.groupSize) * (1 / 7)
    case .uint4: scale = range(v, args.groupSize) * (1 / 15)
    case .fp4: scale = minimumOf(range(v, args.groupSize) / 6, 448)
    }
    if args.coding == .fp4 {
        stored = roundedToE4M3(scale)
    } else if args.coding != .int8PerToken {
        stored = rounded(scale, args.x.type)
    }
    // Below the normal numbers 1 / scale overflows: such groups, and those of zeros, have codes of 0. NaN passes.
    let isZero = scale < Float(bitPattern: 0x0080_0000)
    let factor = splat(isZero ? 0 : 1 / scale)
    let divisor = splat(scale)
    let lowest = splat(args.coding == .uint4 ? 0 : -127)
    var sum = splat(0)
    var x = 0
    while x < args.groupSize {
        let value = load(v + x)
        var code: Vector
        switch args.coding {
        case .fp4: code = isZero ? splat(0) : doubledE2M1(value / divisor)
        case .int8PerToken: code = isZero ? splat(0) : floats(nearest(value / divisor))
        default: code = floats(nearest(value * factor))
        }
        // What is not finite gives any code; it must only stay in the range that sums are made for.
        code = minimum(maximum(code, lowest), splat(127))
        sum = sum + code
        storeLowBytes(nearest(code) &+ args.zeroCode, codes + x)
        x += laneCount
    }
    let total = sum.sum()
    if args.coding == .fp4 { stored = stored * 0.5 }
    args.scales[place] = isZero ? 0 : stored
    args.sums[place] = isZero ? 0 : stored * total
}

@_transparent
private func minimumOf(_ a: Float, _ b: Float) -> Float { b < a ? b : a }

/// Twice the E2M1 value nearest to x, ties to the even code, saturated at 6: steps of ½ up to 2, of 1 up to 4, of 2 beyond.
@_transparent
private func doubledE2M1(_ x: Vector) -> Vector {
    let size = minimum(magnitude(x), splat(6))
    let fine = floats(nearest(size + size))
    let middle = floats(nearest(size)) * splat(2)
    let coarse = floats(nearest(size * splat(0.5))) * splat(4)
    var result = fine.replacing(with: middle, where: size .> splat(2))
    result = result.replacing(with: coarse, where: size .> splat(4))
    return result.replacing(with: splat(0) - result, where: x .< splat(0))
}

/// The E4M3 value nearest to 0 ≤ x ≤ 448, ties to even: three bits of fraction, and steps of 2⁻⁹ below 2⁻⁶. NaN stays NaN.
@_transparent
private func roundedToE4M3(_ x: Float) -> Float {
    if x < 0.015_625 {
        let magic: Float = 24_576  // 1.5·2¹⁴, whose last bit is worth 2⁻⁹
        return (x + magic) - magic
    }
    let bits = x.bitPattern
    return x == x ? Float(bitPattern: (bits &+ 0x7ffff &+ ((bits >> 20) & 1)) & 0xfff0_0000) : x
}

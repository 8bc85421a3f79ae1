// Activations of a quantised product: x / smooth as codes and scales, and x · downᵀ, the input of the low-rank up-projection.
//
//     for each step of channels, read once:
//         low += x · down                        for strips of rows, on the register tile
//         per row and group:  v = x / smooth     scale = max |v| / limit     code = nearest(v / scale)
//
// All rules, including where values are rounded, are those of the papers' kernels: see `ActivationFormat`.

public import KernelInterface

extension Kernels {
    /// See `QuantizeArguments`.
    public static func quantizeActivations(_ arguments: UnsafePointer<QuantizeArguments>) {
        let args = arguments.pointee
        let staged = args.scratch.assumingMemoryBound(to: Float.self)
        let down = staged + QuantizedScratch.stagedFloats
        let smoothed = down + QuantizedScratch.downFloats
        let groups = args.paddedDepth / args.groupSize
        if args.coding == .int8PerToken && args.codes != nil { scaleTokens(args, staged: staged, smoothed: smoothed) }
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
                Kernels.stageRows(channelsFrom(start, of: args.x), first: 0, count: args.rows, channels: channels, into: staged)
            }
            if args.low != nil { projectDown(args, rows, stride: stride, start: start, channels: channels, expanded: down) }
            if args.codes == nil && args.values == nil {
                start += padded
                continue
            }
            let isRaw = args.smooth == nil && args.coding != .uint4 && channels == padded
            for row in 0..<args.rows {
                var v = rows + row * stride
                if !isRaw {
                    smooth(args, v, start: start, channels: channels, padded: padded, into: smoothed)
                    v = UnsafePointer(smoothed)
                }
                if let values = args.values {
                    let target = values + row * args.valueStride + start
                    for x in 0..<padded / laneCount { store(load(v + x * laneCount), target + x * laneCount) }
                    for group in 0..<padded / args.groupSize {
                        args.sums[row * groups + start / args.groupSize + group] = total(
                            v + group * args.groupSize, args.groupSize)
                    }
                    continue
                }
                let codes = args.codes! + row * args.codeStride + start
                for group in 0..<padded / args.groupSize {
                    let place = row * groups + start / args.groupSize + group
                    encode(
                        args, v + group * args.groupSize, tokenScale: args.scales[row * groups],
                        codes: codes + group * args.groupSize, place: place)
                }
            }
            start += padded
        }
        if args.turnedCodes != nil { turnCodes(args) }
    }
}

/// Stores the codes by columns, as words of four channels.
@inline(never)
private func turnCodes(_ args: QuantizeArguments) {
    let (block, words) = (4 * laneCount, args.paddedDepth / 4)
    let codes = UnsafeRawPointer(args.codes!).assumingMemoryBound(to: Int32.self)
    let turned = UnsafeMutableRawPointer(args.turnedCodes!).assumingMemoryBound(to: Int32.self)
    var row = 0
    while row < args.rows {
        // Rows come in fours; those past the last one are undefined, in memory of the caller.
        let count = (minimum(block, args.rows - row) + 3) / 4 * 4
        transposeWords(
            codes + row * args.codeStride / 4, stride: args.codeStride / 4, rows: count, columns: words,
            into: turned + row * words, destinationStride: block)
        row += block
    }
}

@_transparent
private func channelsFrom(_ start: Int, of x: RowOperand) -> RowOperand {
    RowOperand(base: x.base + start * (x.type == .float32 ? 4 : 2), stride: x.stride, type: x.type)
}

// MARK: - Low-rank down-projection

/// low += x · down over one step of channels.
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
        if args.isAlone {
            for part in 0..<width {
                projectRow(x, channels, expanded + part * laneCount, stride: lanes, into: low + part * laneCount)
            }
            vector += width
            continue
        }
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

/// One row times one vector of the down-projection, in four sums, because a single one would wait for its own latency.
@inline(never)
private func projectRow(
    _ x: UnsafePointer<Float>, _ channels: Int, _ down: UnsafePointer<Float>, stride: Int, into low: UnsafeMutablePointer<Float>
) {
    var (a, b, c, d) = (load(low), splat(0), splat(0), splat(0))
    var channel = 0
    while channel + 4 <= channels {
        a = multiplyAdd(splat(x[channel]), load(down + channel * stride), a)
        b = multiplyAdd(splat(x[channel + 1]), load(down + (channel + 1) * stride), b)
        c = multiplyAdd(splat(x[channel + 2]), load(down + (channel + 2) * stride), c)
        d = multiplyAdd(splat(x[channel + 3]), load(down + (channel + 3) * stride), d)
        channel += 4
    }
    while channel < channels {
        a = multiplyAdd(splat(x[channel]), load(down + channel * stride), a)
        channel += 1
    }
    store((a + b) + (c + d), low)
}

// MARK: - Codes

/// v = (x + shift) / smooth, rounded to the type of x after each operation. Padding is 0.
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

/// max |v| of some channels; NaN if one is not finite. Magnitudes are compared as bit patterns, where NaN is largest.
@_transparent
private func range(_ v: UnsafePointer<Float>, _ count: Int) -> Float {
    var top = IntVector(repeating: 0)
    for x in 0..<count / laneCount {
        top = maximum(unsafeBitCast(load(v + x * laneCount), to: IntVector.self) & 0x7fff_ffff, top)
    }
    let bits = largest(top)
    return bits < 0x7f80_0000 ? Float(bitPattern: UInt32(truncatingIfNeeded: bits)) : .nan
}

@_transparent
private func total(_ v: UnsafePointer<Float>, _ count: Int) -> Float {
    var sum = splat(0)
    for x in 0..<count / laneCount { sum = sum + load(v + x * laneCount) }
    return laneSum(sum)
}

/// One scale per token, stored at its first group: max |v| / 127, rounded to the type of x.
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
                Kernels.stageRows(channelsFrom(start, of: args.x), first: row, count: 1, channels: channels, into: staged)
            }
            if args.smooth != nil || channels != padded {
                smooth(args, x, start: start, channels: channels, padded: padded, into: smoothed)
                x = UnsafePointer(smoothed)
            }
            let local = range(x, padded)
            // NaN is kept.
            top = local > top || local != local ? local : top
            start += padded
        }
        args.scales[row * groups] = rounded(top / 127, args.x.type)
    }
}

/// Computes the scale, the codes and their sum for one group.
@_transparent
private func encode(
    _ args: QuantizeArguments, _ v: UnsafePointer<Float>, tokenScale: Float, codes: UnsafeMutablePointer<UInt8>, place: Int
) {
    var scale = tokenScale
    switch args.coding {
    case .float, .int8PerToken: break
    case .int8PerGroup: scale = range(v, args.groupSize) * (1 / 127)
    case .int4: scale = range(v, args.groupSize) * (1 / 7)
    case .uint4: scale = range(v, args.groupSize) * (1 / 15)
    case .fp4:
        scale = minimumOf(range(v, args.groupSize) * (1 / 6), 448)
        // The smallest scale of E4M3. A lower one would round to 0, or to up to twice itself. NaN and 0 are kept.
        if scale > 0 && scale < 0.001_953_125 { scale = 0.001_953_125 }
    }
    // Below the normal numbers 1 / scale overflows. Such groups, and those of zeros, have codes of 0. NaN passes.
    let isZero = scale < Float(bitPattern: 0x0080_0000)
    var stored = args.coding == .fp4 ? roundedToE4M3(scale) * 0.5 : rounded(scale, args.x.type)
    if isZero { stored = 0 }
    let factor = splat(isZero ? 0 : 1 / scale)
    let divisor = splat(isZero ? .infinity : scale)
    let zero = IntVector(repeating: args.zeroCode)
    let vectors = args.groupSize / laneCount
    var sum = IntVector(repeating: 0)
    // Values that are not finite may get any code, because the group's scale is NaN then.
    switch args.coding {
    case .fp4:
        for x in 0..<vectors {
            let code = nearest(doubledE2M1(load(v + x * laneCount) * factor))
            sum = sum &+ code
            storeLowBytes(code &+ zero, codes + x * laneCount)
        }
    case .int8PerToken:
        // Quotients are products with 1 / scale unless one of them is so near to a half that its rounding could be another one: the
        // product is within 256·2⁻²³ of the quotient, whose own rounding is at most 256·2⁻²⁵. Of 128 values one in 64 times.
        // Huge scales have reciprocals that are not exact.
        var farthest = splat(0)
        for x in 0..<vectors {
            // If 16 bits round the scale down far, quotients exceed 127.
            let quotient = maximum(minimum(load(v + x * laneCount) * factor, splat(127)), splat(-127))
            let code = nearest(quotient)
            farthest = maximum(magnitude(quotient - floats(code)), farthest)
            sum = sum &+ code
            storeLowBytes(code &+ zero, codes + x * laneCount)
        }
        if signBits(splat(0.5 - 0x1p-14) - farthest) == 0 && scale < 0x1p100 { break }
        sum = IntVector(repeating: 0)
        for x in 0..<vectors {
            let code = nearest(maximum(minimum(load(v + x * laneCount) / divisor, splat(127)), splat(-127)))
            sum = sum &+ code
            storeLowBytes(code &+ zero, codes + x * laneCount)
        }
    default:
        // Unsigned codes may come from values slightly below 0.
        let lowest = IntVector(repeating: args.coding == .uint4 ? 0 : -127)
        for x in 0..<vectors {
            let code = maximum(nearest(load(v + x * laneCount) * factor), lowest)
            sum = sum &+ code
            storeLowBytes(code &+ zero, codes + x * laneCount)
        }
    }
    args.scales[place] = stored
    if args.needsSums { args.sums[place] = stored * laneSum(floats(sum)) }
}

@_transparent
private func minimumOf(_ a: Float, _ b: Float) -> Float { b < a ? b : a }

/// Twice the E2M1 value nearest to x, ties to the even code, saturated at 6. Steps are ½ up to 2, 1 up to 4, and 2 beyond.
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

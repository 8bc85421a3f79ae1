// Tokens into a pool and out of it: rows of floats become rows of a cache's format and back, and pages get their metadata.
//
// Quantised rows are s·code + m with m the smallest value, rounded down, and s = (max − m)/(2ᵇ − 1), rounded up: the codes cover the row
// whatever half precision does to m and s, and no element is off by more than s/2. Or they follow QServe's and LServe's KV4 and KV8:
// s = half((max − min)/(2ᵇ − 1)), z = half(−(2ᵇ − 1)·min/(max − min)), code = nearest(x/s + z). See `TokenLayout` for the places of codes.

public import KernelInterface

/// See `StoreTokensArguments`.
public func storeTokens(_ arguments: UnsafePointer<StoreTokensArguments>) {
    let args = arguments.pointee
    let channels = args.target.channels
    let padded = TokenLayout.padded(channels)
    let row = args.scratch
    for channel in channels..<padded { row[channel] = 0 }
    for token in 0..<args.count {
        stage(args.rows, first: args.first + token, count: 1, channels: channels, into: row)
        if args.target.format.isQuantized {
            let codes = UnsafeMutableRawPointer(row + padded).assumingMemoryBound(to: Int32.self)
            let (low, high) = range(of: row, channels: channels)
            if args.target.offsetKind == .minimum {
                encodeFromMinimum(row, low: low, high: high, args.target, slot: args.slot + token, codes: codes)
            } else {
                encodeFromZeroPoint(row, low: low, high: high, args.target, slot: args.slot + token, codes: codes)
            }
            place(codes, args.target, slot: args.slot + token)
        } else {
            storeFloats(row, args.target, slot: args.slot + token, count: padded)
        }
    }
}

/// A row of floats in a float format; `count` is a multiple of `laneCount`.
@_transparent
private func storeFloats(_ row: UnsafePointer<Float>, _ target: TokenOperand, slot: Int, count: Int) {
    let base = target.base + slot * target.stride
    var x = 0
    while x < count {
        let value = load(row + x)
        switch target.format {
        case .float32: store(value, base.assumingMemoryBound(to: Float.self) + x)
        case .bfloat16: storeLowHalves(bfloat16Bits(value), base.assumingMemoryBound(to: UInt16.self) + x)
        default: storeLowHalves(halfBits(value), base.assumingMemoryBound(to: UInt16.self) + x)
        }
        x += laneCount
    }
}

/// The smallest and the largest element of a row.
@inline(never)
private func range(of row: UnsafePointer<Float>, channels: Int) -> (low: Float, high: Float) {
    let whole = channels / laneCount * laneCount
    var (low, high) = (row[0], row[0])
    if whole > 0 {
        var (lowest, highest) = (load(row), load(row))
        var x = laneCount
        while x < whole {
            lowest = minimum(lowest, load(row + x))
            highest = maximum(highest, load(row + x))
            x += laneCount
        }
        for lane in 0..<laneCount {
            low = lowest[lane] < low ? lowest[lane] : low
            high = highest[lane] > high ? highest[lane] : high
        }
    }
    for channel in whole..<channels {
        low = row[channel] < low ? row[channel] : low
        high = row[channel] > high ? row[channel] : high
    }
    return (low, high)
}

/// Minimum, scale and codes of a row.
@inline(never)
private func encodeFromMinimum(
    _ row: UnsafePointer<Float>, low: Float, high: Float, _ target: TokenOperand, slot: Int,
    codes: UnsafeMutablePointer<Int32>
) {
    let limit = Float(target.format.maximumCode)
    let offset = halfBelow(low)
    let minimumValue = widenHalf(offset)
    let scale = halfAbove((high - minimumValue) / limit)
    // A row of one half: all codes are 0.
    let inverse = splat(scale == 0 ? 0 : 1 / widenHalf(scale))
    let (first, bottom, top) = (splat(minimumValue), splat(0), splat(limit))
    var x = 0
    while x < target.channels {
        let code = nearest(minimum(maximum((load(row + x) - first) * inverse, bottom), top))
        UnsafeMutableRawPointer(codes + x).storeBytes(of: code, as: IntVector.self)
        x += laneCount
    }
    target.scales![slot] = scale
    target.offsets![slot] = offset
}

/// Scale, zero point and codes of a row by the published rule.
@inline(never)
private func encodeFromZeroPoint(
    _ row: UnsafePointer<Float>, low: Float, high: Float, _ target: TokenOperand, slot: Int,
    codes: UnsafeMutablePointer<Int32>
) {
    let channels = target.channels
    let limit = Float(target.format.maximumCode)
    let range = high - low
    let scale = widenHalf(finiteHalf(narrowToHalf(range / limit)))
    let zero = widenHalf(narrowToHalf(-limit * low / range))
    if !(range > 0) || scale == 0 || zero - zero != 0 {
        // All channels are equal, as far as half-precision scales can tell: codes are 0, and the value is s·2ᵏ with z = ∓2ᵏ. k is as large
        // as leaves s all of its bits, because weights in integers are rounded to parts of the largest scale.
        let value = finiteHalf(narrowToHalf(high < 0 ? -high : high))
        let exponent = value &>> 10
        let k = exponent == 0 ? 0 : exponent < 15 ? exponent &- 1 : 14
        target.scales![slot] = value &- k &<< 10
        target.offsets![slot] = value == 0 ? 0 : (k &+ 15) &<< 10 | (high > 0 ? 0x8000 : 0)
        for channel in 0..<channels { codes[channel] = 0 }
        return
    }
    let inverse = splat(1 / scale)
    let (bottom, top) = (splat(0), splat(limit))
    var x = 0
    while x < channels {
        // Not fused, as in the released code.
        let value = load(row + x) * inverse + splat(zero)
        let code = nearest(minimum(maximum(value, bottom), top))
        UnsafeMutableRawPointer(codes + x).storeBytes(of: code, as: IntVector.self)
        x += laneCount
    }
    target.scales![slot] = narrowToHalf(scale)
    target.offsets![slot] = narrowToHalf(zero)
}

/// The largest finite half instead of infinity.
@_transparent
private func finiteHalf(_ bits: UInt16) -> UInt16 { bits == 0x7c00 ? 0x7bff : bits }

/// Codes to their places.
@inline(never)
private func place(_ codes: UnsafePointer<Int32>, _ target: TokenOperand, slot: Int) {
    let channels = target.channels
    if !target.isGrouped {
        let bytes = (target.base + slot * target.stride).assumingMemoryBound(to: UInt8.self)
        if target.format == .int8 {
            for channel in 0..<channels { bytes[channel] = UInt8(truncatingIfNeeded: codes[channel]) }
        } else {
            for pair in 0..<channels / 2 {
                bytes[pair] = UInt8(truncatingIfNeeded: codes[2 * pair] | (codes[2 * pair + 1] &<< 4))
            }
            if channels & 1 == 1 { bytes[channels / 2] = UInt8(truncatingIfNeeded: codes[channels - 1]) }
        }
        return
    }
    let offset = slot & 7
    let group = target.base + (slot >> 3) * target.stride
    if target.format == .int8 {
        let bytes = group.assumingMemoryBound(to: UInt8.self) + (offset >> 2) * 4 * TokenLayout.padded(channels) + (offset & 3)
        for channel in 0..<channels { bytes[4 * channel] = UInt8(truncatingIfNeeded: codes[channel]) }
    } else {
        let bytes = group.assumingMemoryBound(to: UInt8.self) + (offset >> 1)
        let shift = UInt8(truncatingIfNeeded: 4 * (offset & 1))
        let kept: UInt8 = offset & 1 == 0 ? 0xf0 : 0x0f
        for channel in 0..<channels {
            bytes[4 * channel] = (bytes[4 * channel] & kept) | (UInt8(truncatingIfNeeded: codes[channel]) &<< shift)
        }
    }
}

// MARK: - Out

/// Adjacent slots as adjacent rows of floats: (tokens, first slot, count, destination).
@inline(never)
public func loadTokens(
    _ source: TokenOperand, slot: Int, count: Int, into target: UnsafeMutablePointer<Float>
) {
    let channels = source.channels
    if !source.format.isQuantized {
        let type: StorageType =
            source.format == .float32 ? .float32 : source.format == .float16 ? .float16 : .bfloat16
        let stride = source.stride / (type == .float32 ? 4 : 2)
        stage(
            RowOperand(base: source.base, stride: stride, type: type), first: slot, count: count, channels: channels,
            into: target)
        return
    }
    for token in 0..<count {
        let place = slot + token
        let scale = widenHalf(source.scales![place])
        let start = widenHalf(source.offsets![place])
        let row = target + token * channels
        let offset = place & 7
        for channel in 0..<channels {
            var code: UInt8
            switch (source.format == .int8, source.isGrouped) {
            case (true, false): code = byte(source.base, place * source.stride + channel)
            case (false, false): code = byte(source.base, place * source.stride + channel / 2) &>> (channel & 1 == 1 ? 4 : 0)
            case (true, true):
                let words = (place >> 3) * source.stride + (offset >> 2) * 4 * TokenLayout.padded(channels)
                code = byte(source.base, words + 4 * channel + (offset & 3))
            case (false, true):
                let words = (place >> 3) * source.stride
                code = byte(source.base, words + 4 * channel + (offset >> 1)) &>> (offset & 1 == 1 ? 4 : 0)
            }
            if source.format == .int4 { code &= 0xf }
            row[channel] =
                source.offsetKind == .minimum ? Float(code) * scale + start : (Float(code) - start) * scale
        }
    }
}

@_transparent
private func byte(_ base: UnsafeMutableRawPointer, _ offset: Int) -> UInt8 {
    base.load(fromByteOffset: offset, as: UInt8.self)
}

// MARK: - Page metadata

/// See `SummarizeTokensArguments`.
public func summarizeTokens(_ arguments: UnsafePointer<SummarizeTokensArguments>) {
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

/// A row of metadata in its format: largest values rounded up, smallest down, means to nearest.
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
        // One code is spare for what is rounded up.
        let scale = halfAbove((high - first) / 254)
        let inverse = scale == 0 ? 0 : 1 / widenHalf(scale)
        // More than the rounding errors of the division.
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

/// The largest half that is not above a value, within the finite ones.
@_transparent
private func halfBelow(_ value: Float) -> UInt16 { halfAbove(-value) ^ 0x8000 }

/// The smallest half that is not below a value, within the finite ones.
@_transparent
private func halfAbove(_ value: Float) -> UInt16 {
    var bits = narrowToHalf(value)
    if widenHalf(bits) < value { bits = bits & 0x8000 == 0 ? bits + 1 : bits - 1 }
    return bits == 0x7c00 ? 0x7bff : bits == 0xfc00 ? 0xfbff : bits
}

// Stores rows of floats as tokens of a pool, in its format and layout (`TokenLayout`). LoadTokens.swift reads them back.
//
// Quantised rows are s·code + m, where m is the smallest value rounded down and s = (max − m)/(2ᵇ − 1) rounded up. So the codes
// cover the row despite the rounding of m and s to half precision, and no element is off by more than s/2. Or they follow KV4
// and KV8 of QServe and LServe: s = half((max − min)/(2ᵇ − 1)), z = half(−(2ᵇ − 1)·min/(max − min)), code = nearest(x/s + z).
// 4-bit codes above an offset may also be fitted to the row (FitCodes.swift).

public import KernelInterface

extension Kernels {
    /// See `StoreTokensArguments`.
    public static func storeTokens(_ arguments: UnsafePointer<StoreTokensArguments>) {
        let args = arguments.pointee
        let channels = args.target.channels
        let padded = TokenLayout.padded(channels)
        let row = args.scratch
        for channel in channels..<padded { row[channel] = 0 }
        for token in 0..<args.count {
            Kernels.stageRows(args.rows, first: args.first + token, count: 1, channels: channels, into: row)
            if args.target.format.isQuantized {
                let codes = UnsafeMutableRawPointer(row + padded).assumingMemoryBound(to: Int32.self)
                let (low, high) = range(of: row, channels: channels)
                if args.target.offsetKind == .minimum {
                    encodeFromMinimum(
                        row, low: low, high: high, args.target, fits: args.fitsCodes, slot: args.slot + token, codes: codes)
                } else {
                    encodeFromZeroPoint(row, low: low, high: high, args.target, slot: args.slot + token, codes: codes)
                }
                place(codes, args.target, slot: args.slot + token)
            } else {
                storeFloats(row, args.target, slot: args.slot + token, count: padded)
            }
        }
    }
}

/// Stores a row of floats in a float format. `count` is a multiple of `laneCount`.
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

/// Computes and stores minimum and scale of a row, or those that fit it better, and computes its codes.
@inline(never)
private func encodeFromMinimum(
    _ row: UnsafePointer<Float>, low: Float, high: Float, _ target: TokenOperand, fits: Bool, slot: Int,
    codes: UnsafeMutablePointer<Int32>
) {
    let limit = Float(target.format.maximumCode)
    var offset = halfBelow(low)
    var scale = halfAbove((high - widenHalf(offset)) / limit)
    if fits && target.format == .int4 {
        let steps = UnsafeMutableRawPointer(codes).assumingMemoryBound(to: Float.self)
        fitCodes(row, low: low, high: high, channels: target.channels, steps: steps, scale: &scale, offset: &offset)
    }
    let minimumValue = widenHalf(offset)
    // If all elements are one half-precision number, all codes are 0.
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

/// Computes and stores scale and zero point of a row by the published rule, and computes its codes.
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
        // All channels are equal, as far as half-precision scales can tell. Codes are 0, and the value is s·2ᵏ with z = ∓2ᵏ. k
        // is the largest that leaves s all of its bits, because integer weights are rounded to parts of the largest scale.
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

/// Replaces infinity by the largest finite half.
@_transparent
private func finiteHalf(_ bits: UInt16) -> UInt16 { bits == 0x7c00 ? 0x7bff : bits }

/// Writes codes to their places in the layout.
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

// MARK: - Half precision, rounded to one side

/// The largest finite half that is not above a value.
@_transparent
func halfBelow(_ value: Float) -> UInt16 { halfAbove(-value) ^ 0x8000 }

/// The smallest finite half that is not below a value.
@_transparent
func halfAbove(_ value: Float) -> UInt16 {
    var bits = narrowToHalf(value)
    if widenHalf(bits) < value { bits = bits & 0x8000 == 0 ? bits + 1 : bits - 1 }
    return bits == 0x7c00 ? 0x7bff : bits == 0xfc00 ? 0xfbff : bits
}

/// The smallest finite halves that are not below the lanes, in the low halves of the results. See `halfAbove`.
@_transparent
func halvesAbove(_ value: Vector) -> IntVector {
    var bits = halfBits(value)
    let (zero, one) = (IntVector(repeating: 0), IntVector(repeating: 1))
    let sign = bits &>> 15
    // One step up is one more where the half is positive, and one less where it is negative.
    let step = one &- sign &- sign
    bits = bits &+ zero.replacing(with: step, where: roundedToHalf(value) .< value)
    // Infinities become the largest finite numbers.
    let isInfinite = (bits & 0x7fff) .== IntVector(repeating: 0x7c00)
    return bits &- zero.replacing(with: one, where: isInfinite)
}

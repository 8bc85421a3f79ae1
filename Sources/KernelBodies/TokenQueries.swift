// Queries on their way to the kernels of a cache: rows of floats into the order in which tiles read them, or into 16-bit codes; and the scales
// of quantised tokens.

import KernelInterface

/// Bytes of the packed queries of four rows: floats, or 16-bit codes with scales and sums of codes for each row behind them.
@_transparent
func packedQueryBytes(_ channels: Int) -> Int { (channels + 63) / 64 * 64 * 16 + 32 }

/// Four rows for `scoreBlock`, times `scale`. Rows past `rows` are zero.
///
/// Floats: [vector][row][lane]. Codes: [step][half][row][lane] with the halves of INT4 being the even and the odd channels, then
/// four scales and four sums of codes.
@inline(never)
func packTokenQueries(
    _ query: UnsafePointer<Float>, stride: Int, rows: Int, channels: Int, format: TokenFormat, scale: Float,
    into packed: UnsafeMutableRawPointer
) {
    if !format.isQuantized {
        packFloats(query, stride: stride, rows: rows, channels: channels, scale: scale, into: packed)
    } else {
        packCodes(query, stride: stride, rows: rows, channels: channels, format: format, scale: scale, into: packed)
    }
}

@_transparent
private func packFloats(
    _ query: UnsafePointer<Float>, stride: Int, rows: Int, channels: Int, scale: Float, into packed: UnsafeMutableRawPointer
) {
    let target = packed.assumingMemoryBound(to: Float.self)
    let whole = channels / laneCount
    for row in 0..<4 {
        var place = target + row * laneCount
        for vector in 0..<TokenLayout.padded(channels) / laneCount {
            if row < rows && vector < whole {
                store(load(query + row * stride + vector * laneCount) * splat(scale), place)
            } else {
                store(splat(0), place)
                var channel = vector * laneCount
                while row < rows && channel < minimum(channels, (vector + 1) * laneCount) {
                    place[channel - vector * laneCount] = query[row * stride + channel] * scale
                    channel += 1
                }
            }
            place += 4 * laneCount
        }
    }
}

@_transparent
private func packCodes(
    _ query: UnsafePointer<Float>, stride: Int, rows: Int, channels: Int, format: TokenFormat, scale: Float,
    into packed: UnsafeMutableRawPointer
) {
    let codes = packed.assumingMemoryBound(to: Int16.self)
    let factors = (packed + packedQueryBytes(channels) - 32).assumingMemoryBound(to: Float.self)
    let width = 2 * laneCount
    for x in 0..<(channels + 63) / 64 * 64 * 4 { codes[x] = 0 }
    // No sum of products leaves 32 bits: 2³¹ / (channels · largest code), which is more than 2¹⁵ up to 256 channels.
    let limit = Float(minimum(32_767, Int(Int32.max) / (channels * format.maximumCode)))
    let whole = channels / laneCount * laneCount
    for row in 0..<4 {
        factors[row] = 0
        factors[4 + row] = 0
        if row >= rows { continue }
        let source = query + row * stride
        // NaN and infinity come out of x − x as NaN.
        var (largest, difference) = (splat(0), splat(0))
        var x = 0
        while x < whole {
            let value = load(source + x)
            largest = maximum(magnitude(value), largest)
            difference = difference + (value - value)
            x += laneCount
        }
        var top: Float = 0
        for lane in 0..<laneCount { top = largest[lane] > top ? largest[lane] : top }
        var rest = laneSum(difference)
        for channel in whole..<channels {
            let value = source[channel]
            rest += value - value
            top = value > top ? value : -value > top ? -value : top
        }
        if rest != 0 || top == 0 {
            factors[row] = rest != 0 ? .nan : 0
            continue
        }
        let inverse = limit / top
        var sum: Int32 = 0
        for channel in 0..<channels {
            // |x| ≤ 2¹⁵: adding 1.5·2²³ leaves the nearest integer in the low bits.
            let shifted = source[channel] * inverse + 12_582_912
            let code = Int32(bitPattern: shifted.bitPattern) &- 0x4b40_0000
            sum &+= code
            let place: Int
            if format == .int4 {
                place = ((channel / (2 * width) * 2 + (channel & 1)) * 4 + row) * width + channel % (2 * width) / 2
            } else {
                place = (channel / width * 4 + row) * width + channel % width
            }
            codes[place] = Int16(truncatingIfNeeded: code)
        }
        factors[row] = top / limit * scale
        factors[4 + row] = Float(sum)
    }
}

/// Scales and zero points of a step of slots as floats, first `block` scales, then `block` zero points. Asks for those of the next step:
/// a miss here would be waited for. `left` slots of the list are not done yet.
@inline(never)
func gatherScales(
    _ tokens: TokenOperand, _ slots: UnsafePointer<Int32>, count: Int, left: Int, into target: UnsafeMutablePointer<Float>
) {
    if !tokens.format.isQuantized { return }
    let zeros = target + TokenScratch.block
    var token = TokenScratch.block
    while token < minimum(left, 2 * TokenScratch.block) {
        prefetchNear(tokens.scales! + Int(slots[token]))
        prefetchNear(tokens.zeros! + Int(slots[token]))
        token += 16
    }
    token = 0
    while token < count {
        let slot = Int(slots[token])
        // Slots of a page ascend, and a page holds whole vectors: if both ends lie in an aligned run, so does all between. Without the
        // alignment, a list may leave a page, visit another, and come back to the next page of the pool.
        if slot % laneCount == 0 && token + laneCount <= count && Int(slots[token + laneCount - 1]) == slot + laneCount - 1 {
            store(loadHalf(tokens.scales! + slot), target + token)
            store(loadHalf(tokens.zeros! + slot), zeros + token)
            token += laneCount
        } else {
            target[token] = widenHalf(tokens.scales![slot])
            zeros[token] = widenHalf(tokens.zeros![slot])
            token += 1
        }
    }
}

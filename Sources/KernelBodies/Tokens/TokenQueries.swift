// Packs queries for the kernels of a cache, as floats in the order in which tiles read them or as 16-bit codes, and gathers the
// scales of quantised tokens.

import KernelInterface

/// The factors that follow the codes of four rows, four floats each: the value f of one code, the term t to subtract from a sum
/// of products of codes, the sum of the query, and the terms a per |offset| and b per scale that make a score an upper bound.
///
///     score = s·f·(Σ q̂·code − t) + c·Σ q + |c|·a + s·b
///
/// Queries are rounded to 16-bit codes q̂; keys are s·code + m. The offset is multiplied with the exact query, so that keys far
/// from 0 lose no precision. With t = middle·Σ q̂ and c = m + middle·s, the error of q̂ is multiplied with code − middle.
typealias QueryFactors = (
    code: UnsafeMutablePointer<Float>, total: UnsafeMutablePointer<Float>, sum: UnsafeMutablePointer<Float>,
    perOffset: UnsafeMutablePointer<Float>, perScale: UnsafeMutablePointer<Float>
)

@_transparent
func queryFactors(_ packed: UnsafeMutableRawPointer, channels: Int) -> QueryFactors {
    let end = packed + TokenScratch.queryBytes(channels)
    let first = (end - 5 * 4 * TokenScratch.rowTile).assumingMemoryBound(to: Float.self)
    return (first, first + 4, first + 8, first + 12, first + 16)
}

/// The code that products subtract from codes. Bounds use 0, because only with codes that are not negative does a query that is
/// rounded up give a score that is rounded up.
@_transparent
func pivot(_ format: TokenFormat, isBound: Bool) -> Float { isBound || !format.isQuantized ? 0 : Float(format.middleCode) }

/// Packs four rows for `scoreBlock`, times `scale`. Rows from `rows` on are zero.
///
/// Floats are [vector][row][lane]. Codes are [step][half][row][lane], where the halves of INT4 are the even and the odd
/// channels, followed by `QueryFactors`.
@inline(never)
func packTokenQueries(
    _ query: UnsafePointer<Float>, stride: Int, rows: Int, channels: Int, format: TokenFormat, scale: Float, isBound: Bool,
    into packed: UnsafeMutableRawPointer
) {
    if !format.isQuantized {
        packFloats(query, stride: stride, rows: rows, channels: channels, scale: scale, into: packed)
    } else {
        packCodes(
            query, stride: stride, rows: rows, channels: channels, format: format, scale: scale, isBound: isBound, into: packed)
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
    _ query: UnsafePointer<Float>, stride: Int, rows: Int, channels: Int, format: TokenFormat, scale: Float, isBound: Bool,
    into packed: UnsafeMutableRawPointer
) {
    let codes = packed.assumingMemoryBound(to: Int16.self)
    let factors = queryFactors(packed, channels: channels)
    for x in 0..<(channels + 63) / 64 * 64 * 4 { codes[x] = 0 }
    for x in 0..<20 { factors.code[x] = 0 }
    // The limit 2³¹ / (channels · largest code) keeps sums of products within 32 bits. It exceeds 2¹⁵ up to 256 channels.
    // Bounds may add 1 to a code.
    let limit = Float(minimum(32_767, Int(Int32.max) / (channels * format.maximumCode)) - (isBound ? 1 : 0))
    let middle = pivot(format, isBound: isBound)
    let whole = channels / laneCount * laneCount
    for row in 0..<rows {
        let source = query + row * stride
        // x − x is NaN for NaN and infinity.
        var (largest, difference, sums, magnitudes) = (splat(0), splat(0), splat(0), splat(0))
        var x = 0
        while x < whole {
            let value = load(source + x)
            largest = maximum(magnitude(value), largest)
            difference = difference + (value - value)
            sums = sums + value
            magnitudes = magnitudes + magnitude(value)
            x += laneCount
        }
        var top: Float = 0
        for lane in 0..<laneCount { top = largest[lane] > top ? largest[lane] : top }
        var (rest, sum, size) = (laneSum(difference), laneSum(sums), laneSum(magnitudes))
        for channel in whole..<channels {
            let value = source[channel]
            let magnitude = value < 0 ? -value : value
            rest += value - value
            sum += value
            size += magnitude
            top = magnitude > top ? magnitude : top
        }
        if rest != 0 {
            factors.code[row] = .nan
            continue
        }
        factors.sum[row] = sum * scale
        // The roundings of a sum of channels/laneCount terms per lane, of the sum over lanes, and of the rest.
        let unit: Float = 0x1p-24
        if isBound { factors.perOffset[row] = Float(whole / laneCount + 2 * laneCount + 8) * unit * size * scale }
        let inverse = limit / top
        if !(inverse < .infinity) {
            // All channels are 0, or so small that the inverse overflows.
            if isBound { factors.perScale[row] = 2 * Float(format.maximumCode) * size * scale }
            continue
        }
        var (total, extent): (Int32, Int32) = (0, 0)
        for channel in 0..<channels {
            let value = source[channel]
            // |x| ≤ 2¹⁵: adding 1.5·2²³ leaves the nearest integer in the low bits.
            let target = value * inverse
            var code = Int32(bitPattern: (target + 12_582_912).bitPattern) &- 0x4b40_0000
            // Rounds up, by more than the roundings of the factor and its inverse, 2¹⁵·2⁻²². 0 stays 0.
            if isBound && value != 0 && Float(code) < target + 0x1p-6 { code &+= 1 }
            total &+= code
            extent &+= code < 0 ? 0 &- code : code
            codes[codePlace(channel, row: row, format)] = Int16(truncatingIfNeeded: code)
        }
        let factor = top / limit * scale
        factors.code[row] = factor
        factors.total[row] = Float(total) * middle
        if isBound { factors.perScale[row] = 8 * unit * factor * Float(extent) * Float(format.maximumCode) }
    }
}

@_transparent
private func codePlace(_ channel: Int, row: Int, _ format: TokenFormat) -> Int {
    let width = 2 * laneCount
    if format != .int4 { return (channel / width * 4 + row) * width + channel % width }
    return ((channel / (2 * width) * 2 + (channel & 1)) * 4 + row) * width + channel % (2 * width) / 2
}

/// Gathers the scales s of a step of slots as floats, followed after `block` floats by c = m + pivot·s. Prefetches those of the
/// next step, because a miss here would stall. `left` slots remain in the list.
@inline(never)
func gatherScales(
    _ tokens: TokenOperand, _ slots: UnsafePointer<Int32>, count: Int, left: Int, pivot: Float,
    into target: UnsafeMutablePointer<Float>
) {
    if !tokens.format.isQuantized { return }
    let centres = target + TokenScratch.block
    var token = TokenScratch.block
    while token < minimum(left, 2 * TokenScratch.block) {
        prefetchNear(tokens.scales! + Int(slots[token]))
        prefetchNear(tokens.offsets! + Int(slots[token]))
        token += 16
    }
    token = 0
    while token < count {
        let slot = Int(slots[token])
        // Slots of a page ascend, and a page has whole vectors. So if both ends are in an aligned run of slots, all between
        // them are. Without alignment, a list may leave a page, visit another, and come back to the next page of the pool.
        if slot % laneCount == 0 && token + laneCount <= count && Int(slots[token + laneCount - 1]) == slot + laneCount - 1 {
            store(loadHalf(tokens.scales! + slot), target + token)
            store(loadHalf(tokens.offsets! + slot), centres + token)
            token += laneCount
        } else {
            target[token] = widenHalf(tokens.scales![slot])
            centres[token] = widenHalf(tokens.offsets![slot])
            token += 1
        }
    }
    // Whole vectors, because nothing between `count` and the end of the block is read.
    token = 0
    while token < count {
        let scale = load(target + token)
        let offset = load(centres + token)
        let centre =
            tokens.offsetKind == .minimum ? multiplyAdd(scale, splat(pivot), offset) : scale * (splat(pivot) - offset)
        store(centre, centres + token)
        token += laneCount
    }
}

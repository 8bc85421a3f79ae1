// P·V over quantised values of a cache, in integers.
//
// A value is s·code + m, or c + s·(code − h) with the middle code h and c = m + h·s:
//
//     Σ_t p·(s·code + m) = δ·Σ_t w·code + (Σ_t p·c − h·δ·Σ_t w)        w = nearest(p·s/δ) in 15 bits
//
// where δ follows from the largest p·s of the step. Sums of products are exact. Each weight is rounded by at most 2⁻¹⁶ of the
// step's largest, and that error is multiplied by code − h, at most half of the token's range. Offsets are summed in floats.
//
// These functions take no structs declared in bodies: one that several files share would emit weak functions.

import KernelInterface

/// The scratch of a step, and the floats between rows of the accumulator. See `attendTokens`.
typealias CodeSpace = (
    scores: UnsafeMutablePointer<Float>, scales: UnsafeMutablePointer<Float>, pairs: UnsafeMutablePointer<Int32>,
    groups: UnsafeMutablePointer<Int32>, accumulatorStride: Int
)

/// One step for four rows: scratch, the slots from this step to the end of the list and their number, the number of groups of
/// eight in the step, the accumulator, α of the rows, and the result of `quantizeWeights`.
typealias CodeStep = (
    space: CodeSpace, slots: UnsafePointer<Int32>, groups: Int, left: Int, accumulator: UnsafeMutablePointer<Float>,
    rescale: SIMD4<Float>, delta: SIMD4<Float>, base: SIMD4<Float>
)

/// Repeats the scales of the step's values for the rows, and lists its groups of eight slots. Returns the number of groups.
@inline(never)
func prepareValues(
    _ args: AttendTokensArguments, _ slots: UnsafePointer<Int32>, count: Int, left: Int, _ space: CodeSpace
) -> Int {
    // This reuses the memory of the scores, which are computed later.
    let staged = space.scores
    gatherScales(
        args.value, slots, count: count, left: left, pivot: pivot(args.value.format, isBound: false), into: staged)
    let scales = space.scales + 2 * TokenScratch.block
    let centres = scales + TokenScratch.rowTile * TokenScratch.block
    for token in 0..<count {
        let s = SIMD4<Float>(repeating: staged[token])
        let c = SIMD4<Float>(repeating: staged[TokenScratch.block + token])
        UnsafeMutableRawPointer(scales + 4 * token).storeBytes(of: s, as: SIMD4<Float>.self)
        UnsafeMutableRawPointer(centres + 4 * token).storeBytes(of: c, as: SIMD4<Float>.self)
    }
    // Lanes past the last token have no weight, but must not be NaN.
    var x = 4 * count
    while x % laneCount != 0 {
        scales[x] = 0
        centres[x] = 0
        x += 1
    }
    var groups = 0
    var previous: Int32 = -1
    for token in 0..<count {
        let group = slots[token] >> 3
        if group != previous {
            space.groups[groups] = group
            groups += 1
            previous = group
        }
    }
    return groups
}

/// Quantises weights to 16-bit pairs, [group][pair][row]. Returns δ and Σ p·c − h·δ·Σ w of the rows.
@inline(never)
func quantizeWeights(
    _ space: CodeSpace, _ slots: UnsafePointer<Int32>, count: Int, end: Int, isByte: Bool
) -> (delta: SIMD4<Float>, base: SIMD4<Float>) {
    let weights = space.scores
    let scales = space.scales + 2 * TokenScratch.block
    let centres = scales + TokenScratch.rowTile * TokenScratch.block
    var (largest, offsets) = (splat(0), splat(0))
    var x = 0
    while x < end {
        let p = load(weights + x)
        offsets = multiplyAdd(p, load(centres + x), offsets)
        let weight = p * load(scales + x)
        largest = maximum(weight, largest)
        store(weight, weights + x)
        x += laneCount
    }
    let top = foldMaximum(largest)
    let inverse = (SIMD4<Float>(repeating: 32_767) / top).replacing(
        with: SIMD4(repeating: 0), where: top .< SIMD4(repeating: 0x1p-100))
    let factor = repeatFour(inverse)
    var total = splat(0)
    x = 0
    while x < end {
        let code = nearest(load(weights + x) * factor)
        total = total + floats(code)
        UnsafeMutableRawPointer(weights + x).storeBytes(of: code, as: IntVector.self)
        x += laneCount
    }
    let codes = UnsafeRawPointer(weights)
    var token = 0
    var group = -1
    var previous: Int32 = -1
    while token < count {
        let slot = slots[token]
        if slot & 7 == 0 && token + 8 <= count && slots[token + 7] == slot + 7 {
            group += 1
            previous = slot >> 3
            let source = codes + 16 * token
            let target = UnsafeMutableRawPointer(space.pairs + 16 * group)
            for pair in 0..<4 {
                // Pairs are slots (j, j + 4) of eight, or (j, j + 2) of four.
                let low = isByte ? (pair >> 1) * 4 + (pair & 1) : pair
                let high = isByte ? low + 2 : low + 4
                let a = (source + 16 * low).loadUnaligned(as: SIMD4<Int32>.self)
                let b = (source + 16 * high).loadUnaligned(as: SIMD4<Int32>.self)
                target.storeBytes(of: a | (b &<< 16), toByteOffset: 16 * pair, as: SIMD4<Int32>.self)
            }
            token += 8
            continue
        }
        if slot >> 3 != previous {
            group += 1
            previous = slot >> 3
            for i in 0..<16 { space.pairs[16 * group + i] = 0 }
        }
        let offset = Int(slot & 7)
        let pair = isByte ? (offset >> 2) * 2 + (offset & 1) : offset & 3
        let half = isByte ? (offset >> 1) & 1 : offset >> 2
        let target = UnsafeMutableRawPointer(space.pairs + 16 * group + 4 * pair).assumingMemoryBound(to: Int16.self)
        let code = (codes + 16 * token).assumingMemoryBound(to: Int32.self)
        for r in 0..<4 { target[2 * r + half] = Int16(truncatingIfNeeded: code[r]) }
        token += 1
    }
    let delta = top * SIMD4(repeating: 1 / 32_767)
    let middle = SIMD4<Float>(repeating: isByte ? 128 : 8)
    return (delta, foldSum(offsets) - middle * delta * foldSum(total))
}

private typealias CodeChannels = (x0: CodeVector, x1: CodeVector, x2: CodeVector, x3: CodeVector)
private typealias CodeTileRows = (r0: CodeChannels, r1: CodeChannels, r2: CodeChannels, r3: CodeChannels)

@_transparent
private func add(_ sums: inout CodeChannels, _ pair: Int32, _ v: CodeChannels) {
    let weight = splatWord(pair)
    sums.x0 = addPairProducts(sums.x0, v.x0, weight)
    sums.x1 = addPairProducts(sums.x1, v.x1, weight)
    sums.x2 = addPairProducts(sums.x2, v.x2, weight)
    sums.x3 = addPairProducts(sums.x3, v.x3, weight)
}

@_transparent
private func add(_ tile: inout CodeTileRows, _ pairs: UnsafePointer<Int32>, _ v: CodeChannels) {
    add(&tile.r0, pairs[0], v)
    add(&tile.r1, pairs[1], v)
    add(&tile.r2, pairs[2], v)
    add(&tile.r3, pairs[3], v)
}

/// Extracts one field of every word of `width` vectors, shifted down by `shift` bits.
@_transparent
private func fields(_ words: UnsafeRawPointer, shift: Int32, mask: Int32, width: Int) -> CodeChannels {
    let bytes = 4 * laneCount
    let x0 = field(words, shift, mask)
    let x1 = width > 1 ? field(words + bytes, shift, mask) : x0
    let x2 = width > 2 ? field(words + 2 * bytes, shift, mask) : x0
    let x3 = width > 2 ? field(words + 3 * bytes, shift, mask) : x0
    return (x0, x1, x2, x3)
}

@_transparent
private func field(_ words: UnsafeRawPointer, _ shift: Int32, _ mask: Int32) -> CodeVector {
    let word = words.loadUnaligned(as: IntVector.self)
    return codes((word &>> IntVector(repeating: shift)) & IntVector(repeating: mask))
}

/// O ← α·O + δ·sums + base for one row.
@_transparent
private func accumulate(
    _ sums: CodeChannels, _ target: UnsafeMutablePointer<Float>, _ alpha: Float, _ delta: Float, _ base: Float, width: Int
) {
    let scale = splat(delta)
    let offset = splat(base)
    accumulate(
        (
            multiplyAdd(floats(byteSums(sums.x0)), scale, offset),
            multiplyAdd(floats(byteSums(sums.x1)), scale, offset),
            multiplyAdd(floats(byteSums(sums.x2)), scale, offset),
            multiplyAdd(floats(byteSums(sums.x3)), scale, offset)
        ), target, alpha, width: width)
}

@_transparent
private func addCodes(_ args: AttendTokensArguments, _ step: CodeStep, vector: Int, isByte: Bool, width: Int) {
    let nothing = splatWord(0)
    let zero = (nothing, nothing, nothing, nothing)
    var tile: CodeTileRows = (zero, zero, zero, zero)
    let channel = vector * laneCount
    let stride = step.space.accumulatorStride
    for group in 0..<step.groups {
        // Prefetches the same part of the values one step ahead, into the second-level cache.
        let later = TokenScratch.block + TokenLayout.group * group
        if later < step.left {
            let row = args.value.base + Int(step.slots[later] >> 3) * args.value.stride + 4 * channel
            fetchFar(row, bytes: 4 * width * laneCount)
            if isByte { fetchFar(row + 4 * stride, bytes: 4 * width * laneCount) }
        }
        let words = UnsafeRawPointer(args.value.base + Int(step.space.groups[group]) * args.value.stride + 4 * channel)
        let pairs = step.space.pairs + 16 * group
        if isByte {
            let second = words + 4 * stride
            add(&tile, pairs, fields(words, shift: 0, mask: 0x00ff_00ff, width: width))
            add(&tile, pairs + 4, fields(words, shift: 8, mask: 0x00ff_00ff, width: width))
            add(&tile, pairs + 8, fields(second, shift: 0, mask: 0x00ff_00ff, width: width))
            add(&tile, pairs + 12, fields(second, shift: 8, mask: 0x00ff_00ff, width: width))
        } else {
            add(&tile, pairs, fields(words, shift: 0, mask: 0x000f_000f, width: width))
            add(&tile, pairs + 4, fields(words, shift: 4, mask: 0x000f_000f, width: width))
            add(&tile, pairs + 8, fields(words, shift: 8, mask: 0x000f_000f, width: width))
            add(&tile, pairs + 12, fields(words, shift: 12, mask: 0x000f_000f, width: width))
        }
    }
    let target = step.accumulator + channel
    accumulate(tile.r0, target, step.rescale[0], step.delta[0], step.base[0], width: width)
    accumulate(tile.r1, target + stride, step.rescale[1], step.delta[1], step.base[1], width: width)
    accumulate(tile.r2, target + 2 * stride, step.rescale[2], step.delta[2], step.base[2], width: width)
    accumulate(tile.r3, target + 3 * stride, step.rescale[3], step.delta[3], step.base[3], width: width)
}

/// All channels; see `addFloats`.
@_transparent
private func addQuantized(_ args: AttendTokensArguments, _ step: CodeStep, isByte: Bool) {
    let vectors = step.space.accumulatorStride / laneCount
    var vector = 0
    while vector < vectors {
        if tokenTile == 4 && vectors - vector >= 4 {
            addCodes(args, step, vector: vector, isByte: isByte, width: 4)
            vector += 4
        } else {
            // Integer sums have no latency to hide, and wider tiles would leave no registers for their operands.
            addCodes(args, step, vector: vector, isByte: isByte, width: 1)
            vector += 1
        }
    }
}

@inline(never)
func addInt8(_ args: AttendTokensArguments, _ step: CodeStep) { addQuantized(args, step, isByte: true) }

@inline(never)
func addInt4(_ args: AttendTokensArguments, _ step: CodeStep) { addQuantized(args, step, isByte: false) }

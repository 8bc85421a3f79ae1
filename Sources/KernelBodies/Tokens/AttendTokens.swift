// Decoding attention: a few query rows against a list of tokens of a cache, by online softmax over steps of 128 tokens.
//
//     S = q·K[slots]ᵀ      m ← max(m, S)      P = e^(S − m)      l ← α·l + ΣP      O ← α·O + P·V[slots]      α = e^(m_old − m)
//
// Rows are the query heads that share a key/value head, or queries of several sequences that share a prefix. Each step runs
// over groups of four rows: the first reads keys and values from memory, the others from caches. Scores and weights are
// [token][row], so that maxima and sums are vertical. The results are partial states (O, m, l), which MergeTokens.swift merges.
//
// Memory bounds decoding, so all loops prefetch. For formats see StoreTokens.swift, for quantised values TokenValueCodes.swift.

public import KernelInterface

/// Pointers into the scratch of one call.
private struct Workspace {
    var query: UnsafeMutableRawPointer
    var queryBytes: Int
    var scores: UnsafeMutablePointer<Float>
    /// Scales and centres of keys, followed by those of values, repeated for the four rows.
    var scales: UnsafeMutablePointer<Float>
    var pairs: UnsafeMutablePointer<Int32>
    var groups: UnsafeMutablePointer<Int32>
    var accumulator: UnsafeMutablePointer<Float>
    var accumulatorStride: Int
    var maxima: UnsafeMutablePointer<Float>
    var sums: UnsafeMutablePointer<Float>
}

@_transparent
private func codeSpace(_ space: Workspace) -> CodeSpace {
    (space.scores, space.scales, space.pairs, space.groups, space.accumulatorStride)
}

extension Kernels {
    /// See `AttendTokensArguments`.
    public static func attendTokens(_ arguments: UnsafePointer<AttendTokensArguments>) {
        let args = arguments.pointee
        let tile = TokenScratch.rowTile
        let tiles = (args.rows + tile - 1) / tile
        let layout = TokenScratch(headDim: args.key.channels, valueDim: args.value.channels, rows: args.rows)
        let stride = TokenLayout.padded(args.value.channels)
        let state = (args.scratch + layout.state).assumingMemoryBound(to: Float.self)
        let space = Workspace(
            query: args.scratch + layout.query, queryBytes: TokenScratch.queryBytes(args.key.channels),
            scores: (args.scratch + layout.scores).assumingMemoryBound(to: Float.self),
            scales: (args.scratch + layout.scales).assumingMemoryBound(to: Float.self),
            pairs: (args.scratch + layout.pairs).assumingMemoryBound(to: Int32.self),
            groups: (args.scratch + layout.groups).assumingMemoryBound(to: Int32.self),
            accumulator: state, accumulatorStride: stride, maxima: state + tiles * tile * stride,
            sums: state + tiles * tile * (stride + 1))
        for x in 0..<tiles * tile * stride { space.accumulator[x] = 0 }
        for x in 0..<tiles * tile {
            space.maxima[x] = -.infinity
            space.sums[x] = 0
        }
        for index in 0..<tiles {
            let row = index * tile
            packTokenQueries(
                args.query + row * args.queryStride, stride: args.queryStride, rows: minimum(tile, args.rows - row),
                channels: args.key.channels, format: args.key.format, scale: args.softmaxScale, isBound: false,
                into: space.query + index * space.queryBytes)
        }
        let pivot = pivot(args.key.format, isBound: false)
        var first = 0
        while first < args.count {
            let count = minimum(TokenScratch.block, args.count - first)
            let slots = args.slots + first
            gatherScales(args.key, slots, count: count, left: args.count - first, pivot: pivot, into: space.scales)
            let groups =
                args.value.format.isQuantized
                ? prepareValues(args, slots, count: count, left: args.count - first, codeSpace(space)) : 0
            let mayHide = hidesNonFinite(args, slots, first: first, count: count)
            for index in 0..<tiles {
                scoreBlock(
                    (args.key, slots, count), query: space.query + index * space.queryBytes, scales: space.scales,
                    following: (args.value, slots, count), left: args.count - first, into: space.scores)
                attendRows(
                    args, space, slots, first: first, count: count, groups: groups, row: index * tile, hidesNonFinite: mayHide)
            }
            first += count
        }
        for row in 0..<args.rows {
            let record = args.records + row * args.recordStride
            let source = space.accumulator + row * stride
            for x in 0..<stride / laneCount { store(load(source + x * laneCount), record + x * laneCount) }
            record[stride] = space.maxima[row]
            record[stride + 1] = space.sums[row]
        }
    }
}

/// Softmax and P·V of four rows whose scores are computed already.
@inline(never)
private func attendRows(
    _ args: AttendTokensArguments, _ space: Workspace, _ slots: UnsafePointer<Int32>, first: Int, count: Int, groups: Int,
    row: Int, hidesNonFinite: Bool
) {
    let scores = space.scores
    if args.logitsSoftCap > 0 {
        let cap = splat(args.logitsSoftCap)
        for x in 0..<(4 * count + laneCount - 1) / laneCount { capScores(scores + x * laneCount, cap: cap) }
    }
    if let aliBi = args.aliBi { addAliBi(aliBi, scores, first: first, count: count, row: row, rows: args.rows) }
    if let visible = args.visible {
        for r in 0..<minimum(TokenScratch.rowTile, args.rows - row) {
            var token = maximum(0, Int(visible[row + r]) - first)
            while token < count {
                scores[4 * token + r] = -.infinity
                token += 1
            }
        }
    }
    // From here on, scores are whole vectors of [token][row].
    var end = 4 * count
    while end % laneCount != 0 {
        scores[end] = -.infinity
        end += 1
    }
    let rescale = softmaxRows(scores, end: end, maxima: space.maxima + row, sums: space.sums + row)
    let accumulator = space.accumulator + row * space.accumulatorStride
    // Slots from this step to the end of the list.
    let left = args.count - first
    if args.value.format.isQuantized {
        let isByte = args.value.format == .int8
        let factors = quantizeWeights(codeSpace(space), slots, count: count, end: end, isByte: isByte)
        let step: CodeStep = (codeSpace(space), slots, groups, left, accumulator, rescale, factors.delta, factors.base)
        if isByte { addInt8(args, step) } else { addInt4(args, step) }
        return
    }
    let step = ValueStep(
        slots: slots, count: count, left: left, weights: scores, accumulator: accumulator,
        stride: space.accumulatorStride, rescale: rescale)
    if hidesNonFinite { addVisible(args, space, step, first: first, row: row) } else { addRows(args, step) }
}

/// Scores [token][row] of a step, plus slope·(j − t) or −slope·|j − t|.
@inline(never)
private func addAliBi(
    _ aliBi: TokenAliBi, _ scores: UnsafeMutablePointer<Float>, first: Int, count: Int, row: Int, rows: Int
) {
    var (slopes, places) = (SIMD4<Float>(repeating: 0), SIMD4<Int32>(repeating: 0))
    for r in 0..<minimum(TokenScratch.rowTile, rows - row) {
        slopes[r] = aliBi.slopes[row + r]
        places[r] = aliBi.rowPositions[row + r]
    }
    let slope = repeatFour(slopes)
    let place = unsafeBitCast(repeatFour(unsafeBitCast(places, to: SIMD4<Float>.self)), to: IntVector.self)
    // Integers are loaded as the bits of floats.
    let positions = UnsafeRawPointer(aliBi.positions + first).assumingMemoryBound(to: Float.self)
    var x = 0
    while x < 4 * count {
        let distance = floats(unsafeBitCast(repeatEach(positions + x / 4), to: IntVector.self) &- place)
        let term = aliBi.isSymmetric ? splat(0) - magnitude(distance) : distance
        store(multiplyAdd(slope, term, load(scores + x)), scores + x)
        x += laneCount
    }
}

/// Online softmax. Replaces scores by weights and returns α of the four rows.
@_transparent
private func softmaxRows(
    _ scores: UnsafeMutablePointer<Float>, end: Int, maxima: UnsafeMutablePointer<Float>, sums: UnsafeMutablePointer<Float>
) -> SIMD4<Float> {
    let before = UnsafeRawPointer(maxima).loadUnaligned(as: SIMD4<Float>.self)
    var m = repeatFour(before)
    var x = 0
    while x < end {
        m = maximum(load(scores + x), m)
        x += laneCount
    }
    let largest = foldMaximum(m)
    UnsafeMutableRawPointer(maxima).storeBytes(of: largest, as: SIMD4<Float>.self)
    m = repeatFour(largest)
    // A row that has seen no key yet has m = −∞. Subtracting 0 instead gives e^−∞ = 0 and no NaN.
    m = m.replacing(with: splat(0), where: m .== splat(-.infinity))
    let rescale = exp(repeatFour(before) - m)
    var total = splat(0)
    x = 0
    while x < end {
        let p = exp(load(scores + x) - m)
        total = total + p
        store(p, scores + x)
        x += laneCount
    }
    let alpha = foldMaximum(rescale)
    let l = UnsafeRawPointer(sums).loadUnaligned(as: SIMD4<Float>.self) * alpha + foldSum(total)
    UnsafeMutableRawPointer(sums).storeBytes(of: l, as: SIMD4<Float>.self)
    return alpha
}

// MARK: - Values in floats

/// The sums of one row, up to four vectors of channels wide.
typealias Channels = (x0: Vector, x1: Vector, x2: Vector, x3: Vector)
private typealias ValueTile = (r0: Channels, r1: Channels, r2: Channels, r3: Channels)

/// Vectors of channels per tile: 4 rows × 4 vectors are 16 of 32 registers, and 4 × 2 are 8 of 16.
@inline(__always)
private var valueVectors: Int { tokenTile }

@_transparent
private func add(_ sums: inout Channels, _ p: Float, _ v: Channels) {
    let weight = splat(p)
    sums.x0 = multiplyAdd(weight, v.x0, sums.x0)
    sums.x1 = multiplyAdd(weight, v.x1, sums.x1)
    sums.x2 = multiplyAdd(weight, v.x2, sums.x2)
    sums.x3 = multiplyAdd(weight, v.x3, sums.x3)
}

/// O ← α·O + sums for one row.
@_transparent
func accumulate(_ sums: Channels, _ target: UnsafeMutablePointer<Float>, _ alpha: Float, width: Int) {
    let factor = splat(alpha)
    store(multiplyAdd(load(target), factor, sums.x0), target)
    if width > 1 { store(multiplyAdd(load(target + laneCount), factor, sums.x1), target + laneCount) }
    if width > 2 {
        store(multiplyAdd(load(target + 2 * laneCount), factor, sums.x2), target + 2 * laneCount)
        store(multiplyAdd(load(target + 3 * laneCount), factor, sums.x3), target + 3 * laneCount)
    }
}

/// Tokens that all tiles of channels process before the next tokens: 16 rows of 128 channels are 4 or 8 KiB, which stay in the
/// first-level cache from tile to tile. Values are prefetched at the same distance.
@_transparent
private var valueStep: Int { 16 }

/// The tokens of a step, their weights, and the four rows of sums.
private struct ValueStep {
    var slots: UnsafePointer<Int32>
    /// Slots of the step, and slots from this step to the end of the list.
    var count: Int
    var left: Int
    /// [token][row].
    var weights: UnsafePointer<Float>
    var accumulator: UnsafeMutablePointer<Float>
    /// Floats between rows of the accumulator.
    var stride: Int
    /// α of the four rows.
    var rescale: SIMD4<Float>
}

/// The position of a tile in a step: its tokens, its first vector of channels, and its number among the `parts` tiles of a row.
private struct TilePlace {
    var first = 0
    var count = 0
    var vector = 0
    var part = 0
    var parts: Int
}

/// Prefetches a row of values of this step, or of keys of the next one.
@_transparent
private func fetchRow(_ args: AttendTokensArguments, _ step: ValueStep, _ row: Int) {
    if row < step.count {
        fetch(args.value.base + Int(step.slots[row]) * args.value.stride, bytes: args.value.stride)
    } else if row < step.left {
        fetch(args.key.base + Int(step.slots[row]) * args.key.stride, bytes: args.key.stride)
    }
}

/// Adds some tokens of a step to one tile of channels.
@_transparent
private func addValues(
    _ args: AttendTokensArguments, _ step: ValueStep, _ place: TilePlace, format: TokenFormat, width: Int
) {
    let zero = (splat(0), splat(0), splat(0), splat(0))
    var tile: ValueTile = (zero, zero, zero, zero)
    let channel = place.vector * laneCount
    var token = 0
    while token < place.count {
        // Rows of the next tokens are prefetched in the order of their addresses, spread over tiles and groups of four tokens.
        let time = place.part * valueStep / 4 + token / 4
        let next = place.first + place.count
        var row = next + time * 4 / place.parts
        while row < next + (time + 1) * 4 / place.parts {
            fetchRow(args, step, row)
            row += 1
        }
        let end = minimum(token + 4, place.count)
        while token < end {
            let values = UnsafeRawPointer(args.value.base + Int(step.slots[place.first + token]) * args.value.stride)
            let x0 = loadElements(values, channel, format)
            let x1 = width > 1 ? loadElements(values, channel + laneCount, format) : x0
            let x2 = width > 2 ? loadElements(values, channel + 2 * laneCount, format) : x0
            let x3 = width > 2 ? loadElements(values, channel + 3 * laneCount, format) : x0
            let p = step.weights + 4 * (place.first + token)
            add(&tile.r0, p[0], (x0, x1, x2, x3))
            add(&tile.r1, p[1], (x0, x1, x2, x3))
            add(&tile.r2, p[2], (x0, x1, x2, x3))
            add(&tile.r3, p[3], (x0, x1, x2, x3))
            token += 1
        }
    }
    let target = step.accumulator + channel
    accumulate(tile.r0, target, step.rescale[0], width: width)
    accumulate(tile.r1, target + step.stride, step.rescale[1], width: width)
    accumulate(tile.r2, target + 2 * step.stride, step.rescale[2], width: width)
    accumulate(tile.r3, target + 3 * step.stride, step.rescale[3], width: width)
}

/// Adds all channels, in tiles of four (on levels with 32 registers), two or one vectors.
@_transparent
private func addFloats(_ args: AttendTokensArguments, _ given: ValueStep, format: TokenFormat) {
    var step = given
    let vectors = step.stride / laneCount
    var place = TilePlace(parts: (vectors + valueVectors - 1) / valueVectors)
    while place.first < step.count {
        place.count = minimum(valueStep, step.count - place.first)
        place.vector = 0
        place.part = 0
        while place.vector < vectors {
            if valueVectors == 4 && vectors - place.vector >= 4 {
                addValues(args, step, place, format: format, width: 4)
                place.vector += 4
            } else if vectors - place.vector >= 2 {
                addValues(args, step, place, format: format, width: 2)
                place.vector += 2
            } else {
                addValues(args, step, place, format: format, width: 1)
                place.vector += 1
            }
            place.part += 1
        }
        step.rescale = SIMD4(repeating: 1)
        place.first += place.count
    }
}

/// Whether a value that is not finite belongs to a token that some row does not see. Codes are always finite.
@inline(never)
private func hidesNonFinite(_ args: AttendTokensArguments, _ slots: UnsafePointer<Int32>, first: Int, count: Int) -> Bool {
    guard let visible = args.visible else { return false }
    if args.value.format.isQuantized { return false }
    var token = count
    for row in 0..<args.rows { token = minimum(token, maximum(0, Int(visible[row]) - first)) }
    // x − x is 0 unless x is not finite.
    var difference = splat(0)
    while token < count {
        let values = UnsafeRawPointer(args.value.base + Int(slots[token]) * args.value.stride)
        for vector in 0..<TokenLayout.padded(args.value.channels) / laneCount {
            let value = loadElements(values, vector * laneCount, args.value.format)
            difference = difference + (value - value)
        }
        token += 1
    }
    let rest = laneSum(difference)
    return rest != 0
}

/// P·V where hidden values are not finite and a weight of 0 would not hide them: row by row, over the tokens that the row sees.
/// The bits are those of `addRows` with finite hidden values, whose products are 0.
@inline(never)
private func addVisible(_ args: AttendTokensArguments, _ space: Workspace, _ step: ValueStep, first: Int, row: Int) {
    let stride = step.stride
    // This reuses the 4 × 256 floats of the pairs, which only quantised values need.
    let sums = UnsafeMutableRawPointer(space.pairs).assumingMemoryBound(to: Float.self)
    for r in 0..<TokenScratch.rowTile {
        let seen =
            row + r < args.rows ? minimum(step.count, maximum(0, Int(args.visible![row + r]) - first)) : 0
        let target = step.accumulator + r * stride
        if seen == 0 {
            // The result of α = 1 and sums of +0.
            for x in 0..<stride { target[x] = target[x] + 0 }
            continue
        }
        for x in 0..<4 * stride { sums[x] = step.accumulator[x] }
        var visible = step
        visible.count = seen
        visible.left = seen
        visible.accumulator = sums
        addRows(args, visible)
        for x in 0..<stride { target[x] = sums[r * stride + x] }
    }
}

/// O ← α·O + P·V for four rows.
@_transparent
private func addRows(_ args: AttendTokensArguments, _ step: ValueStep) {
    switch args.value.format {
    case .float32: addFloat32(args, step)
    case .bfloat16: addBFloat16(args, step)
    default: addFloat16(args, step)
    }
}

@inline(never)
private func addFloat32(_ args: AttendTokensArguments, _ step: ValueStep) { addFloats(args, step, format: .float32) }

@inline(never)
private func addFloat16(_ args: AttendTokensArguments, _ step: ValueStep) { addFloats(args, step, format: .float16) }

@inline(never)
private func addBFloat16(_ args: AttendTokensArguments, _ step: ValueStep) { addFloats(args, step, format: .bfloat16) }

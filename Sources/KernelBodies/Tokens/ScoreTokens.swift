// Scores of four query rows against tokens of a cache, for decoding, page scoring and estimates.
//
//     S[t][r] = Σ_c q[r][c] · k[slot(t)][c]          t < count ≤ 128, r < 4
//
// Lanes are channels, because tokens may be anywhere: all that pages, selections and gathered tokens have in common is a list
// of slots. A tile of 2 or 4 tokens × 4 rows shares its loads of keys and queries, and its sums over lanes.
//
// Float formats are widened in registers. Quantised keys stay integers: queries become 16-bit codes, finer than the half
// precision of the papers' kernels; products are summed exactly in 32 bits; scale and offset follow, see `QueryFactors`.

public import KernelInterface

extension Kernels {
    /// See `ScoreTokensArguments`.
    public static func scoreTokens(_ arguments: UnsafePointer<ScoreTokensArguments>) {
        let args = arguments.pointee
        let layout = TokenScratch(headDim: args.key.channels, valueDim: 1, rows: TokenScratch.rowTile)
        let query = args.scratch + layout.query
        let scores = (args.scratch + layout.scores).assumingMemoryBound(to: Float.self)
        let scales = (args.scratch + layout.scales).assumingMemoryBound(to: Float.self)
        var row = 0
        while row < args.rows {
            let rows = minimum(TokenScratch.rowTile, args.rows - row)
            packTokenQueries(
                args.query + row * args.queryStride, stride: args.queryStride, rows: rows, channels: args.key.channels,
                format: args.key.format, scale: args.scale, isBound: args.isBound, into: query)
            let pivot = pivot(args.key.format, isBound: args.isBound)
            var first = 0
            while first < args.count {
                let count = minimum(TokenScratch.block, args.count - first)
                gatherScales(args.key, args.slots + first, count: count, left: args.count - first, pivot: pivot, into: scales)
                let after = minimum(first + count, args.count - 1)
                scoreBlock(
                    (args.key, args.slots + first, count), query: query, scales: scales,
                    following: (args.key, args.slots + after, args.count - first - count), left: args.count - first,
                    into: scores)
                transpose(
                    scores, stride: 4, rows: count, columns: rows, times: 1,
                    into: args.scores + row * args.scoreStride + first, destinationStride: args.scoreStride)
                first += count
            }
            row += TokenScratch.rowTile
        }
    }
}

// MARK: - Scores of a step

/// A list of slots of an operand.
typealias TokenRun = (operand: TokenOperand, slots: UnsafePointer<Int32>, count: Int)

/// S of a step of keys, where `left` slots remain in the list from here on.
///
/// Float keys are prefetched some tokens ahead, and near the end of the step the rows that are read next: `following`.
@_transparent
func scoreBlock(
    _ keys: TokenRun, query: UnsafeMutableRawPointer, scales: UnsafePointer<Float>, following: TokenRun, left: Int,
    into scores: UnsafeMutablePointer<Float>
) {
    switch keys.operand.format {
    case .float32: scoreFloat32(keys, query, following, scores)
    case .float16: scoreFloat16(keys, query, following, scores)
    case .bfloat16: scoreBFloat16(keys, query, following, scores)
    case .int8: scoreInt8(keys, query, scales, left, scores)
    case .int4: scoreInt4(keys, query, scales, left, scores)
    }
}

/// Tokens between the prefetched row and the current one: 4 KiB of 128 half-precision channels.
///
/// A tile reads several rows side by side, an order in which no hardware prefetcher sees a stream: one core reads 17 GB/s, of
/// the 38 that it reads in order. Prefetching lines in the order of their addresses, as many at a time as are read, raises this
/// to 34. Bursts of prefetches are dropped, so they are spread over the steps of a tile.
@_transparent
private var fetchDistance: Int { 16 }

/// The row of a later token, in this step or among the rows that follow it.
@_transparent
private func rowAhead(_ token: Int, _ keys: TokenRun, _ following: TokenRun) -> UnsafeRawPointer {
    if token < keys.count { return UnsafeRawPointer(keys.operand.base + Int(keys.slots[token]) * keys.operand.stride) }
    return rowBeyond(token - keys.count, following)
}

/// Not inlined, because it is called once per step and would occupy registers of the loop.
@inline(never)
private func rowBeyond(_ place: Int, _ following: TokenRun) -> UnsafeRawPointer {
    let operand = following.operand
    if following.count <= 0 { return UnsafeRawPointer(operand.base) }
    // The stride of quantised values spans eight slots.
    let bytes = operand.isGrouped ? operand.stride / TokenLayout.group : operand.stride
    return UnsafeRawPointer(operand.base + Int(following.slots[minimum(place, following.count - 1)]) * bytes)
}

/// Prefetches the lines of a row, which has at least one, into the second-level cache.
@_transparent
func fetchFar(_ base: UnsafeRawPointer, bytes: Int) {
    var offset = 0
    repeat {
        prefetch((base + offset).assumingMemoryBound(to: Float.self))
        offset += 64
    } while offset < bytes
}

/// Prefetches the lines of a row, which has at least one.
@_transparent
func fetch(_ base: UnsafeRawPointer, bytes: Int) {
    var offset = 0
    repeat {
        prefetchNear(base + offset)
        offset += 64
    } while offset < bytes
}

@inline(never)
private func scoreFloat32(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ following: TokenRun, _ scores: UnsafeMutablePointer<Float>
) {
    scoreFloats(keys, query, following, scores, format: .float32)
}

@inline(never)
private func scoreFloat16(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ following: TokenRun, _ scores: UnsafeMutablePointer<Float>
) {
    scoreFloats(keys, query, following, scores, format: .float16)
}

@inline(never)
private func scoreBFloat16(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ following: TokenRun, _ scores: UnsafeMutablePointer<Float>
) {
    scoreFloats(keys, query, following, scores, format: .bfloat16)
}

@inline(never)
private func scoreInt8(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ scales: UnsafePointer<Float>, _ left: Int,
    _ scores: UnsafeMutablePointer<Float>
) {
    scoreCodes(keys, query, scales, left, scores, halves: 1)
}

@inline(never)
private func scoreInt4(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ scales: UnsafePointer<Float>, _ left: Int,
    _ scores: UnsafeMutablePointer<Float>
) {
    scoreCodes(keys, query, scales, left, scores, halves: 2)
}

/// Loads one vector of a row of any float format.
@_transparent
func loadElements(_ row: UnsafeRawPointer, _ index: Int, _ format: TokenFormat) -> Vector {
    switch format {
    case .float32: return load(row.assumingMemoryBound(to: Float.self) + index)
    case .bfloat16: return loadBFloat16(row.assumingMemoryBound(to: UInt16.self) + index)
    default: return loadHalf(row.assumingMemoryBound(to: UInt16.self) + index)
    }
}

@_transparent
private func add(_ sums: inout TokenSums, _ key: Vector, _ q: TokenSums) {
    sums.r0 = multiplyAdd(key, q.r0, sums.r0)
    sums.r1 = multiplyAdd(key, q.r1, sums.r1)
    sums.r2 = multiplyAdd(key, q.r2, sums.r2)
    sums.r3 = multiplyAdd(key, q.r3, sums.r3)
}

@_transparent
private func scoreFloats(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ following: TokenRun, _ scores: UnsafeMutablePointer<Float>,
    format: TokenFormat
) {
    let (key, slots, count) = keys
    let vectors = TokenLayout.padded(key.channels) / laneCount
    let queries = query.assumingMemoryBound(to: Float.self)
    let zero = (splat(0), splat(0), splat(0), splat(0))
    // The bytes that a step of the tile reads from all its rows.
    let stepBytes = tokenTile * laneCount * (format == .float32 ? 4 : 2)
    var token = 0
    while token < count {
        // Past the last token it is repeated; these scores are overwritten or unused.
        let k0 = UnsafeRawPointer(key.base + Int(slots[token]) * key.stride)
        let k1 = UnsafeRawPointer(key.base + Int(slots[minimum(token + 1, count - 1)]) * key.stride)
        let k2 = UnsafeRawPointer(key.base + Int(slots[minimum(token + 2, count - 1)]) * key.stride)
        let k3 = UnsafeRawPointer(key.base + Int(slots[minimum(token + 3, count - 1)]) * key.stride)
        var (s0, s1, s2, s3): (TokenSums, TokenSums, TokenSums, TokenSums) = (zero, zero, zero, zero)
        var vector = 0
        for row in 0..<tokenTile {
            // Each row ahead is prefetched during its share of the steps.
            var ahead = rowAhead(token + fetchDistance + row, keys, following)
            let end = (row + 1) * vectors / tokenTile
            while vector < end {
                fetch(ahead, bytes: stepBytes)
                ahead += stepBytes
                let x = vector * laneCount
                let q = queries + 4 * x
                let four = (load(q), load(q + laneCount), load(q + 2 * laneCount), load(q + 3 * laneCount))
                add(&s0, loadElements(k0, x, format), four)
                add(&s1, loadElements(k1, x, format), four)
                if tokenTile > 2 {
                    add(&s2, loadElements(k2, x, format), four)
                    add(&s3, loadElements(k3, x, format), four)
                }
                vector += 1
            }
        }
        storeTileSums(s0, s1, s2, s3, scores + 4 * token)
        token += tokenTile
    }
}

// MARK: - Quantised keys

@_transparent
private func loadCodes(_ pointer: UnsafeRawPointer) -> CodeVector { pointer.loadUnaligned(as: CodeVector.self) }

@_transparent
private func add(_ sums: inout TokenCodeSums, _ key: CodeVector, _ q: TokenCodeSums) {
    sums.r0 = addPairProducts(sums.r0, key, q.r0)
    sums.r1 = addPairProducts(sums.r1, key, q.r1)
    sums.r2 = addPairProducts(sums.r2, key, q.r2)
    sums.r3 = addPairProducts(sums.r3, key, q.r3)
}

/// `halves` is 2 for nibbles, where a load of bytes has both the even and the odd channels.
@_transparent
private func scoreCodes(
    _ keys: TokenRun, _ query: UnsafeMutableRawPointer, _ scales: UnsafePointer<Float>, _ left: Int,
    _ scores: UnsafeMutablePointer<Float>, halves: Int
) {
    let (key, slots, count) = keys
    let bytes = 2 * laneCount
    let steps = (key.stride + bytes - 1) / bytes
    let factors = queryFactors(query, channels: key.channels)
    let factor = repeatFour(UnsafeRawPointer(factors.code).loadUnaligned(as: SIMD4<Float>.self))
    let total = repeatFour(UnsafeRawPointer(factors.total).loadUnaligned(as: SIMD4<Float>.self))
    let sums = repeatFour(UnsafeRawPointer(factors.sum).loadUnaligned(as: SIMD4<Float>.self))
    let perOffset = repeatFour(UnsafeRawPointer(factors.perOffset).loadUnaligned(as: SIMD4<Float>.self))
    let perScale = repeatFour(UnsafeRawPointer(factors.perScale).loadUnaligned(as: SIMD4<Float>.self))
    let centres = scales + TokenScratch.block
    let nothing = splatWord(0)
    let zero = (nothing, nothing, nothing, nothing)
    var token = 0
    while token < count {
        // Codes are small: all keys of a step are prefetched one step ahead, into the second-level cache.
        var later = token + TokenScratch.block
        let end = minimum(later + tokenTile, left)
        while later < end {
            fetchFar(key.base + Int(slots[later]) * key.stride, bytes: key.stride)
            later += 1
        }
        let (t1, t2, t3) = (minimum(token + 1, count - 1), minimum(token + 2, count - 1), minimum(token + 3, count - 1))
        let k0 = UnsafeRawPointer(key.base + Int(slots[token]) * key.stride)
        let k1 = UnsafeRawPointer(key.base + Int(slots[t1]) * key.stride)
        let k2 = UnsafeRawPointer(key.base + Int(slots[t2]) * key.stride)
        let k3 = UnsafeRawPointer(key.base + Int(slots[t3]) * key.stride)
        var (s0, s1, s2, s3): (TokenCodeSums, TokenCodeSums, TokenCodeSums, TokenCodeSums) = (zero, zero, zero, zero)
        var q = UnsafeRawPointer(query)
        for step in 0..<steps {
            let x = step * bytes
            // One row of query codes is one register of 4·laneCount bytes.
            let register = 4 * laneCount
            let row = (loadCodes(q), loadCodes(q + register), loadCodes(q + 2 * register), loadCodes(q + 3 * register))
            let (b0, b1) = (loadBytes(k0 + x), loadBytes(k1 + x))
            q += 4 * register
            if halves == 1 {
                add(&s0, b0, row)
                add(&s1, b1, row)
                if tokenTile > 2 {
                    add(&s2, loadBytes(k2 + x), row)
                    add(&s3, loadBytes(k3 + x), row)
                }
            } else {
                let (n0, n1) = (nibblesInHalves(b0), nibblesInHalves(b1))
                let odd = (loadCodes(q), loadCodes(q + register), loadCodes(q + 2 * register), loadCodes(q + 3 * register))
                q += 4 * register
                add(&s0, n0.low, row)
                add(&s1, n1.low, row)
                add(&s0, n0.high, odd)
                add(&s1, n1.high, odd)
                if tokenTile > 2 {
                    let (n2, n3) = (nibblesInHalves(loadBytes(k2 + x)), nibblesInHalves(loadBytes(k3 + x)))
                    add(&s2, n2.low, row)
                    add(&s3, n3.low, row)
                    add(&s2, n2.high, odd)
                    add(&s3, n3.high, odd)
                }
            }
        }
        let target = scores + 4 * token
        storeTileSums(s0, s1, s2, s3, target)
        var x = 0
        while x < 4 * tokenTile {
            let scale = repeatEach(scales + token + x / 4)
            let centre = repeatEach(centres + token + x / 4)
            let slack = multiplyAdd(magnitude(centre), perOffset, scale * perScale)
            let offset = multiplyAdd(centre, sums, slack)
            store(multiplyAdd(load(target + x) - total, scale * factor, offset), target + x)
            x += laneCount
        }
        token += tokenTile
    }
}

// A few rows times picked rows of a matrix, C (+)= A · B[I]ᵀ or A · B[I]. The bandwidth of memory limits it, so every picked row is
// read once, in place, in the type in which it is stored.
//
// For A · B[I]ᵀ, four picked rows at a time are multiplied with up to four rows of A, with lanes along the depth:
//
//     sums[i][j][lane] = Σ A[i][k] · B[I_j][k]   over k ≡ lane,       C[i][j] = Σ_lane sums
//
// More rows of A go over the same rows of B again, which are in the second-level cache then. A · B[I] is in PickedSums.swift.
//
// The prefetchers of the hardware follow a row and stop at its end, since they do not know the list. So the loops ask for cache
// lines of the rows that come next, a fixed number of bytes ahead of what they multiply.

public import KernelInterface

extension Kernels {
    /// See `PickedProductArguments`; at most `GEMMScratch.fewRows` rows. For A·B[I], rows · columns is at most
    /// `PickedScratch.rowSums`, with columns rounded up to whole vectors.
    public static func multiplyPickedRows(_ arguments: UnsafePointer<PickedProductArguments>) {
        let args = arguments.pointee
        if args.isTransposed {
            multiplyPickedDots(args)
        } else {
            addPickedRows(args)
        }
    }
}

/// Four rows of B.
typealias FourPicked = (
    p0: UnsafeRawPointer, p1: UnsafeRawPointer, p2: UnsafeRawPointer, p3: UnsafeRawPointer
)

/// The rows of B at four places of the list. Past `count` the last one is repeated, to stay in the list.
@_transparent
func fourPicked(_ args: PickedProductArguments, _ first: Int, count: Int) -> FourPicked {
    let last = first + minimum(count, 4) - 1
    return (
        pickedAddress(args, first), pickedAddress(args, minimum(first + 1, last)),
        pickedAddress(args, minimum(first + 2, last)), pickedAddress(args, minimum(first + 3, last))
    )
}

/// The row of B that stands at a place of the list.
@_transparent
func pickedAddress(_ args: PickedProductArguments, _ place: Int) -> UnsafeRawPointer {
    var row = place
    if let list = args.list { row = Int(list[place]) }
    return args.b + row * args.bStride * byteCount(args.type)
}

@_transparent
private func + (rows: FourPicked, bytes: Int) -> FourPicked {
    (rows.p0 + bytes, rows.p1 + bytes, rows.p2 + bytes, rows.p3 + bytes)
}

/// Stores, or adds, one element of C: that of a row and of the row of B at place `column`.
@inline(never)
func storePickedDot(_ args: PickedProductArguments, _ row: Int, _ column: Int, _ value: Float) {
    var sum = value * args.factor
    if let bias = args.bias {
        var index = column
        if let list = args.list { index = Int(list[column]) }
        sum += bias[index]
    }
    let target = args.c + row * args.cStride + column
    target[0] = args.accumulates ? target[0] + sum : sum
}

// MARK: - Dots

/// A group of four rows of B and up to four rows of A.
private struct PickedDotGroup {
    var rows: FourPicked
    /// The rows of the next group, or again these.
    var next: FourPicked
    var a: UnsafePointer<Float>
    /// The first row of A.
    var row: Int
    /// The first column of C, and the number of them.
    var column: Int
    var columns: Int
    /// Whether the rows are read for the first time.
    var isFirst: Bool
}

private func multiplyPickedDots(_ args: PickedProductArguments) {
    // On levels of 16 registers a tile of four rows of A would not fit.
    let widest = tileRows > 4 ? 4 : 2
    var column = 0
    while column < args.columns {
        let columns = minimum(4, args.columns - column)
        let rows = fourPicked(args, column, count: columns)
        let following = args.columns - column - columns
        let next = following > 0 ? fourPicked(args, column + columns, count: following) : rows
        var row = 0
        while row < args.rows {
            let width = minimum(widest, args.rows - row)
            let group = PickedDotGroup(
                rows: rows, next: next, a: args.a + row * args.aStride, row: row, column: column,
                columns: columns, isFirst: row == 0)
            switch args.type {
            case .float32: pickedDotsOfFloats(args, group, width)
            case .float16: pickedDotsOfHalves(args, group, width)
            case .bfloat16: pickedDotsOfBFloats(args, group, width)
            case .e4m3: pickedDotsOfE4M3(args, group, width)
            case .e5m2: pickedDotsOfE5M2(args, group, width)
            }
            row += width
        }
        column += columns
    }
}

@inline(never)
private func pickedDotsOfFloats(
    _ args: PickedProductArguments, _ group: PickedDotGroup, _ width: Int
) {
    pickedDots(args, group, .float32, width)
}

@inline(never)
private func pickedDotsOfHalves(
    _ args: PickedProductArguments, _ group: PickedDotGroup, _ width: Int
) {
    pickedDots(args, group, .float16, width)
}

@inline(never)
private func pickedDotsOfBFloats(
    _ args: PickedProductArguments, _ group: PickedDotGroup, _ width: Int
) {
    pickedDots(args, group, .bfloat16, width)
}

@inline(never)
private func pickedDotsOfE4M3(_ args: PickedProductArguments, _ group: PickedDotGroup, _ width: Int) {
    pickedDots(args, group, .e4m3, width)
}

@inline(never)
private func pickedDotsOfE5M2(_ args: PickedProductArguments, _ group: PickedDotGroup, _ width: Int) {
    pickedDots(args, group, .e5m2, width)
}

@_transparent
private func pickedDots(
    _ args: PickedProductArguments, _ group: PickedDotGroup, _ type: WeightType, _ width: Int
) {
    switch width {
    case 1: pickedDots(args, group, type, width: 1)
    case 2: pickedDots(args, group, type, width: 2)
    case 3: pickedDots(args, group, type, width: 3)
    default: pickedDots(args, group, type, width: 4)
    }
}

private typealias PickedDotSums = (x0: Vector, x1: Vector, x2: Vector, x3: Vector)

@_transparent
private func pickedDots(
    _ args: PickedProductArguments, _ group: PickedDotGroup, _ type: WeightType, width: Int
) {
    let bytes = numberBytes(type)
    // A step is two vectors of each row, or one where several rows of A fill the registers.
    let step = width == 1 ? 2 * laneCount : laneCount
    let whole = args.depth / step * step
    // Rows of A and of B whose rest is padded with zeros to a whole step.
    let stage = args.scratch.assumingMemoryBound(to: Float.self)
    let rest = 2 * laneCount
    if whole < args.depth { stagePickedDotRests(args, group, from: whole, width: width, into: stage) }
    let zero = splat(0)
    var s0: PickedDotSums = (zero, zero, zero, zero)
    var (s1, s2, s3) = (s0, s0, s0)
    // Up to `turn` the lines ahead belong to the same rows, and from there on to the next ones.
    let ahead = minimum(PickedScratch.bytesAhead / bytes, args.depth)
    let turn = maximum(0, (args.depth - ahead) / step * step)
    var k = 0
    var end = minimum(turn, whole)
    var fetched = group.rows + ahead * bytes
    for part in 0..<2 {
        while k < end {
            if group.isFirst {
                let offset = k &* bytes
                prefetchPickedLines(fetched.p0 + offset, step &* bytes)
                prefetchPickedLines(fetched.p1 + offset, step &* bytes)
                prefetchPickedLines(fetched.p2 + offset, step &* bytes)
                prefetchPickedLines(fetched.p3 + offset, step &* bytes)
            }
            let a = group.a + k
            let b: PickedDotSums = (
                loadNumbers(group.rows.p0, type, k), loadNumbers(group.rows.p1, type, k),
                loadNumbers(group.rows.p2, type, k),
                loadNumbers(group.rows.p3, type, k)
            )
            addPickedDots(&s0, load(a), b)
            if width == 1 {
                let b: PickedDotSums = (
                    loadNumbers(group.rows.p0, type, k &+ laneCount),
                    loadNumbers(group.rows.p1, type, k &+ laneCount),
                    loadNumbers(group.rows.p2, type, k &+ laneCount),
                    loadNumbers(group.rows.p3, type, k &+ laneCount)
                )
                addPickedDots(&s1, load(a + laneCount), b)
            }
            if width > 1 { addPickedDots(&s1, load(a + args.aStride), b) }
            if width > 2 { addPickedDots(&s2, load(a + 2 * args.aStride), b) }
            if width > 3 { addPickedDots(&s3, load(a + 3 * args.aStride), b) }
            k &+= step
        }
        end = whole
        if part == 0 { fetched = group.next + (0 &- turn) * bytes }
    }
    if whole < args.depth {
        let b = stage + 4 * rest
        let first: PickedDotSums = (load(b), load(b + rest), load(b + 2 * rest), load(b + 3 * rest))
        addPickedDots(&s0, load(stage), first)
        if width == 1 {
            let c = b + laneCount
            addPickedDots(
                &s1, load(stage + laneCount),
                (load(c), load(c + rest), load(c + 2 * rest), load(c + 3 * rest)))
        }
        if width > 1 { addPickedDots(&s1, load(stage + rest), first) }
        if width > 2 { addPickedDots(&s2, load(stage + 2 * rest), first) }
        if width > 3 { addPickedDots(&s3, load(stage + 3 * rest), first) }
    }
    if width == 1 { s0 = (s0.x0 + s1.x0, s0.x1 + s1.x1, s0.x2 + s1.x2, s0.x3 + s1.x3) }
    storePickedDots(args, group, s0, row: 0)
    if width > 1 { storePickedDots(args, group, s1, row: 1) }
    if width > 2 { storePickedDots(args, group, s2, row: 2) }
    if width > 3 { storePickedDots(args, group, s3, row: 3) }
}

/// Asks for the lines of `bytes` bytes, which is at most two.
@_transparent
private func prefetchPickedLines(_ pointer: UnsafeRawPointer, _ bytes: Int) {
    prefetch(pointer.assumingMemoryBound(to: Float.self))
    if bytes > 64 { prefetch((pointer + 64).assumingMemoryBound(to: Float.self)) }
}

/// sums += a · b, lane by lane.
@_transparent
private func addPickedDots(_ sums: inout PickedDotSums, _ a: Vector, _ b: PickedDotSums) {
    sums.x0 = multiplyAdd(b.x0, a, sums.x0)
    sums.x1 = multiplyAdd(b.x1, a, sums.x1)
    sums.x2 = multiplyAdd(b.x2, a, sums.x2)
    sums.x3 = multiplyAdd(b.x3, a, sums.x3)
}

@_transparent
private func storePickedDots(
    _ args: PickedProductArguments, _ group: PickedDotGroup, _ sums: PickedDotSums, row: Int
) {
    let row = group.row + row
    storePickedDot(args, row, group.column, laneSum(sums.x0))
    if group.columns > 1 { storePickedDot(args, row, group.column + 1, laneSum(sums.x1)) }
    if group.columns > 2 { storePickedDot(args, row, group.column + 2, laneSum(sums.x2)) }
    if group.columns > 3 { storePickedDot(args, row, group.column + 3, laneSum(sums.x3)) }
}

/// Copies the rest of up to four rows of A, and of four rows of B after them, padded with zeros to two vectors each.
@inline(never)
private func stagePickedDotRests(
    _ args: PickedProductArguments, _ group: PickedDotGroup, from first: Int, width: Int,
    into stage: UnsafeMutablePointer<Float>
) {
    let (rest, count) = (2 * laneCount, args.depth - first)
    for x in 0..<8 * rest { stage[x] = 0 }
    for row in 0..<width {
        for x in 0..<count { stage[row * rest + x] = group.a[row * args.aStride + first + x] }
    }
    let offset = first * byteCount(args.type)
    widenFewNumbers(group.rows.p0 + offset, args.type, from: 0, count: count, into: stage + 4 * rest)
    widenFewNumbers(group.rows.p1 + offset, args.type, from: 0, count: count, into: stage + 5 * rest)
    widenFewNumbers(group.rows.p2 + offset, args.type, from: 0, count: count, into: stage + 6 * rest)
    widenFewNumbers(group.rows.p3 + offset, args.type, from: 0, count: count, into: stage + 7 * rest)
}

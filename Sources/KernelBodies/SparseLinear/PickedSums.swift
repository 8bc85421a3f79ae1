// A few rows times picked rows of a matrix, C (+)= A · B[I]. Four picked rows at a time are added to rows of sums that stay in a near
// cache:
//
//     sums[i] += A[i][t] · B[I_t] + … + A[i][t+3] · B[I_t+3]
//
// Up to four rows of sums share the widened rows. Meanwhile the four rows that come next are prefetched.

import KernelInterface

@inline(never)
func addPickedRows(_ args: PickedProductArguments) {
    let padded = (args.columns + laneCount - 1) / laneCount * laneCount
    let whole = args.columns / laneCount * laneCount
    let sums = args.scratch.assumingMemoryBound(to: Float.self)
    // A row of zeros, which stands for rows past the end; the rest of four rows, one vector each; and elements of A.
    let zeros = sums + PickedScratch.rowSums
    let stage = zeros + PickedScratch.rowSums
    let factors = stage + 4 * laneCount
    for x in 0..<args.rows * padded { sums[x] = 0 }
    var t = 0
    while t < args.depth {
        let count = minimum(4, args.depth - t)
        var rows = fourPicked(args, t, count: count)
        let following = args.depth - t - count
        let next = following > 0 ? fourPicked(args, t + count, count: following) : rows
        if count < 4 {
            // Zeros in every type. A row that is repeated may have an infinity, which a factor of 0 would make NaN.
            for x in 0..<padded { zeros[x] = 0 }
            if count < 2 { rows.p1 = UnsafeRawPointer(zeros) }
            if count < 3 { rows.p2 = UnsafeRawPointer(zeros) }
            rows.p3 = UnsafeRawPointer(zeros)
        }
        let rest = stagePickedRest(args, rows, from: whole, into: stage)
        var row = 0
        while row < args.rows {
            let left = args.rows - row
            // On levels of 16 registers the factors of four rows would not fit.
            let width = left >= 4 && tileRows > 4 ? 4 : minimum(left, 2)
            for r in 0..<width {
                let a = args.a + (row + r) * args.aStride + t
                for x in 0..<4 { factors[4 * r + x] = x < count ? a[x] : 0 }
            }
            let target = sums + row * padded
            switch args.type {
            case .float32: addPickedFloats(rows, next, factors, target, padded, whole, row == 0, width)
            case .float16: addPickedHalves(rows, next, factors, target, padded, whole, row == 0, width)
            case .bfloat16: addPickedBFloats(rows, next, factors, target, padded, whole, row == 0, width)
            case .e4m3: addPickedE4M3(rows, next, factors, target, padded, whole, row == 0, width)
            case .e5m2: addPickedE5M2(rows, next, factors, target, padded, whole, row == 0, width)
            }
            if whole < padded {
                addPickedFloats(rest, rest, factors, target + whole, padded, laneCount, false, width)
            }
            row += width
        }
        t += count
    }
    for row in 0..<args.rows {
        storePickedSums(args, sums + row * padded, into: args.c + row * args.cStride)
    }
}

/// Copies the rest of four rows, padded with zeros to a vector each.
@inline(never)
private func stagePickedRest(
    _ args: PickedProductArguments, _ rows: FourPicked, from whole: Int,
    into stage: UnsafeMutablePointer<Float>
) -> FourPicked {
    let count = args.columns - whole
    if count > 0 {
        let offset = whole * byteCount(args.type)
        for x in 0..<4 * laneCount { stage[x] = 0 }
        widenFewNumbers(rows.p0 + offset, args.type, from: 0, count: count, into: stage)
        widenFewNumbers(rows.p1 + offset, args.type, from: 0, count: count, into: stage + laneCount)
        widenFewNumbers(rows.p2 + offset, args.type, from: 0, count: count, into: stage + 2 * laneCount)
        widenFewNumbers(rows.p3 + offset, args.type, from: 0, count: count, into: stage + 3 * laneCount)
    }
    return (
        UnsafeRawPointer(stage), UnsafeRawPointer(stage + laneCount),
        UnsafeRawPointer(stage + 2 * laneCount),
        UnsafeRawPointer(stage + 3 * laneCount)
    )
}

/// c (+)= factor · sums + bias.
@inline(never)
private func storePickedSums(
    _ args: PickedProductArguments, _ sums: UnsafeMutablePointer<Float>,
    into c: UnsafeMutablePointer<Float>
) {
    if args.factor != 1 { for x in 0..<args.columns { sums[x] *= args.factor } }
    if let bias = args.bias { for x in 0..<args.columns { sums[x] += bias[x] } }
    if args.accumulates {
        for x in 0..<args.columns { c[x] += sums[x] }
    } else {
        for x in 0..<args.columns { c[x] = sums[x] }
    }
}

// One function per type, not inlined: factors and rows need the registers.

@inline(never)
private func addPickedFloats(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ width: Int
) { addFourPicked(rows, next, a, sums, stride, columns, fetches, width, .float32) }

@inline(never)
private func addPickedHalves(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ width: Int
) { addFourPicked(rows, next, a, sums, stride, columns, fetches, width, .float16) }

@inline(never)
private func addPickedBFloats(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ width: Int
) { addFourPicked(rows, next, a, sums, stride, columns, fetches, width, .bfloat16) }

@inline(never)
private func addPickedE4M3(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ width: Int
) { addFourPicked(rows, next, a, sums, stride, columns, fetches, width, .e4m3) }

@inline(never)
private func addPickedE5M2(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ width: Int
) { addFourPicked(rows, next, a, sums, stride, columns, fetches, width, .e5m2) }

@_transparent
private func addFourPicked(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ width: Int, _ type: WeightType
) {
    switch width {
    case 1: addFourPicked(rows, next, a, sums, stride, columns, fetches, type, width: 1)
    case 2: addFourPicked(rows, next, a, sums, stride, columns, fetches, type, width: 2)
    default:
        if tileRows > 4 { addFourPicked(rows, next, a, sums, stride, columns, fetches, type, width: 4) }
    }
}

private typealias PickedFactors = (x0: Vector, x1: Vector, x2: Vector, x3: Vector)

@_transparent
private func pickedFactors(_ a: UnsafePointer<Float>) -> PickedFactors {
    (splat(a[0]), splat(a[1]), splat(a[2]), splat(a[3]))
}

@_transparent
private func addPicked(_ a: PickedFactors, _ b: PickedFactors, _ sums: UnsafeMutablePointer<Float>) {
    var sum = multiplyAdd(a.x0, b.x0, load(sums))
    sum = multiplyAdd(a.x1, b.x1, sum)
    sum = multiplyAdd(a.x2, b.x2, sum)
    store(multiplyAdd(a.x3, b.x3, sum), sums)
}

/// sums[r] += a[r][0] · row 0 + … + a[r][3] · row 3, for `width` rows of sums that are `stride` floats apart.
@_transparent
private func addFourPicked(
    _ rows: FourPicked, _ next: FourPicked, _ a: UnsafePointer<Float>,
    _ sums: UnsafeMutablePointer<Float>, _ stride: Int,
    _ columns: Int, _ fetches: Bool, _ type: WeightType, width: Int
) {
    let a0 = pickedFactors(a)
    let a1 = width > 1 ? pickedFactors(a + 4) : a0
    let a2 = width > 2 ? pickedFactors(a + 8) : a0
    let a3 = width > 2 ? pickedFactors(a + 12) : a0
    let bytes = numberBytes(type)
    var x = 0
    while x < columns {
        if fetches {
            let offset = x &* bytes
            prefetch((next.p0 + offset).assumingMemoryBound(to: Float.self))
            prefetch((next.p1 + offset).assumingMemoryBound(to: Float.self))
            prefetch((next.p2 + offset).assumingMemoryBound(to: Float.self))
            prefetch((next.p3 + offset).assumingMemoryBound(to: Float.self))
        }
        let b: PickedFactors = (
            loadNumbers(rows.p0, type, x), loadNumbers(rows.p1, type, x), loadNumbers(rows.p2, type, x),
            loadNumbers(rows.p3, type, x)
        )
        addPicked(a0, b, sums + x)
        if width > 1 { addPicked(a1, b, sums + stride + x) }
        if width > 2 {
            addPicked(a2, b, sums + 2 * stride + x)
            addPicked(a3, b, sums + 3 * stride + x)
        }
        x &+= laneCount
    }
}

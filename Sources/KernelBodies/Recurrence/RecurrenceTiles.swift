// Steps of register tiles that recurrences need besides those of every matrix product.

/// `LinearRecurrenceScratch.rowStride`. As a literal, it becomes a part of addresses; a variable takes registers and additions.
@_transparent
var rowStride: Int { 272 }

/// C[r][x] ← C[r][x] · factors[r].
@_transparent
func scaleRows(_ c: inout Tile, by factors: UnsafePointer<Float>) {
    c.r0 = c.r0 * splatRow(factors[0])
    c.r1 = c.r1 * splatRow(factors[1])
    c.r2 = c.r2 * splatRow(factors[2])
    c.r3 = c.r3 * splatRow(factors[3])
    if tileRows > 4 {
        c.r4 = c.r4 * splatRow(factors[4])
        c.r5 = c.r5 * splatRow(factors[5])
        c.r6 = c.r6 * splatRow(factors[6])
        c.r7 = c.r7 * splatRow(factors[7])
    }
}

/// Adds rows of memory, `stride` floats apart and each multiplied by a factor of its own, to C.
@_transparent
func addRows(
    _ c: inout Tile, _ pointer: UnsafePointer<Float>, stride: Int, times factors: UnsafePointer<Float>, width: Int
) {
    c.r0 = multiplyAdd(factors[0], loadRow(pointer, width: width), c.r0)
    c.r1 = multiplyAdd(factors[1], loadRow(pointer + stride, width: width), c.r1)
    c.r2 = multiplyAdd(factors[2], loadRow(pointer + 2 * stride, width: width), c.r2)
    c.r3 = multiplyAdd(factors[3], loadRow(pointer + 3 * stride, width: width), c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(factors[4], loadRow(pointer + 4 * stride, width: width), c.r4)
        c.r5 = multiplyAdd(factors[5], loadRow(pointer + 5 * stride, width: width), c.r5)
        c.r6 = multiplyAdd(factors[6], loadRow(pointer + 6 * stride, width: width), c.r6)
        c.r7 = multiplyAdd(factors[7], loadRow(pointer + 7 * stride, width: width), c.r7)
    }
}

/// C[r][x] += Σ_{k ≤ r} A[r][k] · B[k][x], with A in rows of memory `stride` floats apart, of which nothing above the diagonal is used.
/// Row r reads rows 0…r of B, so that what is not finite in later rows does not reach it.
@_transparent
func accumulateTriangle(
    _ c: inout Tile, _ a: UnsafePointer<Float>, stride: Int, panel: UnsafePointer<Float>, width: Int
) {
    let lanes = width * laneCount
    var b = loadRow(panel, width: width)
    c.r0 = multiplyAdd(a[0], b, c.r0)
    c.r1 = multiplyAdd(a[stride], b, c.r1)
    c.r2 = multiplyAdd(a[2 * stride], b, c.r2)
    c.r3 = multiplyAdd(a[3 * stride], b, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a[4 * stride], b, c.r4)
        c.r5 = multiplyAdd(a[5 * stride], b, c.r5)
        c.r6 = multiplyAdd(a[6 * stride], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride], b, c.r7)
    }
    b = loadRow(panel + lanes, width: width)
    c.r1 = multiplyAdd(a[stride + 1], b, c.r1)
    c.r2 = multiplyAdd(a[2 * stride + 1], b, c.r2)
    c.r3 = multiplyAdd(a[3 * stride + 1], b, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a[4 * stride + 1], b, c.r4)
        c.r5 = multiplyAdd(a[5 * stride + 1], b, c.r5)
        c.r6 = multiplyAdd(a[6 * stride + 1], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride + 1], b, c.r7)
    }
    b = loadRow(panel + 2 * lanes, width: width)
    c.r2 = multiplyAdd(a[2 * stride + 2], b, c.r2)
    c.r3 = multiplyAdd(a[3 * stride + 2], b, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a[4 * stride + 2], b, c.r4)
        c.r5 = multiplyAdd(a[5 * stride + 2], b, c.r5)
        c.r6 = multiplyAdd(a[6 * stride + 2], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride + 2], b, c.r7)
    }
    b = loadRow(panel + 3 * lanes, width: width)
    c.r3 = multiplyAdd(a[3 * stride + 3], b, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(a[4 * stride + 3], b, c.r4)
        c.r5 = multiplyAdd(a[5 * stride + 3], b, c.r5)
        c.r6 = multiplyAdd(a[6 * stride + 3], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride + 3], b, c.r7)
        b = loadRow(panel + 4 * lanes, width: width)
        c.r4 = multiplyAdd(a[4 * stride + 4], b, c.r4)
        c.r5 = multiplyAdd(a[5 * stride + 4], b, c.r5)
        c.r6 = multiplyAdd(a[6 * stride + 4], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride + 4], b, c.r7)
        b = loadRow(panel + 5 * lanes, width: width)
        c.r5 = multiplyAdd(a[5 * stride + 5], b, c.r5)
        c.r6 = multiplyAdd(a[6 * stride + 5], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride + 5], b, c.r7)
        b = loadRow(panel + 6 * lanes, width: width)
        c.r6 = multiplyAdd(a[6 * stride + 6], b, c.r6)
        c.r7 = multiplyAdd(a[7 * stride + 6], b, c.r7)
        b = loadRow(panel + 7 * lanes, width: width)
        c.r7 = multiplyAdd(a[7 * stride + 7], b, c.r7)
    }
}

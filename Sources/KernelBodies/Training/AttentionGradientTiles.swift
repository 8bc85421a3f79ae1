// Steps of register tiles that the backward pass of attention needs besides those of every matrix product.

/// C ← C ∘ rows of memory, `stride` floats apart.
@_transparent
func multiplyRows(_ c: inout Tile, by pointer: UnsafePointer<Float>, stride: Int, width: Int) {
    c.r0 = c.r0 * loadRow(pointer, width: width)
    c.r1 = c.r1 * loadRow(pointer + stride, width: width)
    c.r2 = c.r2 * loadRow(pointer + 2 * stride, width: width)
    c.r3 = c.r3 * loadRow(pointer + 3 * stride, width: width)
    if tileRows > 4 {
        c.r4 = c.r4 * loadRow(pointer + 4 * stride, width: width)
        c.r5 = c.r5 * loadRow(pointer + 5 * stride, width: width)
        c.r6 = c.r6 * loadRow(pointer + 6 * stride, width: width)
        c.r7 = c.r7 * loadRow(pointer + 7 * stride, width: width)
    }
}

/// C += A·B with rows of B `stride` floats apart.
@_transparent
func accumulateRows(
    _ c: inout Tile, _ a: RowPointers, step: Int, source: UnsafePointer<Float>, stride: Int, depth: Int, width: Int
) {
    var offset = 0
    var b = source
    for _ in 0..<depth {
        let row = loadRow(b, width: width)
        c.r0 = multiplyAdd(a.p0[offset], row, c.r0)
        c.r1 = multiplyAdd(a.p1[offset], row, c.r1)
        c.r2 = multiplyAdd(a.p2[offset], row, c.r2)
        c.r3 = multiplyAdd(a.p3[offset], row, c.r3)
        if tileRows > 4 {
            c.r4 = multiplyAdd(a.p4[offset], row, c.r4)
            c.r5 = multiplyAdd(a.p5[offset], row, c.r5)
            c.r6 = multiplyAdd(a.p6[offset], row, c.r6)
            c.r7 = multiplyAdd(a.p7[offset], row, c.r7)
        }
        b += stride
        offset &+= step
    }
}

/// Adds the valid part of a tile at the edge.
@inline(never)
func addEdge(
    _ edge: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, to target: UnsafeMutablePointer<Float>,
    targetStride: Int
) {
    for row in 0..<rows {
        for x in 0..<columns { target[row * targetStride + x] += edge[row * stride + x] }
    }
}

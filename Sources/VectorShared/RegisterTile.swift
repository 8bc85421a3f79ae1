// The register tile of every float matrix product of the package.
//
//     C[r][x] += Σ_k A[r][k] · B[k][x]        r < tileRows, x < width·laneCount, k < depth
//
// A is read one broadcast at a time through one pointer per row. All pointers advance by the same step, so A needs no packing:
// it may be rows of keys (step 1), columns of values (step = token stride) or packed strips (step = tileRows). B is a panel of
// `depth` consecutive rows of width·laneCount floats. C is in registers.

/// The accumulators. Rows from `tileRows` on are never used, and the optimiser removes them.
public typealias Tile = (
    r0: PanelRow, r1: PanelRow, r2: PanelRow, r3: PanelRow, r4: PanelRow, r5: PanelRow, r6: PanelRow, r7: PanelRow
)

/// The rows of A: one pointer per tile row.
public typealias RowPointers = (
    p0: UnsafePointer<Float>, p1: UnsafePointer<Float>, p2: UnsafePointer<Float>, p3: UnsafePointer<Float>,
    p4: UnsafePointer<Float>, p5: UnsafePointer<Float>, p6: UnsafePointer<Float>, p7: UnsafePointer<Float>
)

/// Rows `stride` apart. Past `count` the last row is read again and its results are ignored, to stay in the caller's memory.
@_alwaysEmitIntoClient @_transparent
public func rowPointers(_ base: UnsafePointer<Float>, stride: Int, count: Int) -> RowPointers {
    (
        base, base + minimum(1, count - 1) &* stride, base + minimum(2, count - 1) &* stride,
        base + minimum(3, count - 1) &* stride, base + minimum(4, count - 1) &* stride,
        base + minimum(5, count - 1) &* stride, base + minimum(6, count - 1) &* stride,
        base + minimum(7, count - 1) &* stride
    )
}

/// A tile of zeros.
@_alwaysEmitIntoClient @_transparent
public func zeroTile() -> Tile {
    let zero = splatRow(0)
    return (zero, zero, zero, zero, zero, zero, zero, zero)
}

/// C += A·B.
@_alwaysEmitIntoClient @_transparent
public func accumulate(
    _ c: inout Tile, _ a: RowPointers, step: Int, panel: UnsafePointer<Float>, depth: Int, width: Int
) {
    var offset = 0
    var b = panel
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
        b += width * laneCount
        offset &+= step
    }
}

/// Stores C in rows of memory, `stride` floats apart.
@_alwaysEmitIntoClient @_transparent
public func store(_ c: Tile, _ pointer: UnsafeMutablePointer<Float>, stride: Int, width: Int) {
    store(c.r0, pointer, width: width)
    store(c.r1, pointer + stride, width: width)
    store(c.r2, pointer + 2 * stride, width: width)
    store(c.r3, pointer + 3 * stride, width: width)
    if tileRows > 4 {
        store(c.r4, pointer + 4 * stride, width: width)
        store(c.r5, pointer + 5 * stride, width: width)
        store(c.r6, pointer + 6 * stride, width: width)
        store(c.r7, pointer + 7 * stride, width: width)
    }
}

/// Adds rows of memory, `stride` floats apart, to C.
@_alwaysEmitIntoClient @_transparent
public func add(_ c: inout Tile, _ pointer: UnsafePointer<Float>, stride: Int, width: Int) {
    c.r0 = loadRow(pointer, width: width) + c.r0
    c.r1 = loadRow(pointer + stride, width: width) + c.r1
    c.r2 = loadRow(pointer + 2 * stride, width: width) + c.r2
    c.r3 = loadRow(pointer + 3 * stride, width: width) + c.r3
    if tileRows > 4 {
        c.r4 = loadRow(pointer + 4 * stride, width: width) + c.r4
        c.r5 = loadRow(pointer + 5 * stride, width: width) + c.r5
        c.r6 = loadRow(pointer + 6 * stride, width: width) + c.r6
        c.r7 = loadRow(pointer + 7 * stride, width: width) + c.r7
    }
}

/// Adds rows of memory, `stride` floats apart and multiplied by one factor per column, to C.
@_alwaysEmitIntoClient @_transparent
public func add(_ c: inout Tile, _ pointer: UnsafePointer<Float>, stride: Int, times factor: PanelRow, width: Int) {
    c.r0 = multiplyAdd(loadRow(pointer, width: width), factor, c.r0)
    c.r1 = multiplyAdd(loadRow(pointer + stride, width: width), factor, c.r1)
    c.r2 = multiplyAdd(loadRow(pointer + 2 * stride, width: width), factor, c.r2)
    c.r3 = multiplyAdd(loadRow(pointer + 3 * stride, width: width), factor, c.r3)
    if tileRows > 4 {
        c.r4 = multiplyAdd(loadRow(pointer + 4 * stride, width: width), factor, c.r4)
        c.r5 = multiplyAdd(loadRow(pointer + 5 * stride, width: width), factor, c.r5)
        c.r6 = multiplyAdd(loadRow(pointer + 6 * stride, width: width), factor, c.r6)
        c.r7 = multiplyAdd(loadRow(pointer + 7 * stride, width: width), factor, c.r7)
    }
}

/// c ← c·a + b in every accumulator, and no other instructions.
@_alwaysEmitIntoClient @_transparent
public func chain(_ c: inout Tile, _ a: PanelRow, _ b: PanelRow) {
    c.r0 = multiplyAdd(c.r0, a, b)
    c.r1 = multiplyAdd(c.r1, a, b)
    c.r2 = multiplyAdd(c.r2, a, b)
    c.r3 = multiplyAdd(c.r3, a, b)
    if tileRows > 4 {
        c.r4 = multiplyAdd(c.r4, a, b)
        c.r5 = multiplyAdd(c.r5, a, b)
        c.r6 = multiplyAdd(c.r6, a, b)
        c.r7 = multiplyAdd(c.r7, a, b)
    }
}

/// The sum of all accumulators.
@_alwaysEmitIntoClient @_transparent
public func total(_ c: Tile) -> Float {
    var row = c.r0 + c.r1 + c.r2 + c.r3
    if tileRows > 4 { row = row + c.r4 + c.r5 + c.r6 + c.r7 }
    return (row.x0 + row.x1 + row.x2).sum()
}

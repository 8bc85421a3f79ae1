// The register tile under every matrix product of the package.
//
//     C[r][x] += Σ_k A[r][k] · B[k][x]        r < tileRows, x < width·laneCount, k < depth
//
// A is read one broadcast at a time through one pointer per row, all advancing by the same step, so it needs no packing:
// rows of keys (step 1), columns of values (step = token stride) and packed strips (step = tileRows) all fit. B is a panel:
// `depth` consecutive runs of width·laneCount floats. C lives in registers.

/// Vectors across a full tile.
@_alwaysEmitIntoClient @inline(__always)
public var panelVectors: Int { 3 }

/// Floats across a full tile.
@_alwaysEmitIntoClient @inline(__always)
public var panelWidth: Int { panelVectors * laneCount }

/// Calls `body` with 0, 1, …, `tileRows` − 1 as constants.
///
/// Written out because a loop over accumulators that the optimiser decides not to unroll keeps all of them in memory: with 24
/// of them it did, and the tile ran at half speed.
@_alwaysEmitIntoClient @inline(__always)
public func forEachTileRow(_ body: (Int) -> Void) {
    body(0)
    body(1)
    body(2)
    body(3)
    if tileRows > 4 {
        body(4)
        body(5)
        body(6)
        body(7)
    }
}

/// C += A·B over the first `width` vectors of each accumulator row. `width` must be a literal 1, 2 or 3 after inlining.
@_alwaysEmitIntoClient @inline(__always)
public func accumulate(
    _ c: inout Accumulators, width: Int, rows: RowPointers, step: Int, panel: UnsafePointer<Float>, depth: Int
) {
    var offset = 0
    var b = panel
    for _ in 0..<depth {
        let b0 = load(b)
        let b1 = width > 1 ? load(b + laneCount) : b0
        let b2 = width > 2 ? load(b + 2 * laneCount) : b0
        forEachTileRow { r in
            let a = splat(rows[r][offset])
            c[3 * r] = multiplyAdd(a, b0, c[3 * r])
            if width > 1 { c[3 * r + 1] = multiplyAdd(a, b1, c[3 * r + 1]) }
            if width > 2 { c[3 * r + 2] = multiplyAdd(a, b2, c[3 * r + 2]) }
        }
        b += width * laneCount
        offset &+= step
    }
}

/// Pointers to `tileRows` rows, `stride` apart. Rows past `count` repeat the last one: they are computed and then ignored, so
/// that nothing is read outside the caller's memory.
@_alwaysEmitIntoClient @inline(__always)
public func rowPointers(_ base: UnsafePointer<Float>, stride: Int, count: Int) -> RowPointers {
    var rows = RowPointers(repeating: base)
    forEachTileRow { r in rows[r] = base + (r < count ? r : count - 1) &* stride }
    return rows
}

/// C from consecutive rows of `width` vectors, each column scaled.
@_alwaysEmitIntoClient @inline(__always)
public func loadTile(_ pointer: UnsafePointer<Float>, scaledBy scale: PanelVectors, width: Int) -> Accumulators {
    var c = Accumulators(repeating: splat(0))
    forEachTileRow { r in
        let row = pointer + r * width * laneCount
        c[3 * r] = load(row) * scale[0]
        if width > 1 { c[3 * r + 1] = load(row + laneCount) * scale[1] }
        if width > 2 { c[3 * r + 2] = load(row + 2 * laneCount) * scale[2] }
    }
    return c
}

/// C to rows of `width` vectors, `stride` floats apart.
@_alwaysEmitIntoClient @inline(__always)
public func storeTile(_ c: Accumulators, _ pointer: UnsafeMutablePointer<Float>, stride: Int, width: Int) {
    forEachTileRow { r in
        let row = pointer + r * stride
        store(c[3 * r], row)
        if width > 1 { store(c[3 * r + 1], row + laneCount) }
        if width > 2 { store(c[3 * r + 2], row + 2 * laneCount) }
    }
}

/// Adds C to rows of `width` vectors, `stride` floats apart.
@_alwaysEmitIntoClient @inline(__always)
public func addTile(_ c: Accumulators, _ pointer: UnsafeMutablePointer<Float>, stride: Int, width: Int) {
    forEachTileRow { r in
        let row = pointer + r * stride
        store(load(row) + c[3 * r], row)
        if width > 1 { store(load(row + laneCount) + c[3 * r + 1], row + laneCount) }
        if width > 2 { store(load(row + 2 * laneCount) + c[3 * r + 2], row + 2 * laneCount) }
    }
}

/// One vector per panel column.
public typealias PanelVectors = InlineArray<3, Vector>

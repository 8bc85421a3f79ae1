// The register tile of quantised weights: C[r][x] = Σ_k a[r][k] · w[k][x], exact.
//
// a has signed codes, one row per pointer, read in groups of four channels. w is a panel [depth/4][width·laneCount][4] of unsigned codes, so
// that weights need no sign and the product of a row with the zero code, −zero·Σ a, is one number per row: what sums start from.

/// `rows` is a literal: 1 for the product with a vector, else `tileRows`. `isByte` chooses products of whole bytes over those of nibbles, whose
/// sums may be narrow.
@_alwaysEmitIntoClient @_transparent
public func accumulate(
    _ c: inout CodeTile, rows: Int, _ a: CodePointers, from start: Int, weights panel: UnsafePointer<UInt8>, depth: Int,
    width: Int,
    isByte: Bool
) {
    var channel = start
    var w = panel
    let end = start &+ depth
    while channel < end {
        let row = loadCodeRow(w, width: width)
        c.r0 = addProducts(c.r0, weights: row, a.p0 + channel, isByte: isByte)
        if rows > 1 {
            c.r1 = addProducts(c.r1, weights: row, a.p1 + channel, isByte: isByte)
            c.r2 = addProducts(c.r2, weights: row, a.p2 + channel, isByte: isByte)
            c.r3 = addProducts(c.r3, weights: row, a.p3 + channel, isByte: isByte)
        }
        if rows > 4 {
            c.r4 = addProducts(c.r4, weights: row, a.p4 + channel, isByte: isByte)
            c.r5 = addProducts(c.r5, weights: row, a.p5 + channel, isByte: isByte)
            c.r6 = addProducts(c.r6, weights: row, a.p6 + channel, isByte: isByte)
            c.r7 = addProducts(c.r7, weights: row, a.p7 + channel, isByte: isByte)
        }
        w += 4 * width * laneCount
        channel &+= 4
    }
}

/// c + w·a with four channels of a in every lane.
@_alwaysEmitIntoClient @_transparent
public func addProducts(_ c: CodeRow, weights w: CodeRow, _ a: UnsafePointer<UInt8>, isByte: Bool) -> CodeRow {
    let a = splatCodes(a)
    if isByte {
        return (addByteProducts(c.x0, w.x0, a), addByteProducts(c.x1, w.x1, a), addByteProducts(c.x2, w.x2, a))
    }
    return (addProducts(c.x0, w.x0, a), addProducts(c.x1, w.x1, a), addProducts(c.x2, w.x2, a))
}

/// Integer lanes of a row.
public typealias IntRow = (x0: IntVector, x1: IntVector, x2: IntVector)

/// One 32-bit sum per lane.
@_alwaysEmitIntoClient @_transparent
public func integers(_ c: CodeRow, isByte: Bool) -> IntRow {
    if isByte { return (byteSums(c.x0), byteSums(c.x1), byteSums(c.x2)) }
    return (widened(c.x0), widened(c.x1), widened(c.x2))
}

@_alwaysEmitIntoClient @_transparent
public func + (a: IntRow, b: IntRow) -> IntRow { (a.x0 &+ b.x0, a.x1 &+ b.x1, a.x2 &+ b.x2) }

@_alwaysEmitIntoClient @_transparent
public func floats(_ row: IntRow) -> PanelRow { (floats(row.x0), floats(row.x1), floats(row.x2)) }

/// One integer everywhere.
@_alwaysEmitIntoClient @_transparent
public func integerRow(_ value: Int32) -> IntRow {
    let lanes = IntVector(repeating: value)
    return (lanes, lanes, lanes)
}

/// A row of sums that start at one integer, for levels whose sums have 32 bits.
@_alwaysEmitIntoClient @_transparent
public func startRow(_ value: Int32) -> CodeRow {
    let lanes = startingSums(value)
    return (lanes, lanes, lanes)
}

/// c ← c + c·a in every accumulator: nothing but multiply-adds of codes, each waiting for its own last result only.
@_alwaysEmitIntoClient @_transparent
public func chain(_ c: inout CodeTile, _ a: CodeVector) {
    c.r0 = chained(c.r0, a)
    c.r1 = chained(c.r1, a)
    c.r2 = chained(c.r2, a)
    c.r3 = chained(c.r3, a)
    if tileRows > 4 {
        c.r4 = chained(c.r4, a)
        c.r5 = chained(c.r5, a)
        c.r6 = chained(c.r6, a)
        c.r7 = chained(c.r7, a)
    }
}

@_alwaysEmitIntoClient @_transparent
public func chained(_ c: CodeRow, _ a: CodeVector) -> CodeRow {
    (addProducts(c.x0, c.x0, a), addProducts(c.x1, c.x1, a), addProducts(c.x2, c.x2, a))
}

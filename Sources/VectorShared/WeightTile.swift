// The register tile of quantised weights: C[r][x] = Σ_k a[r][k] · w[k][x], exact.
//
// a has unsigned codes, one row per pointer, read four channels at a time. w is a panel [depth/4][width·laneCount][4] of signed
// codes. Signed codes of activations are stored with `zero` added, so sums start at −zero·Σ w, which all rows share.

/// Rows and vectors of the tile. 6 · 2 = 12 sums, 2 registers of weights, a broadcast and a product fill 16 registers exactly.
/// 4 · 3 needs one more, and the sum that stays in memory takes 8 cycles per step, where the others take 6. With 32 registers,
/// the 12 floats to which sums are added stay in registers as well.
@_alwaysEmitIntoClient @_transparent
public var weightRows: Int { 6 }
@_alwaysEmitIntoClient @_transparent
public var weightVectors: Int { 2 }

/// Sums of products, in up to six rows.
public typealias WeightTile = (r0: CodeRow, r1: CodeRow, r2: CodeRow, r3: CodeRow, r4: CodeRow, r5: CodeRow)
/// The same as 32-bit integers.
public typealias IntTile = (r0: IntRow, r1: IntRow, r2: IntRow, r3: IntRow, r4: IntRow, r5: IntRow)
/// The same as floats.
public typealias FloatTile = (r0: PanelRow, r1: PanelRow, r2: PanelRow, r3: PanelRow, r4: PanelRow, r5: PanelRow)

/// C += a·w. `rows` is a literal: 1 for a vector, 4 for short ends, else 6. `isByte` selects products of whole bytes; products
/// of nibbles may have narrow sums.
@_alwaysEmitIntoClient @_transparent
public func accumulate(
    _ c: inout WeightTile, rows: Int, _ a: CodePointers, from start: Int, weights panel: UnsafePointer<UInt8>, depth: Int,
    width: Int, isByte: Bool
) {
    var channel = start
    var w = panel
    let end = start &+ depth
    while channel < end {
        let row = loadCodeRow(w, width: width)
        c.r0 = addProducts(c.r0, a.p0 + channel, row, isByte: isByte)
        if rows > 1 {
            c.r1 = addProducts(c.r1, a.p1 + channel, row, isByte: isByte)
            c.r2 = addProducts(c.r2, a.p2 + channel, row, isByte: isByte)
            c.r3 = addProducts(c.r3, a.p3 + channel, row, isByte: isByte)
        }
        if rows > 4 {
            c.r4 = addProducts(c.r4, a.p4 + channel, row, isByte: isByte)
            c.r5 = addProducts(c.r5, a.p5 + channel, row, isByte: isByte)
        }
        w += 4 * width * laneCount
        channel &+= 4
    }
}

/// c + a·w with four channels of a in every lane.
@_alwaysEmitIntoClient @_transparent
public func addProducts(_ c: CodeRow, _ a: UnsafePointer<UInt8>, _ w: CodeRow, isByte: Bool) -> CodeRow {
    let a = splatCodes(a)
    if isByte {
        return (addByteProducts(c.x0, a, w.x0), addByteProducts(c.x1, a, w.x1), addByteProducts(c.x2, a, w.x2))
    }
    return (addProducts(c.x0, a, w.x0), addProducts(c.x1, a, w.x1), addProducts(c.x2, a, w.x2))
}

/// A row of 32-bit integers.
public typealias IntRow = (x0: IntVector, x1: IntVector, x2: IntVector)

/// Converts a row of sums to one 32-bit integer per lane.
@_alwaysEmitIntoClient @_transparent
public func integers(_ c: CodeRow, isByte: Bool) -> IntRow {
    if isByte { return (byteSums(c.x0), byteSums(c.x1), byteSums(c.x2)) }
    return (widened(c.x0), widened(c.x1), widened(c.x2))
}

/// Converts every row of sums to one 32-bit integer per lane.
@_alwaysEmitIntoClient @_transparent
public func integers(_ c: WeightTile, isByte: Bool) -> IntTile {
    (
        integers(c.r0, isByte: isByte), integers(c.r1, isByte: isByte), integers(c.r2, isByte: isByte),
        integers(c.r3, isByte: isByte), integers(c.r4, isByte: isByte), integers(c.r5, isByte: isByte)
    )
}

@_alwaysEmitIntoClient @_transparent
public func + (a: IntTile, b: IntTile) -> IntTile {
    (a.r0 + b.r0, a.r1 + b.r1, a.r2 + b.r2, a.r3 + b.r3, a.r4 + b.r4, a.r5 + b.r5)
}

@_alwaysEmitIntoClient @_transparent
public func + (a: IntTile, b: IntRow) -> IntTile {
    (a.r0 + b, a.r1 + b, a.r2 + b, a.r3 + b, a.r4 + b, a.r5 + b)
}

@_alwaysEmitIntoClient @_transparent
public func - (a: IntRow, b: IntRow) -> IntRow { (a.x0 &- b.x0, a.x1 &- b.x1, a.x2 &- b.x2) }

@_alwaysEmitIntoClient @_transparent
public func * (a: IntRow, b: IntRow) -> IntRow { (a.x0 &* b.x0, a.x1 &* b.x1, a.x2 &* b.x2) }

@_alwaysEmitIntoClient @_transparent
public func + (a: IntRow, b: IntRow) -> IntRow { (a.x0 &+ b.x0, a.x1 &+ b.x1, a.x2 &+ b.x2) }

@_alwaysEmitIntoClient @_transparent
public func floats(_ row: IntRow) -> PanelRow { (floats(row.x0), floats(row.x1), floats(row.x2)) }

/// Repeats one integer in all lanes.
@_alwaysEmitIntoClient @_transparent
public func integerRow(_ value: Int32) -> IntRow {
    let lanes = IntVector(repeating: value)
    return (lanes, lanes, lanes)
}

/// Loads up to three registers of integers.
@_alwaysEmitIntoClient @_transparent
public func loadIntRow(_ pointer: UnsafePointer<Int32>, width: Int) -> IntRow {
    let raw = UnsafeRawPointer(pointer)
    let x0 = raw.loadUnaligned(as: IntVector.self)
    let x1 = width > 1 ? (raw + 4 * laneCount).loadUnaligned(as: IntVector.self) : x0
    let x2 = width > 2 ? (raw + 8 * laneCount).loadUnaligned(as: IntVector.self) : x0
    return (x0, x1, x2)
}

/// Loads integers as the initial values of 32-bit sums.
@_alwaysEmitIntoClient @_transparent
public func startRow(_ pointer: UnsafePointer<Int32>, width: Int) -> CodeRow {
    loadCodeRow(UnsafeRawPointer(pointer).assumingMemoryBound(to: UInt8.self), width: width)
}

/// Repeats one initial sum in all lanes.
@_alwaysEmitIntoClient @_transparent
public func sumRow(_ value: Int32) -> CodeRow {
    let lanes = splatWord(value)
    return (lanes, lanes, lanes)
}

/// c ← c + c·a with codes in every accumulator, and no other instructions. Each waits only for its own last result.
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

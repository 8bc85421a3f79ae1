// The register tile of products of whole bytes: C[r][x] += Σ_k a[r][k] · w[k][x], exact in 32 bits.
//
// a has codes of −127…127 with 128 added, one row per pointer, read four channels at a time. w is a panel
// [depth/4][width·laneCount][4] of signed bytes, of which quiet products take quiet ones only.

/// Rows of the tile, of two vectors each. With 16 registers as in WeightTile.swift; with 32, eight rows have 16 sums, and each load of
/// the weights serves a third more of them, which is 15% faster than six rows with VNNI.
@_alwaysEmitIntoClient @inline(__always)
public var byteRows: Int { tileRows > 4 ? 8 : 6 }

/// C += a·w. `rows` is a literal: 1, 4, 6 or 8. `isQuiet` selects products of quiet weights, whose sums start with −128·Σ w; other sums
/// start with −byteZero·Σ w.
@_alwaysEmitIntoClient @_transparent
public func accumulateBytes(
    _ c: inout CodeTile, rows: Int, _ a: CodePointers, from start: Int, weights panel: UnsafePointer<UInt8>, depth: Int,
    width: Int, isQuiet: Bool
) {
    var channel = start
    var w = panel
    let end = start &+ depth
    while channel < end {
        let row = loadCodeRow(w, width: width)
        c.r0 = addBytes(c.r0, a.p0 + channel, row, isQuiet: isQuiet)
        if rows > 1 {
            c.r1 = addBytes(c.r1, a.p1 + channel, row, isQuiet: isQuiet)
            c.r2 = addBytes(c.r2, a.p2 + channel, row, isQuiet: isQuiet)
            c.r3 = addBytes(c.r3, a.p3 + channel, row, isQuiet: isQuiet)
        }
        if rows > 4 {
            c.r4 = addBytes(c.r4, a.p4 + channel, row, isQuiet: isQuiet)
            c.r5 = addBytes(c.r5, a.p5 + channel, row, isQuiet: isQuiet)
        }
        if rows > 6 {
            c.r6 = addBytes(c.r6, a.p6 + channel, row, isQuiet: isQuiet)
            c.r7 = addBytes(c.r7, a.p7 + channel, row, isQuiet: isQuiet)
        }
        w += 4 * width * laneCount
        channel &+= 4
    }
}

/// c + a·w with four channels of a in every lane.
@_alwaysEmitIntoClient @_transparent
public func addBytes(_ c: CodeRow, _ a: UnsafePointer<UInt8>, _ w: CodeRow, isQuiet: Bool) -> CodeRow {
    let codes = splatCodes(a)
    if isQuiet {
        return (
            addQuietProducts(c.x0, codes, w.x0), addQuietProducts(c.x1, codes, w.x1), addQuietProducts(c.x2, codes, w.x2)
        )
    }
    let signed = byteCodes(codes)
    return (addByteProducts(c.x0, signed, w.x0), addByteProducts(c.x1, signed, w.x1), addByteProducts(c.x2, signed, w.x2))
}

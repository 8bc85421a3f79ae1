// The register tile over small integer codes: C[r][x] = Σ_k A[r][k] · B[k][x], exact.
//
// A has unsigned codes 0…62, read in groups of four channels through one pointer per row. B has signed codes −31…31 in a panel
// [depth/4][width·laneCount][4]: a register holds four channels of every lane, the operand of byte multiply-adds. On levels
// that multiply into 16 bits, sums are narrow and are added to the 32-bit sums in memory every `narrowDepth` channels.

/// Codes are −`codeLimit`…`codeLimit`: 6 bits with a sign, the most with which a 16-bit sum holds `narrowDepth` channels.
@_alwaysEmitIntoClient @_transparent
public var codeLimit: Int { 31 }

/// A row of up to three registers.
public typealias CodeRow = (x0: CodeVector, x1: CodeVector, x2: CodeVector)

/// Sums. Rows from `tileRows` on are never used, and the optimiser removes them.
public typealias CodeTile = (
    r0: CodeRow, r1: CodeRow, r2: CodeRow, r3: CodeRow, r4: CodeRow, r5: CodeRow, r6: CodeRow, r7: CodeRow
)

/// The rows of A: one pointer per tile row.
public typealias CodePointers = (
    p0: UnsafePointer<UInt8>, p1: UnsafePointer<UInt8>, p2: UnsafePointer<UInt8>, p3: UnsafePointer<UInt8>,
    p4: UnsafePointer<UInt8>, p5: UnsafePointer<UInt8>, p6: UnsafePointer<UInt8>, p7: UnsafePointer<UInt8>
)

/// Rows `stride` apart. Rows past `count` repeat the last one, and their results are ignored.
@_alwaysEmitIntoClient @_transparent
public func codePointers(_ base: UnsafePointer<UInt8>, stride: Int, count: Int) -> CodePointers {
    (
        base, base + minimum(1, count - 1) &* stride, base + minimum(2, count - 1) &* stride,
        base + minimum(3, count - 1) &* stride, base + minimum(4, count - 1) &* stride,
        base + minimum(5, count - 1) &* stride, base + minimum(6, count - 1) &* stride,
        base + minimum(7, count - 1) &* stride
    )
}

/// A tile of zeros.
@_alwaysEmitIntoClient @_transparent
public func zeroCodeTile() -> CodeTile {
    let zero = CodeVector(repeating: 0)
    let row = (zero, zero, zero)
    return (row, row, row, row, row, row, row, row)
}

/// Loads `width` registers of B.
@_alwaysEmitIntoClient @_transparent
public func loadCodeRow(_ pointer: UnsafePointer<UInt8>, width: Int) -> CodeRow {
    let raw = UnsafeRawPointer(pointer)
    let x0 = raw.loadUnaligned(as: CodeVector.self)
    let x1 = width > 1 ? (raw + 4 * laneCount).loadUnaligned(as: CodeVector.self) : x0
    let x2 = width > 2 ? (raw + 8 * laneCount).loadUnaligned(as: CodeVector.self) : x0
    return (x0, x1, x2)
}

/// c + a·b with four channels of a in every lane.
@_alwaysEmitIntoClient @_transparent
public func addProducts(_ a: UnsafePointer<UInt8>, _ b: CodeRow, _ c: CodeRow) -> CodeRow {
    let a = splatCodes(a)
    return (addProducts(c.x0, a, b.x0), addProducts(c.x1, a, b.x1), addProducts(c.x2, a, b.x2))
}

/// C += A·B over `depth` channels, at most `narrowDepth`.
@_alwaysEmitIntoClient @_transparent
public func accumulate(
    _ c: inout CodeTile, _ a: CodePointers, from start: Int, panel: UnsafePointer<UInt8>, depth: Int, width: Int
) {
    var channel = start
    var b = panel
    let end = start &+ depth
    while channel < end {
        let row = loadCodeRow(b, width: width)
        c.r0 = addProducts(a.p0 + channel, row, c.r0)
        c.r1 = addProducts(a.p1 + channel, row, c.r1)
        c.r2 = addProducts(a.p2 + channel, row, c.r2)
        c.r3 = addProducts(a.p3 + channel, row, c.r3)
        if tileRows > 4 {
            c.r4 = addProducts(a.p4 + channel, row, c.r4)
            c.r5 = addProducts(a.p5 + channel, row, c.r5)
            c.r6 = addProducts(a.p6 + channel, row, c.r6)
            c.r7 = addProducts(a.p7 + channel, row, c.r7)
        }
        b += 4 * width * laneCount
        channel &+= 4
    }
}

/// Stores sums of `width` registers: adds them to the memory, or with `isFirst` overwrites it with the sums plus `offset`.
@_alwaysEmitIntoClient @_transparent
public func store(
    _ c: CodeRow, _ pointer: UnsafeMutablePointer<Int32>, adding offset: UnsafePointer<Int32>, isFirst: Bool, width: Int
) {
    storeSum(c.x0, pointer, isFirst ? offset : UnsafePointer(pointer))
    if width > 1 {
        storeSum(c.x1, pointer + laneCount, isFirst ? offset + laneCount : UnsafePointer(pointer + laneCount))
    }
    if width > 2 {
        storeSum(c.x2, pointer + 2 * laneCount, isFirst ? offset + 2 * laneCount : UnsafePointer(pointer + 2 * laneCount))
    }
}

@_alwaysEmitIntoClient @_transparent
public func storeSum(_ c: CodeVector, _ target: UnsafeMutablePointer<Int32>, _ base: UnsafePointer<Int32>) {
    let sum = widened(c) &+ UnsafeRawPointer(base).loadUnaligned(as: IntVector.self)
    UnsafeMutableRawPointer(target).storeBytes(of: sum, as: IntVector.self)
}

/// Stores C in rows of memory, `stride` integers apart, as `store` does for one row.
@_alwaysEmitIntoClient @_transparent
public func store(
    _ c: CodeTile, _ pointer: UnsafeMutablePointer<Int32>, stride: Int, adding offset: UnsafePointer<Int32>, isFirst: Bool,
    width: Int
) {
    store(c.r0, pointer, adding: offset, isFirst: isFirst, width: width)
    store(c.r1, pointer + stride, adding: offset, isFirst: isFirst, width: width)
    store(c.r2, pointer + 2 * stride, adding: offset, isFirst: isFirst, width: width)
    store(c.r3, pointer + 3 * stride, adding: offset, isFirst: isFirst, width: width)
    if tileRows > 4 {
        store(c.r4, pointer + 4 * stride, adding: offset, isFirst: isFirst, width: width)
        store(c.r5, pointer + 5 * stride, adding: offset, isFirst: isFirst, width: width)
        store(c.r6, pointer + 6 * stride, adding: offset, isFirst: isFirst, width: width)
        store(c.r7, pointer + 7 * stride, adding: offset, isFirst: isFirst, width: width)
    }
}

/// The nearest integers of values in ±2²¹, ties to even. Adding 1.5·2²³ leaves the integer in the low mantissa bits.
@_alwaysEmitIntoClient @_transparent
public func nearest(_ value: Vector) -> IntVector {
    let magic = splat(12_582_912)
    return unsafeBitCast(value + magic, to: IntVector.self) &- unsafeBitCast(magic, to: IntVector.self)
}

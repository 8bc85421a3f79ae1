// The register tile under every matrix product of the package.
//
//     C[r][x] += Σ_k A[r][k] · B[k][x]        r < tileRows, x < width·laneCount, k < depth
//
// A is read one broadcast at a time through one pointer per row, all advancing by the same step, so it needs no packing:
// rows of keys (step 1), columns of values (step = token stride) and packed strips (step = tileRows) all fit. B is a panel:
// `depth` consecutive runs of width·laneCount floats. C lives in registers.

/// The accumulators of a tile. Rows from `tileRows` on are never touched and vanish.
@frozen
public struct Tile {
    public var r0: PanelRow
    public var r1: PanelRow
    public var r2: PanelRow
    public var r3: PanelRow
    public var r4: PanelRow
    public var r5: PanelRow
    public var r6: PanelRow
    public var r7: PanelRow

    /// Zero.
    @_alwaysEmitIntoClient @_transparent
    public init() {
        let zero = PanelRow(repeating: 0)
        r0 = zero
        r1 = zero
        r2 = zero
        r3 = zero
        r4 = zero
        r5 = zero
        r6 = zero
        r7 = zero
    }

    /// Rows to memory, `stride` floats apart.
    @_alwaysEmitIntoClient @_transparent
    public func write(_ pointer: UnsafeMutablePointer<Float>, stride: Int, width: Int) {
        r0.write(pointer, width: width)
        r1.write(pointer + stride, width: width)
        r2.write(pointer + 2 * stride, width: width)
        r3.write(pointer + 3 * stride, width: width)
        if tileRows > 4 {
            r4.write(pointer + 4 * stride, width: width)
            r5.write(pointer + 5 * stride, width: width)
            r6.write(pointer + 6 * stride, width: width)
            r7.write(pointer + 7 * stride, width: width)
        }
    }

    /// Adds rows of memory, `stride` floats apart.
    @_alwaysEmitIntoClient @_transparent
    public mutating func add(_ pointer: UnsafePointer<Float>, stride: Int, width: Int) {
        r0 = PanelRow(pointer, width: width) + r0
        r1 = PanelRow(pointer + stride, width: width) + r1
        r2 = PanelRow(pointer + 2 * stride, width: width) + r2
        r3 = PanelRow(pointer + 3 * stride, width: width) + r3
        if tileRows > 4 {
            r4 = PanelRow(pointer + 4 * stride, width: width) + r4
            r5 = PanelRow(pointer + 5 * stride, width: width) + r5
            r6 = PanelRow(pointer + 6 * stride, width: width) + r6
            r7 = PanelRow(pointer + 7 * stride, width: width) + r7
        }
    }

    /// Adds rows of memory, `stride` floats apart, each column times its factor.
    @_alwaysEmitIntoClient @_transparent
    public mutating func add(
        _ pointer: UnsafePointer<Float>, stride: Int, times factor: PanelRow, width: Int
    ) {
        r0 = multiplyAdd(PanelRow(pointer, width: width), factor, r0)
        r1 = multiplyAdd(PanelRow(pointer + stride, width: width), factor, r1)
        r2 = multiplyAdd(PanelRow(pointer + 2 * stride, width: width), factor, r2)
        r3 = multiplyAdd(PanelRow(pointer + 3 * stride, width: width), factor, r3)
        if tileRows > 4 {
            r4 = multiplyAdd(PanelRow(pointer + 4 * stride, width: width), factor, r4)
            r5 = multiplyAdd(PanelRow(pointer + 5 * stride, width: width), factor, r5)
            r6 = multiplyAdd(PanelRow(pointer + 6 * stride, width: width), factor, r6)
            r7 = multiplyAdd(PanelRow(pointer + 7 * stride, width: width), factor, r7)
        }
    }

    /// C += A·B.
    @_alwaysEmitIntoClient @_transparent
    public mutating func accumulate(
        _ a: RowPointers, step: Int, panel: UnsafePointer<Float>, depth: Int, width: Int
    ) {
        var offset = 0
        var b = panel
        for _ in 0..<depth {
            let row = PanelRow(b, width: width)
            r0.addProduct(a.p0[offset], row)
            r1.addProduct(a.p1[offset], row)
            r2.addProduct(a.p2[offset], row)
            r3.addProduct(a.p3[offset], row)
            if tileRows > 4 {
                r4.addProduct(a.p4[offset], row)
                r5.addProduct(a.p5[offset], row)
                r6.addProduct(a.p6[offset], row)
                r7.addProduct(a.p7[offset], row)
            }
            b += width * laneCount
            offset &+= step
        }
    }

    /// c ← c·a + b in every accumulator: nothing but multiply-adds.
    @_alwaysEmitIntoClient @_transparent
    public mutating func chain(_ a: Vector, _ b: Vector) {
        r0 = r0.chained(a, b)
        r1 = r1.chained(a, b)
        r2 = r2.chained(a, b)
        r3 = r3.chained(a, b)
        if tileRows > 4 {
            r4 = r4.chained(a, b)
            r5 = r5.chained(a, b)
            r6 = r6.chained(a, b)
            r7 = r7.chained(a, b)
        }
    }

    /// The sum of all accumulators.
    @_alwaysEmitIntoClient @_transparent
    public func total() -> Float {
        var row = r0 + r1 + r2 + r3
        if tileRows > 4 { row = row + r4 + r5 + r6 + r7 }
        return (row.x0 + row.x1 + row.x2).sum()
    }
}

extension PanelRow {
    /// self·a + b.
    @_alwaysEmitIntoClient @_transparent
    public func chained(_ a: Vector, _ b: Vector) -> PanelRow {
        PanelRow(multiplyAdd(x0, a, b), multiplyAdd(x1, a, b), multiplyAdd(x2, a, b))
    }
}

/// The rows of A: one pointer per tile row.
@frozen
public struct RowPointers {
    public var p0: UnsafePointer<Float>
    public var p1: UnsafePointer<Float>
    public var p2: UnsafePointer<Float>
    public var p3: UnsafePointer<Float>
    public var p4: UnsafePointer<Float>
    public var p5: UnsafePointer<Float>
    public var p6: UnsafePointer<Float>
    public var p7: UnsafePointer<Float>

    /// Rows `stride` apart. Rows past `count` repeat the last one: they are computed and then ignored, so that nothing is read
    /// outside the caller's memory.
    @_alwaysEmitIntoClient @_transparent
    public init(_ base: UnsafePointer<Float>, stride: Int, count: Int) {
        p0 = base
        p1 = base + Swift.min(1, count - 1) &* stride
        p2 = base + Swift.min(2, count - 1) &* stride
        p3 = base + Swift.min(3, count - 1) &* stride
        p4 = base + Swift.min(4, count - 1) &* stride
        p5 = base + Swift.min(5, count - 1) &* stride
        p6 = base + Swift.min(6, count - 1) &* stride
        p7 = base + Swift.min(7, count - 1) &* stride
    }
}

internal import KernelInterface

/// One `HadamardRotation.run`. Rows are rotated independently of each other.
///
/// A row is read as [blocks, order₁, order₂ …, 2^p]. Each factor of H acts on one axis, so they may be applied in any order.
struct RotationCall: PoolCall {
    let rows: UnsafeMutablePointer<Float>
    let rowStride: Int
    let count: Int
    let orders: [Int]
    let powerOfTwo: Int
    let matrices: UnsafePointer<Float>
    let multipliers: UnsafePointer<Float>
    let isInverse: Bool
    let kernels: any KernelTable.Type

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let row = rows + task * rowStride
        // Q = diag(signs) · H / √n and Qᵀ = Hᵀ · diag(signs) / √n.
        if !isInverse { multiply(row) }
        if powerOfTwo > 1 {
            for start in stride(from: 0, to: count, by: powerOfTwo) { walshHadamard(row + start, count: powerOfTwo) }
        }
        if !orders.isEmpty {
            let packing = scratch
            let other = (scratch + GEMMScratch.byteCount).assumingMemoryBound(to: Float.self)
            var (source, target) = (row, other)
            var inner = powerOfTwo
            var matrix = matrices + orders.reduce(0) { $0 + 2 * $1 * $1 }
            for order in orders.reversed() {
                matrix -= 2 * order * order
                // y_j = Σᵢ xᵢ · H_ij reads Hᵀ as the left operand.
                let operand = isInverse ? matrix : matrix + order * order
                for start in stride(from: 0, to: count, by: order * inner) {
                    var arguments = GEMMArguments(
                        a: operand, aStride: order, b: source + start, bStride: inner, bIsTransposed: false,
                        c: target + start, cStride: inner, rows: order, columns: inner, depth: order, scratch: packing)
                    // Wide blocks are multiplied in pieces that fit the packed operand.
                    for column in stride(from: 0, to: inner, by: Self.columnBlock) {
                        arguments.b = UnsafePointer(source + start + column)
                        arguments.c = target + start + column
                        arguments.columns = min(Self.columnBlock, inner - column)
                        kernels.multiplyBlock(&arguments)
                    }
                }
                (source, target) = (target, source)
                inner *= order
            }
            if source != row { row.update(from: source, count: count) }
        }
        if isInverse { multiply(row) }
    }

    /// A multiple of the panel width on every level.
    private static let columnBlock = GEMMScratch.columnBlock

    private func multiply(_ row: UnsafeMutablePointer<Float>) {
        for channel in 0..<count { row[channel] *= multipliers[channel] }
    }
}

/// x ← x · S for Sylvester's matrix S of a power of two: for h = 1, 2, 4 …, (a, b) ← (a + b, a − b) at distance h.
///
/// Each pass computes two distances, so that memory is read half as often.
private func walshHadamard(_ x: UnsafeMutablePointer<Float>, count: Int) {
    var distance = 1
    if count.trailingZeroBitCount % 2 == 1 {
        for k in stride(from: 0, to: count, by: 2) { (x[k], x[k + 1]) = (x[k] + x[k + 1], x[k] - x[k + 1]) }
        distance = 2
    } else if count >= 4 {
        for k in stride(from: 0, to: count, by: 4) {
            let (a, b, c, d) = (x[k] + x[k + 1], x[k] - x[k + 1], x[k + 2] + x[k + 3], x[k + 2] - x[k + 3])
            (x[k], x[k + 1], x[k + 2], x[k + 3]) = (a + c, b + d, a - c, b - d)
        }
        distance = 4
    }
    if distance == 2 && count >= 8 {
        // Distances 2 and 4, with two neighbours in a vector.
        for k in stride(from: 0, to: count, by: 8) { passOfFour(SIMD2<Float>.self, x + k, distance: 2) }
        distance = 8
    }
    while distance < count {
        for block in stride(from: 0, to: count, by: 4 * distance) {
            for k in stride(from: block, to: block + distance, by: 4) {
                passOfFour(SIMD4<Float>.self, x + k, distance: distance)
            }
        }
        distance *= 4
    }
}

@inline(__always)
private func passOfFour<V: SIMD<Float>>(_ type: V.Type, _ x: UnsafeMutablePointer<Float>, distance: Int) {
    let base = UnsafeMutableRawPointer(x)
    let step = distance * 4
    let (a, b) = (base.loadUnaligned(as: V.self), base.loadUnaligned(fromByteOffset: step, as: V.self))
    let (c, d) = (
        base.loadUnaligned(fromByteOffset: 2 * step, as: V.self), base.loadUnaligned(fromByteOffset: 3 * step, as: V.self)
    )
    let (ab, aMinusB, cd, cMinusD) = (a + b, a - b, c + d, c - d)
    base.storeBytes(of: ab + cd, as: V.self)
    base.storeBytes(of: aMinusB + cMinusD, toByteOffset: step, as: V.self)
    base.storeBytes(of: ab - cd, toByteOffset: 2 * step, as: V.self)
    base.storeBytes(of: aMinusB - cMinusD, toByteOffset: 3 * step, as: V.self)
}

// Transposes of small matrices, the inner step of packing and unpacking.

/// destination[x][y] = source[y][x]·factor for y < rows, x < columns, in 4 × 4 blocks and then the edges. Strides count floats.
@_alwaysEmitIntoClient @_transparent
public func transpose(
    _ source: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, times factor: Float,
    into destination: UnsafeMutablePointer<Float>, destinationStride: Int
) {
    var y = 0
    while y + 4 <= rows {
        var x = 0
        while x + 4 <= columns {
            transposeBlock(
                source + y * stride + x, stride: stride, times: SIMD4(repeating: factor),
                into: destination + x * destinationStride + y, destinationStride: destinationStride)
            x += 4
        }
        while x < columns {
            for i in 0..<4 { destination[x * destinationStride + y + i] = source[(y + i) * stride + x] * factor }
            x += 1
        }
        y += 4
    }
    while y < rows {
        for x in 0..<columns { destination[x * destinationStride + y] = source[y * stride + x] * factor }
        y += 1
    }
}

/// Transposes four rows of four, in two rounds of even/odd de-interleaving, which are eight shuffles.
@_alwaysEmitIntoClient @_transparent
public func transposeBlock(
    _ source: UnsafePointer<Float>, stride: Int, times factor: SIMD4<Float>, into destination: UnsafeMutablePointer<Float>,
    destinationStride: Int
) {
    let r0 = UnsafeRawPointer(source).loadUnaligned(as: SIMD4<Float>.self)
    let r1 = UnsafeRawPointer(source + stride).loadUnaligned(as: SIMD4<Float>.self)
    let r2 = UnsafeRawPointer(source + 2 * stride).loadUnaligned(as: SIMD4<Float>.self)
    let r3 = UnsafeRawPointer(source + 3 * stride).loadUnaligned(as: SIMD4<Float>.self)
    let (ab, cd) = (SIMD8(lowHalf: r0, highHalf: r1), SIMD8(lowHalf: r2, highHalf: r3))
    let even = SIMD8(lowHalf: ab.evenHalf, highHalf: cd.evenHalf)
    let odd = SIMD8(lowHalf: ab.oddHalf, highHalf: cd.oddHalf)
    let target = UnsafeMutableRawPointer(destination)
    let rowBytes = destinationStride * 4
    target.storeBytes(of: even.evenHalf * factor, as: SIMD4<Float>.self)
    (target + rowBytes).storeBytes(of: odd.evenHalf * factor, as: SIMD4<Float>.self)
    (target + 2 * rowBytes).storeBytes(of: even.oddHalf * factor, as: SIMD4<Float>.self)
    (target + 3 * rowBytes).storeBytes(of: odd.oddHalf * factor, as: SIMD4<Float>.self)
}

/// destination[x][y] = source[y][x] for words of 32 bits; `rows` and `columns` are multiples of 4. Strides count words.
@_alwaysEmitIntoClient @_transparent
public func transposeWords(
    _ source: UnsafePointer<Int32>, stride: Int, rows: Int, columns: Int, into destination: UnsafeMutablePointer<Int32>,
    destinationStride: Int
) {
    var y = 0
    while y < rows {
        var x = 0
        while x < columns {
            let base = UnsafeRawPointer(source + y * stride + x)
            let r0 = base.loadUnaligned(as: SIMD4<Int32>.self)
            let r1 = (base + 4 * stride).loadUnaligned(as: SIMD4<Int32>.self)
            let r2 = (base + 8 * stride).loadUnaligned(as: SIMD4<Int32>.self)
            let r3 = (base + 12 * stride).loadUnaligned(as: SIMD4<Int32>.self)
            let (ab, cd) = (SIMD8(lowHalf: r0, highHalf: r1), SIMD8(lowHalf: r2, highHalf: r3))
            let even = SIMD8(lowHalf: ab.evenHalf, highHalf: cd.evenHalf)
            let odd = SIMD8(lowHalf: ab.oddHalf, highHalf: cd.oddHalf)
            let target = UnsafeMutableRawPointer(destination + x * destinationStride + y)
            let rowBytes = destinationStride * 4
            target.storeBytes(of: even.evenHalf, as: SIMD4<Int32>.self)
            (target + rowBytes).storeBytes(of: odd.evenHalf, as: SIMD4<Int32>.self)
            (target + 2 * rowBytes).storeBytes(of: even.oddHalf, as: SIMD4<Int32>.self)
            (target + 3 * rowBytes).storeBytes(of: odd.oddHalf, as: SIMD4<Int32>.self)
            x += 4
        }
        y += 4
    }
}

// Small transposes, the inner step of packing and unpacking.

/// A 4 × 4 block.
@frozen
public struct Block4 {
    public var r0: SIMD4<Float>
    public var r1: SIMD4<Float>
    public var r2: SIMD4<Float>
    public var r3: SIMD4<Float>

    /// Four rows of four floats, `stride` apart.
    @_alwaysEmitIntoClient @_transparent
    public init(_ pointer: UnsafePointer<Float>, stride: Int) {
        r0 = UnsafeRawPointer(pointer).loadUnaligned(as: SIMD4<Float>.self)
        r1 = UnsafeRawPointer(pointer + stride).loadUnaligned(as: SIMD4<Float>.self)
        r2 = UnsafeRawPointer(pointer + 2 * stride).loadUnaligned(as: SIMD4<Float>.self)
        r3 = UnsafeRawPointer(pointer + 3 * stride).loadUnaligned(as: SIMD4<Float>.self)
    }

    /// Rows become columns: two rounds of even/odd de-interleaving, eight shuffles.
    @_alwaysEmitIntoClient @_transparent
    public mutating func transpose() {
        let ab = SIMD8(lowHalf: r0, highHalf: r1)
        let cd = SIMD8(lowHalf: r2, highHalf: r3)
        let even = SIMD8(lowHalf: ab.evenHalf, highHalf: cd.evenHalf)
        let odd = SIMD8(lowHalf: ab.oddHalf, highHalf: cd.oddHalf)
        r0 = even.evenHalf
        r1 = odd.evenHalf
        r2 = even.oddHalf
        r3 = odd.oddHalf
    }

    /// Four rows of four floats, `stride` apart, each times `factor`.
    @_alwaysEmitIntoClient @_transparent
    public func write(_ pointer: UnsafeMutablePointer<Float>, stride: Int, times factor: SIMD4<Float>) {
        UnsafeMutableRawPointer(pointer).storeBytes(of: r0 * factor, as: SIMD4<Float>.self)
        UnsafeMutableRawPointer(pointer + stride).storeBytes(of: r1 * factor, as: SIMD4<Float>.self)
        UnsafeMutableRawPointer(pointer + 2 * stride).storeBytes(of: r2 * factor, as: SIMD4<Float>.self)
        UnsafeMutableRawPointer(pointer + 3 * stride).storeBytes(of: r3 * factor, as: SIMD4<Float>.self)
    }
}

/// destination[x][y] = source[y][x]·factor for y < rows, x < columns; strides count floats.
@_alwaysEmitIntoClient @_transparent
public func transpose(
    _ source: UnsafePointer<Float>, stride: Int, rows: Int, columns: Int, times factor: Float,
    into destination: UnsafeMutablePointer<Float>, destinationStride: Int
) {
    var y = 0
    while y + 4 <= rows {
        var x = 0
        while x + 4 <= columns {
            var block = Block4(source + y * stride + x, stride: stride)
            block.transpose()
            block.write(
                destination + x * destinationStride + y, stride: destinationStride, times: SIMD4(repeating: factor))
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

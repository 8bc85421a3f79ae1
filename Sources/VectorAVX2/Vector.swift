// The AVX2 level: 256-bit vectors, 16 registers, FMA and F16C. Compiled with -march=x86-64-v3.
public import CIntrinsics

/// One register of single-precision lanes.
public typealias Vector = SIMD8<Float>
/// One register of 32-bit integer lanes, lane for lane beside `Vector`.
public typealias IntVector = SIMD8<Int32>

/// Lanes of `Vector`.
@_alwaysEmitIntoClient @_transparent
public var laneCount: Int { 8 }

/// Rows of the register tile. 16 ymm registers: 4 rows × 3 vectors = 12 accumulators, 3 panel vectors and 1 broadcast fill
/// them exactly; 12 independent chains cover the 4-cycle FMA latency on 2 ports (8) with room to spare.
@_alwaysEmitIntoClient @inline(__always)
public var tileRows: Int { 4 }

/// `a·b + c` with one rounding.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Vector) -> Vector { c.addingProduct(a, b) }

/// Lane-wise `a > b ? a : b`: the second operand wins when either is NaN.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: Vector, _ b: Vector) -> Vector {
    _mm256_max_ps(a, b)
}

/// Eight IEEE half-precision values, widened.
@_alwaysEmitIntoClient @_transparent
public func loadHalf(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m128i.self)
    return _mm256_cvtph_ps(bits)
}

/// Eight bfloat16 values, widened: bfloat16 is the upper half of a Float.
@_alwaysEmitIntoClient @_transparent
public func loadBFloat16(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m128i.self)
    return unsafeBitCast(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16), to: Vector.self)
}

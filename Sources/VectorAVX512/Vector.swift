// The AVX-512 level: 512-bit vectors, 32 registers (F, CD, BW, DQ, VL and VNNI). Compiled with
// -march=x86-64-v4 and -mavx512vnni.
public import CIntrinsics

/// One register of single-precision lanes.
public typealias Vector = SIMD16<Float>
/// One register of 32-bit integer lanes, lane for lane beside `Vector`.
public typealias IntVector = SIMD16<Int32>

/// Lanes of `Vector`.
@_alwaysEmitIntoClient @_transparent
public var laneCount: Int { 16 }

/// Rows of the register tile. 32 zmm registers: 8 rows × 3 vectors = 24 accumulators, 3 panel vectors and the broadcasts
/// leave four to spare; 11 loads feed 24 FMAs, so the load ports stay half idle.
@_alwaysEmitIntoClient @inline(__always)
public var tileRows: Int { 8 }

/// `a·b + c` with one rounding.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Vector) -> Vector { c.addingProduct(a, b) }

/// Lane-wise `a > b ? a : b`: the second operand wins when either is NaN.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: Vector, _ b: Vector) -> Vector {
    _mm512_max_ps(a, b)
}

/// Sixteen IEEE half-precision values, widened.
@_alwaysEmitIntoClient @_transparent
public func loadHalf(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m256i.self)
    return _mm512_cvtph_ps(bits)
}

/// Sixteen bfloat16 values, widened: bfloat16 is the upper half of a Float.
@_alwaysEmitIntoClient @_transparent
public func loadBFloat16(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m256i.self)
    return unsafeBitCast(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16), to: Vector.self)
}

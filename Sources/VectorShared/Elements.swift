// Loads, stores and 16-bit conversions whose source is the same for every instruction set.

public import CIntrinsics

/// Loads lanes from memory of any alignment.
@_alwaysEmitIntoClient @_transparent
public func load(_ pointer: UnsafePointer<Float>) -> Vector {
    UnsafeRawPointer(pointer).loadUnaligned(as: Vector.self)
}

/// Stores lanes in memory of any alignment.
@_alwaysEmitIntoClient @_transparent
public func store(_ value: Vector, _ pointer: UnsafeMutablePointer<Float>) {
    UnsafeMutableRawPointer(pointer).storeBytes(of: value, as: Vector.self)
}

/// Repeats one value in every lane.
@_alwaysEmitIntoClient @_transparent
public func splat(_ value: Float) -> Vector { Vector(repeating: value) }

/// Lane-wise |x|.
@_alwaysEmitIntoClient @_transparent
public func magnitude(_ x: Vector) -> Vector {
    unsafeBitCast(unsafeBitCast(x, to: IntVector.self) & 0x7fff_ffff, to: Vector.self)
}

/// Lane-wise −|x|.
@_alwaysEmitIntoClient @_transparent
public func negativeMagnitude(_ x: Vector) -> Vector {
    unsafeBitCast(unsafeBitCast(x, to: IntVector.self) | IntVector(repeating: Int32(bitPattern: 0x8000_0000)), to: Vector.self)
}

/// The bit pattern of the half-precision value nearest to `value`, ties to even.
///
/// Adding a power of two 10 bits above the last kept bit makes the FPU round, for normal and subnormal results alike. Overflow
/// becomes infinity, and NaN stays NaN.
@_alwaysEmitIntoClient @_transparent
public func narrowToHalf(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    let sign = UInt16(truncatingIfNeeded: bits >> 16) & 0x8000
    let magnitude = bits & 0x7fff_ffff
    if magnitude > 0x7f80_0000 { return sign | 0x7e00 }
    if magnitude >= 0x4780_0000 { return sign | 0x7c00 }  // ≥ 65536
    if magnitude < 0x3880_0000 {  // below 2⁻¹⁴: subnormal, one step is 2⁻²⁴
        let rounded = Float(bitPattern: magnitude) + 0.5
        return sign | UInt16(truncatingIfNeeded: rounded.bitPattern &- 0x3f00_0000)
    }
    let odd = (magnitude >> 13) & 1
    return sign | UInt16(truncatingIfNeeded: (magnitude &- 0x3800_0000 &+ 0xfff &+ odd) >> 13)
}

/// The bit pattern of the bfloat16 value nearest to `value`, ties to even; NaN stays NaN.
@_alwaysEmitIntoClient @_transparent
public func narrowToBFloat16(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    if bits & 0x7fff_ffff > 0x7f80_0000 { return UInt16(truncatingIfNeeded: bits >> 16) | 0x40 }
    return UInt16(truncatingIfNeeded: (bits &+ 0x7fff &+ ((bits >> 16) & 1)) >> 16)
}

/// The value of a half-precision bit pattern, by the method of the portable `loadHalf`.
@_alwaysEmitIntoClient @_transparent
public func widenHalf(_ half: UInt16) -> Float {
    let magnitude = UInt32(half & 0x7fff) << 13
    let scaled = Float(bitPattern: magnitude) * Float(bitPattern: (127 + 112) << 23)
    let special: UInt32 = magnitude >= 0x0f80_0000 ? 0x7f80_0000 : 0
    return Float(bitPattern: scaled.bitPattern | special | UInt32(half & 0x8000) << 16)
}

// The standard library's minimum and maximum are generic, and specialisations that are not inlined become weak symbols.

@_alwaysEmitIntoClient @_transparent
public func minimum(_ a: Int, _ b: Int) -> Int { a < b ? a : b }

@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: Int, _ b: Int) -> Int { a > b ? a : b }

/// Prefetches the cache line at `pointer` into the second level. Never faults, so `pointer` may be any address.
@_alwaysEmitIntoClient @_transparent
public func prefetch(_ pointer: UnsafePointer<Float>) { sparsekernels_prefetch(pointer) }

/// Prefetches the cache line at `pointer` into the first level. Never faults, so `pointer` may be any address.
@_alwaysEmitIntoClient @_transparent
public func prefetchNear(_ pointer: UnsafeRawPointer) { sparsekernels_prefetch_near(pointer) }

/// Makes what was stored past the caches visible before everything that is stored later.
@_alwaysEmitIntoClient @_transparent
public func finishStreaming() { sparsekernels_store_fence() }

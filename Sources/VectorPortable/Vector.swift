// The portable level: 128-bit vectors that every x86-64 (SSE2) and arm64 (NEON) core has, without compiler flags.

#if arch(x86_64)
    public import CIntrinsics
#endif

/// One register of single-precision lanes.
public typealias Vector = SIMD4<Float>
/// One register of 32-bit integers, with as many lanes as `Vector`.
public typealias IntVector = SIMD4<Int32>

/// The number of lanes of `Vector`.
@_alwaysEmitIntoClient @_transparent
public var laneCount: Int { 4 }

#if arch(arm64)
    /// Rows of the register tile. 32 NEON registers: 8 rows × 3 vectors = 24 accumulators, 3 panel vectors and the broadcasts.
    @_alwaysEmitIntoClient @inline(__always)
    public var tileRows: Int { 8 }
#else
    /// Rows of the register tile. 16 xmm registers: 4 rows × 3 vectors = 12 accumulators, 3 panel vectors and 1 broadcast.
    @_alwaysEmitIntoClient @inline(__always)
    public var tileRows: Int { 4 }
#endif

/// `a·b + c`: one rounding on arm64, two on x86-64, whose baseline is not fused, so that `addingProduct` would call `fmaf`.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Vector) -> Vector {
    #if arch(arm64)
        c.addingProduct(a, b)
    #else
        c + a * b
    #endif
}

/// Lane-wise `a > b ? a : b`, which is the second operand when either is NaN.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: Vector, _ b: Vector) -> Vector { b.replacing(with: a, where: a .> b) }

/// Loads four IEEE half-precision values and widens them.
///
/// The x86-64 baseline has no conversion instruction, so this is integer arithmetic: it shifts exponent and mantissa to their
/// places and multiplies by 2¹¹² to re-bias the exponent, which also normalises subnormals.
@_alwaysEmitIntoClient @_transparent
public func loadHalf(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let half = UnsafeRawPointer(pointer).loadUnaligned(as: SIMD4<UInt16>.self)
    let bits = SIMD4<UInt32>(truncatingIfNeeded: half)
    let magnitude = (bits & 0x7fff) &<< 13
    let scaled = unsafeBitCast(magnitude, to: SIMD4<Float>.self) * Float(bitPattern: (127 + 112) << 23)
    // For exponent 31 (infinity and NaN) the result is 2¹⁶ or more; this sets its exponent field to all ones.
    let special = SIMD4<UInt32>(repeating: 0).replacing(with: 0x7f80_0000, where: magnitude .>= SIMD4(repeating: 0x0f80_0000))
    return unsafeBitCast(unsafeBitCast(scaled, to: SIMD4<UInt32>.self) | special | ((bits & 0x8000) &<< 16), to: Vector.self)
}

/// Loads four bfloat16 values and widens them. A bfloat16 is the upper half of a Float.
@_alwaysEmitIntoClient @_transparent
public func loadBFloat16(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let half = UnsafeRawPointer(pointer).loadUnaligned(as: SIMD4<UInt16>.self)
    return unsafeBitCast(SIMD4<UInt32>(truncatingIfNeeded: half) &<< 16, to: Vector.self)
}

/// Loads four E4M3 codes as 2⁻⁸ of their values; codes of NaN as ±1.875. Exponent and mantissa move to their places, and a product
/// with 2¹¹² re-biases the exponent and normalises subnormals.
@_alwaysEmitIntoClient @_transparent
public func loadE4M3(_ pointer: UnsafeRawPointer) -> Vector {
    let bits = loadByteLanes(pointer)
    let scaled = unsafeBitCast((bits & 0x7f) &<< 20, to: Vector.self) * Float(bitPattern: (127 + 112) << 23)
    return unsafeBitCast(unsafeBitCast(scaled, to: IntVector.self) | ((bits & 0x80) &<< 24), to: Vector.self)
}

/// Loads four E5M2 codes and widens them. A code is the upper byte of a half.
@_alwaysEmitIntoClient @_transparent
public func loadE5M2(_ pointer: UnsafeRawPointer) -> Vector {
    let bits = loadByteLanes(pointer)
    let magnitude = (bits & 0x7f) &<< 21
    let scaled = unsafeBitCast(magnitude, to: Vector.self) * Float(bitPattern: (127 + 112) << 23)
    let special = IntVector(repeating: 0).replacing(
        with: 0x7f80_0000, where: magnitude .>= IntVector(repeating: 0x0f80_0000))
    return unsafeBitCast(unsafeBitCast(scaled, to: IntVector.self) | special | ((bits & 0x80) &<< 24), to: Vector.self)
}

/// Converts integer lanes to floats.
@_alwaysEmitIntoClient @_transparent
public func floats(_ integers: IntVector) -> Vector { Vector(integers) }

/// The sign bits of all lanes, with that of lane 0 lowest.
@_alwaysEmitIntoClient @_transparent
public func signBits(_ value: Vector) -> UInt64 {
    #if arch(x86_64)
        return UInt64(UInt32(bitPattern: _mm_movemask_ps(value)))
    #else
        let bits = unsafeBitCast(value, to: SIMD4<UInt32>.self) &>> 31
        return UInt64(bits[0] | bits[1] &<< 1 | bits[2] &<< 2 | bits[3] &<< 3)
    #endif
}

// MARK: - Small integer codes

/// One register of bytes, or of 32-bit sums of their products.
public typealias CodeVector = SIMD4<Int32>

/// The channels whose products a sum can hold: with 32 bits, any practical number.
@_alwaysEmitIntoClient @_transparent
public var narrowDepth: Int { 1 << 20 }

/// Loads four adjacent bytes and repeats them in every lane.
@_alwaysEmitIntoClient @_transparent
public func splatCodes(_ pointer: UnsafePointer<UInt8>) -> CodeVector {
    SIMD4(repeating: UnsafeRawPointer(pointer).loadUnaligned(as: Int32.self))
}

#if arch(x86_64)
    /// sum += products of unsigned and signed codes, four per lane. SSE2 multiplies pairs of 16-bit lanes: the even bytes are
    /// one product, the odd bytes another.
    @_alwaysEmitIntoClient @_transparent
    public func addProducts(_ sum: CodeVector, _ unsigned: CodeVector, _ signed: CodeVector) -> CodeVector {
        let (a, b) = (unsafeBitCast(unsigned, to: __m128i.self), unsafeBitCast(signed, to: __m128i.self))
        let even = _mm_madd_epi16(_mm_and_si128(a, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(b, 8), 8))
        let odd = _mm_madd_epi16(_mm_srli_epi16(a, 8), _mm_srai_epi16(b, 8))
        return sum &+ unsafeBitCast(_mm_add_epi32(even, odd), to: CodeVector.self)
    }
#else
    /// sum += products of unsigned and signed codes, four per lane. Bytes are widened to 16-bit lanes, which hold one product.
    @_alwaysEmitIntoClient @_transparent
    public func addProducts(_ sum: CodeVector, _ unsigned: CodeVector, _ signed: CodeVector) -> CodeVector {
        let a = SIMD16<Int16>(truncatingIfNeeded: unsafeBitCast(unsigned, to: SIMD16<UInt8>.self))
        let b = SIMD16<Int16>(truncatingIfNeeded: unsafeBitCast(signed, to: SIMD16<Int8>.self))
        let products = a &* b
        let pairs =
            SIMD8<Int32>(truncatingIfNeeded: products.evenHalf) &+ SIMD8<Int32>(truncatingIfNeeded: products.oddHalf)
        return sum &+ pairs.evenHalf &+ pairs.oddHalf
    }
#endif

/// Sums as one 32-bit integer per lane, which they already are.
@_alwaysEmitIntoClient @_transparent
public func widened(_ sum: CodeVector) -> IntVector { sum }

/// Stores the lowest byte of every lane in adjacent bytes.
@_alwaysEmitIntoClient @_transparent
public func storeLowBytes(_ value: IntVector, _ pointer: UnsafeMutablePointer<UInt8>) {
    UnsafeMutableRawPointer(pointer).storeBytes(of: SIMD4<UInt8>(truncatingIfNeeded: value), as: SIMD4<UInt8>.self)
}

/// Stores the lowest 16 bits of every lane in adjacent halves.
@_alwaysEmitIntoClient @_transparent
public func storeLowHalves(_ value: IntVector, _ pointer: UnsafeMutablePointer<UInt16>) {
    UnsafeMutableRawPointer(pointer).storeBytes(of: SIMD4<UInt16>(truncatingIfNeeded: value), as: SIMD4<UInt16>.self)
}

/// Lane-wise maximum of integers.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: IntVector, _ b: IntVector) -> IntVector {
    b.replacing(with: a, where: a .> b)
}

/// The sum of the lanes. The standard library's function is generic and not always inlined.
@_alwaysEmitIntoClient @_transparent
public func laneSum(_ value: Vector) -> Float {
    let two = value.lowHalf + value.highHalf
    return two[0] + two[1]
}

/// The largest lane.
@_alwaysEmitIntoClient @_transparent
public func largest(_ value: IntVector) -> Int32 {
    let two = value.lowHalf.replacing(with: value.highHalf, where: value.highHalf .> value.lowHalf)
    return two[0] > two[1] ? two[0] : two[1]
}

// MARK: - Quantised weights

/// The largest magnitude that a sum of products of nibble codes can hold.
@_alwaysEmitIntoClient @_transparent
public var codeSumLimit: Int { Int(Int32.max) }

/// The number that is added to signed codes of activations, for products with weights of whole bytes.
@_alwaysEmitIntoClient @_transparent
public var byteZero: Int32 { 128 }

/// sum += products of codes with 128 added and signed weights, four per 32-bit lane.
@_alwaysEmitIntoClient @_transparent
public func addByteProducts(_ sum: CodeVector, _ codes: CodeVector, _ weights: CodeVector) -> CodeVector {
    addProducts(sum, codes, weights)
}

/// Converts sums of `addByteProducts` to integer lanes.
@_alwaysEmitIntoClient @_transparent
public func byteSums(_ sum: CodeVector) -> IntVector { sum }

/// Codes of activations with 128 added, as `addByteProducts` takes them.
@_alwaysEmitIntoClient @_transparent
public func byteCodes(_ codes: CodeVector) -> CodeVector { codes }

/// Whether products with weights of whole bytes are faster if no pair of adjacent ones is loud.
@_alwaysEmitIntoClient @_transparent
public var prefersQuietWeights: Bool { false }

/// The weights as quiet ones: here all are, because sums of products have 32 bits.
@_alwaysEmitIntoClient @_transparent
public func quietWeights(_ weights: CodeVector) -> CodeVector { weights }

/// sum += products of unsigned codes and quiet weights, four per 32-bit lane.
@_alwaysEmitIntoClient @_transparent
public func addQuietProducts(_ sum: CodeVector, _ codes: CodeVector, _ weights: CodeVector) -> CodeVector {
    addProducts(sum, codes, weights)
}

/// Byte-wise a + b.
@_alwaysEmitIntoClient @_transparent
public func addBytes(_ a: CodeVector, _ b: CodeVector) -> CodeVector {
    unsafeBitCast(
        unsafeBitCast(a, to: SIMD16<UInt8>.self) &+ unsafeBitCast(b, to: SIMD16<UInt8>.self), to: CodeVector.self)
}

/// Repeats a 32-bit integer in every lane.
@_alwaysEmitIntoClient @_transparent
public func splatWord(_ value: Int32) -> CodeVector { CodeVector(repeating: value) }

/// Splits the eight nibbles of every lane into two registers of bytes, the low ones and the high ones.
@_alwaysEmitIntoClient @_transparent
public func nibblesInBytes(_ packed: CodeVector) -> (low: CodeVector, high: CodeVector) {
    (packed & 0x0f0f_0f0f, (packed &>> 4) & 0x0f0f_0f0f)
}

/// Looks up codes 0…15 in a table of 16 bytes. The baseline has no instruction for it.
@_alwaysEmitIntoClient @_transparent
public func lookUp(_ codes: CodeVector, _ table: UnsafePointer<UInt8>) -> CodeVector {
    let index = unsafeBitCast(codes, to: SIMD16<UInt8>.self)
    var bytes = SIMD16<UInt8>()
    for i in 0..<16 { bytes[i] = table[Int(index[i])] }
    return unsafeBitCast(bytes, to: CodeVector.self)
}

// MARK: - Tokens of a cache

/// The tokens of a score tile: 2 tokens × 4 rows.
@_alwaysEmitIntoClient @inline(__always)
public var tokenTile: Int { 2 }

@_alwaysEmitIntoClient @_transparent
func rowSums(_ t: TokenCodeSums) -> IntVector {
    let (a, b, c, d) = t
    return IntVector(a[0] &+ a[1], b[0] &+ b[1], c[0] &+ c[1], d[0] &+ d[1])
        &+ IntVector(a[2] &+ a[3], b[2] &+ b[3], c[2] &+ c[3], d[2] &+ d[3])
}

/// Sums the lanes of every vector of a tile and stores the sums, [token][row].
@_alwaysEmitIntoClient @_transparent
public func storeTileSums(
    _ t0: TokenSums, _ t1: TokenSums, _ t2: TokenSums, _ t3: TokenSums, _ pointer: UnsafeMutablePointer<Float>
) {
    store(Vector(laneSum(t0.r0), laneSum(t0.r1), laneSum(t0.r2), laneSum(t0.r3)), pointer)
    store(Vector(laneSum(t1.r0), laneSum(t1.r1), laneSum(t1.r2), laneSum(t1.r3)), pointer + 4)
}

/// Sums the 32-bit lanes of every register of a tile and stores the sums as floats, [token][row].
@_alwaysEmitIntoClient @_transparent
public func storeTileSums(
    _ t0: TokenCodeSums, _ t1: TokenCodeSums, _ t2: TokenCodeSums, _ t3: TokenCodeSums, _ pointer: UnsafeMutablePointer<Float>
) {
    store(floats(rowSums(t0)), pointer)
    store(floats(rowSums(t1)), pointer + 4)
}

/// Loads one value and repeats it four times.
@_alwaysEmitIntoClient @_transparent
public func repeatEach(_ pointer: UnsafePointer<Float>) -> Vector { splat(pointer[0]) }

/// Integer lanes as a register of codes.
@_alwaysEmitIntoClient @_transparent
public func codes(_ value: IntVector) -> CodeVector { value }

/// sum += products of adjacent pairs of signed 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func addPairProducts(_ sum: CodeVector, _ a: CodeVector, _ b: CodeVector) -> CodeVector {
    #if arch(x86_64)
        let products = _mm_madd_epi16(unsafeBitCast(a, to: __m128i.self), unsafeBitCast(b, to: __m128i.self))
        return sum &+ unsafeBitCast(products, to: CodeVector.self)
    #else
        let low = ((a &<< 16) &>> 16) &* ((b &<< 16) &>> 16)
        return sum &+ low &+ (a &>> 16) &* (b &>> 16)
    #endif
}

/// Loads `2·laneCount` bytes as 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func loadBytes(_ pointer: UnsafeRawPointer) -> CodeVector {
    unsafeBitCast(SIMD8<UInt16>(truncatingIfNeeded: pointer.loadUnaligned(as: SIMD8<UInt8>.self)), to: CodeVector.self)
}

/// Loads `laneCount` bytes as 32-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func loadByteLanes(_ pointer: UnsafeRawPointer) -> IntVector {
    let word = pointer.loadUnaligned(as: UInt32.self)
    return IntVector(
        Int32(word & 0xff), Int32((word &>> 8) & 0xff), Int32((word &>> 16) & 0xff), Int32(word &>> 24))
}

/// Splits bytes in 16-bit lanes into their low and their high nibbles.
@_alwaysEmitIntoClient @_transparent
public func nibblesInHalves(_ bytes: CodeVector) -> (low: CodeVector, high: CodeVector) {
    (bytes & 0x000f_000f, (bytes &>> 4) & 0x000f_000f)
}

/// Repeats four values to fill a vector.
@_alwaysEmitIntoClient @_transparent
public func repeatFour(_ four: SIMD4<Float>) -> Vector { four }

/// The sum over groups of four lanes. This level has one group.
@_alwaysEmitIntoClient @_transparent
public func foldSum(_ value: Vector) -> SIMD4<Float> { value }

/// The maximum over groups of four lanes. This level has one group.
@_alwaysEmitIntoClient @_transparent
public func foldMaximum(_ value: Vector) -> SIMD4<Float> { value }

/// Stores lanes past the caches where the instruction exists, in memory that is aligned to whole vectors.
@_alwaysEmitIntoClient @_transparent
public func stream(_ value: Vector, _ pointer: UnsafeMutablePointer<Float>) {
    #if arch(x86_64)
        _mm_stream_ps(pointer, value)
    #else
        UnsafeMutableRawPointer(pointer).storeBytes(of: value, as: Vector.self)
    #endif
}

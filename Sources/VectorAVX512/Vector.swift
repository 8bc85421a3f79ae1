// The AVX-512 level: 512-bit vectors, 32 registers (F, CD, BW, DQ, VL and VNNI). Compiled with
// -march=x86-64-v4 and -mavx512vnni.
public import CIntrinsics

/// One register of single-precision lanes.
public typealias Vector = SIMD16<Float>
/// One register of 32-bit integers, with as many lanes as `Vector`.
public typealias IntVector = SIMD16<Int32>

/// The number of lanes of `Vector`.
@_alwaysEmitIntoClient @_transparent
public var laneCount: Int { 16 }

/// Rows of the register tile. 8 rows × 3 vectors = 24 accumulators, 3 panel vectors and the broadcasts leave four of the 32 zmm
/// registers unused. 11 loads supply 24 FMAs, so the load ports stay half idle.
@_alwaysEmitIntoClient @inline(__always)
public var tileRows: Int { 8 }

/// `a·b + c` with one rounding.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Vector) -> Vector { c.addingProduct(a, b) }

/// Lane-wise `a > b ? a : b`, which is the second operand when either is NaN.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: Vector, _ b: Vector) -> Vector {
    _mm512_max_ps(a, b)
}

/// Loads sixteen IEEE half-precision values and widens them.
@_alwaysEmitIntoClient @_transparent
public func loadHalf(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m256i.self)
    return _mm512_cvtph_ps(bits)
}

/// Loads sixteen bfloat16 values and widens them. A bfloat16 is the upper half of a Float.
@_alwaysEmitIntoClient @_transparent
public func loadBFloat16(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m256i.self)
    return unsafeBitCast(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16), to: Vector.self)
}

/// Loads sixteen E4M3 codes as 2⁻⁸ of their values; codes of NaN as ±1.875. As a half, a code has an exponent that is 8 too small.
@_alwaysEmitIntoClient @_transparent
public func loadE4M3(_ pointer: UnsafeRawPointer) -> Vector {
    // The sign comes from its extension, whose lowest copy is cleared.
    let halves = _mm256_slli_epi16(_mm256_cvtepi8_epi16(pointer.loadUnaligned(as: __m128i.self)), 7)
    return _mm512_cvtph_ps(_mm256_and_si256(halves, _mm256_set1_epi16(Int16(bitPattern: 0xbfff))))
}

/// Loads sixteen E5M2 codes and widens them. A code is the upper byte of a half.
@_alwaysEmitIntoClient @_transparent
public func loadE5M2(_ pointer: UnsafeRawPointer) -> Vector {
    _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(pointer.loadUnaligned(as: __m128i.self)), 8))
}

/// Converts integer lanes to floats.
@_alwaysEmitIntoClient @_transparent
public func floats(_ integers: IntVector) -> Vector { _mm512_cvtepi32_ps(unsafeBitCast(integers, to: __m512i.self)) }

/// The sign bits of all lanes, with that of lane 0 lowest.
@_alwaysEmitIntoClient @_transparent
public func signBits(_ value: Vector) -> UInt64 {
    UInt64(_mm512_movepi32_mask(unsafeBitCast(value, to: __m512i.self)))
}

// MARK: - Small integer codes

/// One register of bytes, or of 32-bit sums of their products.
public typealias CodeVector = __m512i

/// The channels whose products a sum can hold: with VNNI's 32 bits, any practical number.
@_alwaysEmitIntoClient @_transparent
public var narrowDepth: Int { 1 << 20 }

/// Loads four adjacent bytes and repeats them in every lane.
@_alwaysEmitIntoClient @_transparent
public func splatCodes(_ pointer: UnsafePointer<UInt8>) -> CodeVector {
    _mm512_set1_epi32(UnsafeRawPointer(pointer).loadUnaligned(as: Int32.self))
}

/// sum += products of unsigned and signed codes, four per lane.
@_alwaysEmitIntoClient @_transparent
public func addProducts(_ sum: CodeVector, _ unsigned: CodeVector, _ signed: CodeVector) -> CodeVector {
    _mm512_dpbusd_epi32(sum, unsigned, signed)
}

/// Sums as one 32-bit integer per lane, which they already are.
@_alwaysEmitIntoClient @_transparent
public func widened(_ sum: CodeVector) -> IntVector { unsafeBitCast(sum, to: IntVector.self) }

/// Stores the lowest byte of every lane in adjacent bytes.
@_alwaysEmitIntoClient @_transparent
public func storeLowBytes(_ value: IntVector, _ pointer: UnsafeMutablePointer<UInt8>) {
    let bytes = _mm512_cvtepi32_epi8(unsafeBitCast(value, to: __m512i.self))
    UnsafeMutableRawPointer(pointer).storeBytes(of: bytes, as: __m128i.self)
}

/// Stores the lowest 16 bits of every lane in adjacent halves.
@_alwaysEmitIntoClient @_transparent
public func storeLowHalves(_ value: IntVector, _ pointer: UnsafeMutablePointer<UInt16>) {
    let halves = _mm512_cvtepi32_epi16(unsafeBitCast(value, to: __m512i.self))
    UnsafeMutableRawPointer(pointer).storeBytes(of: halves, as: __m256i.self)
}

/// Lane-wise maximum of integers.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: IntVector, _ b: IntVector) -> IntVector {
    unsafeBitCast(
        _mm512_max_epi32(unsafeBitCast(a, to: __m512i.self), unsafeBitCast(b, to: __m512i.self)), to: IntVector.self)
}

/// The sum of the lanes. The standard library's function is generic and not always inlined.
@_alwaysEmitIntoClient @_transparent
public func laneSum(_ value: Vector) -> Float { _mm512_reduce_add_ps(value) }

/// The largest lane.
@_alwaysEmitIntoClient @_transparent
public func largest(_ value: IntVector) -> Int32 { _mm512_reduce_max_epi32(unsafeBitCast(value, to: __m512i.self)) }

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
public func byteSums(_ sum: CodeVector) -> IntVector { unsafeBitCast(sum, to: IntVector.self) }

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
    _mm512_add_epi8(a, b)
}

/// Repeats a 32-bit integer in every lane.
@_alwaysEmitIntoClient @_transparent
public func splatWord(_ value: Int32) -> CodeVector { _mm512_set1_epi32(value) }

/// Splits the eight nibbles of every lane into two registers of bytes, the low ones and the high ones.
@_alwaysEmitIntoClient @_transparent
public func nibblesInBytes(_ packed: CodeVector) -> (low: CodeVector, high: CodeVector) {
    let mask = _mm512_set1_epi32(0x0f0f_0f0f)
    return (_mm512_and_si512(packed, mask), _mm512_and_si512(_mm512_srli_epi32(packed, 4), mask))
}

/// Looks up codes 0…15 in a table of 16 bytes.
@_alwaysEmitIntoClient @_transparent
public func lookUp(_ codes: CodeVector, _ table: UnsafePointer<UInt8>) -> CodeVector {
    let entries = UnsafeRawPointer(table).loadUnaligned(as: __m128i.self)
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), codes)
}

// MARK: - Tokens of a cache

/// The tokens of a score tile: 4 tokens × 4 rows are 16 accumulators, beside 4 key and 4 query vectors.
@_alwaysEmitIntoClient @inline(__always)
public var tokenTile: Int { 4 }

/// Adds lanes, so that every group of four has partial sums of the four rows.
@_alwaysEmitIntoClient @_transparent
func rowGroups(_ t: TokenSums) -> CodeVector {
    let ab = unsafeBitCast(_mm512_unpacklo_ps(t.r0, t.r1) + _mm512_unpackhi_ps(t.r0, t.r1), to: __m512d.self)
    let cd = unsafeBitCast(_mm512_unpacklo_ps(t.r2, t.r3) + _mm512_unpackhi_ps(t.r2, t.r3), to: __m512d.self)
    let low = unsafeBitCast(_mm512_unpacklo_pd(ab, cd), to: Vector.self)
    let high = unsafeBitCast(_mm512_unpackhi_pd(ab, cd), to: Vector.self)
    return unsafeBitCast(low + high, to: CodeVector.self)
}

@_alwaysEmitIntoClient @_transparent
func rowGroups(_ t: TokenCodeSums) -> CodeVector {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(t.r0, t.r1), _mm512_unpackhi_epi32(t.r0, t.r1))
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(t.r2, t.r3), _mm512_unpackhi_epi32(t.r2, t.r3))
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// Sums the lanes of every vector of a tile and stores the sums, [token][row].
@_alwaysEmitIntoClient @_transparent
public func storeTileSums(
    _ t0: TokenSums, _ t1: TokenSums, _ t2: TokenSums, _ t3: TokenSums, _ pointer: UnsafeMutablePointer<Float>
) {
    let (a, b) = (groupSums(rowGroups(t0), rowGroups(t1)), groupSums(rowGroups(t2), rowGroups(t3)))
    store(groupSums(a, b), pointer)
}

/// Adds neighbouring groups of four lanes, those of a before those of b.
@_alwaysEmitIntoClient @_transparent
func groupSums(_ a: CodeVector, _ b: CodeVector) -> Vector {
    unsafeBitCast(sparsekernels_even_groups(a, b), to: Vector.self)
        + unsafeBitCast(sparsekernels_odd_groups(a, b), to: Vector.self)
}

@_alwaysEmitIntoClient @_transparent
func groupSums(_ a: Vector, _ b: Vector) -> Vector {
    groupSums(unsafeBitCast(a, to: CodeVector.self), unsafeBitCast(b, to: CodeVector.self))
}

/// Sums the 32-bit lanes of every register of a tile and stores the sums as floats, [token][row].
@_alwaysEmitIntoClient @_transparent
public func storeTileSums(
    _ t0: TokenCodeSums, _ t1: TokenCodeSums, _ t2: TokenCodeSums, _ t3: TokenCodeSums, _ pointer: UnsafeMutablePointer<Float>
) {
    let (a, b) = (codeGroupSums(rowGroups(t0), rowGroups(t1)), codeGroupSums(rowGroups(t2), rowGroups(t3)))
    store(floats(byteSums(codeGroupSums(a, b))), pointer)
}

@_alwaysEmitIntoClient @_transparent
func codeGroupSums(_ a: CodeVector, _ b: CodeVector) -> CodeVector {
    _mm512_add_epi32(sparsekernels_even_groups(a, b), sparsekernels_odd_groups(a, b))
}

/// Loads four values and repeats each four times.
@_alwaysEmitIntoClient @_transparent
public func repeatEach(_ pointer: UnsafePointer<Float>) -> Vector {
    let values = repeatFour(UnsafeRawPointer(pointer).loadUnaligned(as: SIMD4<Float>.self))
    return _mm512_permutevar_ps(values, _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0))
}

/// Integer lanes as a register of codes.
@_alwaysEmitIntoClient @_transparent
public func codes(_ value: IntVector) -> CodeVector { unsafeBitCast(value, to: CodeVector.self) }

/// sum += products of adjacent pairs of signed 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func addPairProducts(_ sum: CodeVector, _ a: CodeVector, _ b: CodeVector) -> CodeVector {
    _mm512_dpwssd_epi32(sum, a, b)
}

/// Loads `2·laneCount` bytes as 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func loadBytes(_ pointer: UnsafeRawPointer) -> CodeVector {
    _mm512_cvtepu8_epi16(pointer.loadUnaligned(as: __m256i.self))
}

/// Loads `laneCount` bytes as 32-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func loadByteLanes(_ pointer: UnsafeRawPointer) -> IntVector {
    unsafeBitCast(_mm512_cvtepu8_epi32(pointer.loadUnaligned(as: __m128i.self)), to: IntVector.self)
}

/// Splits bytes in 16-bit lanes into their low and their high nibbles.
@_alwaysEmitIntoClient @_transparent
public func nibblesInHalves(_ bytes: CodeVector) -> (low: CodeVector, high: CodeVector) {
    (_mm512_and_si512(bytes, _mm512_set1_epi16(15)), _mm512_srli_epi16(bytes, 4))
}

/// Repeats four values to fill a vector.
@_alwaysEmitIntoClient @_transparent
public func repeatFour(_ four: SIMD4<Float>) -> Vector {
    let eight = SIMD8<Float>(lowHalf: four, highHalf: four)
    return Vector(lowHalf: eight, highHalf: eight)
}

/// The sum over the four groups of four lanes.
@_alwaysEmitIntoClient @_transparent
public func foldSum(_ value: Vector) -> SIMD4<Float> {
    let eight = value.lowHalf + value.highHalf
    return eight.lowHalf + eight.highHalf
}

/// The maximum over the four groups of four lanes.
@_alwaysEmitIntoClient @_transparent
public func foldMaximum(_ value: Vector) -> SIMD4<Float> {
    let eight = _mm256_max_ps(value.lowHalf, value.highHalf)
    return _mm_max_ps(eight.lowHalf, eight.highHalf)
}

/// Stores lanes past the caches, in memory that is aligned to whole vectors.
@_alwaysEmitIntoClient @_transparent
public func stream(_ value: Vector, _ pointer: UnsafeMutablePointer<Float>) { _mm512_stream_ps(pointer, value) }

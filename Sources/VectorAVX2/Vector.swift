// The AVX2 level: 256-bit vectors, 16 registers, FMA and F16C. Compiled with -march=x86-64-v3.
public import CIntrinsics

/// One register of single-precision lanes.
public typealias Vector = SIMD8<Float>
/// One register of 32-bit integers, with as many lanes as `Vector`.
public typealias IntVector = SIMD8<Int32>

/// The number of lanes of `Vector`.
@_alwaysEmitIntoClient @_transparent
public var laneCount: Int { 8 }

/// Rows of the register tile. 4 rows × 3 vectors = 12 accumulators, 3 panel vectors and 1 broadcast fill the 16 ymm registers
/// exactly. 12 independent chains are more than the 8 that hide the 4-cycle FMA latency on 2 ports.
@_alwaysEmitIntoClient @inline(__always)
public var tileRows: Int { 4 }

/// `a·b + c` with one rounding.
@_alwaysEmitIntoClient @_transparent
public func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Vector) -> Vector { c.addingProduct(a, b) }

/// Lane-wise `a > b ? a : b`, which is the second operand when either is NaN.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: Vector, _ b: Vector) -> Vector {
    _mm256_max_ps(a, b)
}

/// Loads eight IEEE half-precision values and widens them.
@_alwaysEmitIntoClient @_transparent
public func loadHalf(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m128i.self)
    return _mm256_cvtph_ps(bits)
}

/// Loads eight bfloat16 values and widens them. A bfloat16 is the upper half of a Float.
@_alwaysEmitIntoClient @_transparent
public func loadBFloat16(_ pointer: UnsafePointer<UInt16>) -> Vector {
    let bits = UnsafeRawPointer(pointer).loadUnaligned(as: __m128i.self)
    return unsafeBitCast(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16), to: Vector.self)
}

/// Loads eight E4M3 codes as 2⁻⁸ of their values; codes of NaN as ±1.875. As a half, a code has an exponent that is 8 too small.
@_alwaysEmitIntoClient @_transparent
public func loadE4M3(_ pointer: UnsafeRawPointer) -> Vector {
    // The sign comes from its extension, whose lowest copy is cleared.
    let codes = _mm_cvtsi64_si128(pointer.loadUnaligned(as: Int64.self))
    let halves = _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7)
    return _mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(Int16(bitPattern: 0xbfff))))
}

/// Loads eight E5M2 codes and widens them. A code is the upper byte of a half.
@_alwaysEmitIntoClient @_transparent
public func loadE5M2(_ pointer: UnsafeRawPointer) -> Vector {
    let codes = _mm_cvtsi64_si128(pointer.loadUnaligned(as: Int64.self))
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(codes), 8))
}

/// Converts integer lanes to floats.
@_alwaysEmitIntoClient @_transparent
public func floats(_ integers: IntVector) -> Vector { _mm256_cvtepi32_ps(unsafeBitCast(integers, to: __m256i.self)) }

/// The sign bits of all lanes, with that of lane 0 lowest.
@_alwaysEmitIntoClient @_transparent
public func signBits(_ value: Vector) -> UInt64 { UInt64(UInt32(bitPattern: _mm256_movemask_ps(value))) }

// MARK: - Small integer codes

/// One register of bytes, or of 16-bit sums of their products.
public typealias CodeVector = __m256i

/// The channels whose products a narrow sum can hold. A 16-bit lane holds 16 products of 31·62 = 1922 (30752 of 32767), and
/// every step of four channels adds two to each lane.
@_alwaysEmitIntoClient @_transparent
public var narrowDepth: Int { 32 }

/// Loads four adjacent bytes and repeats them in every lane.
@_alwaysEmitIntoClient @_transparent
public func splatCodes(_ pointer: UnsafePointer<UInt8>) -> CodeVector {
    _mm256_set1_epi32(UnsafeRawPointer(pointer).loadUnaligned(as: Int32.self))
}

/// sum += products of unsigned and signed codes, in 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func addProducts(_ sum: CodeVector, _ unsigned: CodeVector, _ signed: CodeVector) -> CodeVector {
    _mm256_add_epi16(sum, _mm256_maddubs_epi16(unsigned, signed))
}

/// Widens narrow sums to one 32-bit sum per lane.
@_alwaysEmitIntoClient @_transparent
public func widened(_ sum: CodeVector) -> IntVector {
    unsafeBitCast(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), to: IntVector.self)
}

/// Stores the lowest byte of every lane in adjacent bytes.
@_alwaysEmitIntoClient @_transparent
public func storeLowBytes(_ value: IntVector, _ pointer: UnsafeMutablePointer<UInt8>) {
    let bytes = unsafeBitCast(value, to: __m256i.self)
    let words = _mm_packus_epi32(
        _mm_and_si128(bytes.lowHalf, _mm_set1_epi32(255)), _mm_and_si128(bytes.highHalf, _mm_set1_epi32(255)))
    _mm_storel_epi64(UnsafeMutableRawPointer(pointer).assumingMemoryBound(to: __m128i.self), _mm_packus_epi16(words, words))
}

/// Stores the lowest 16 bits of every lane in adjacent halves.
@_alwaysEmitIntoClient @_transparent
public func storeLowHalves(_ value: IntVector, _ pointer: UnsafeMutablePointer<UInt16>) {
    let lanes = unsafeBitCast(value, to: __m256i.self)
    UnsafeMutableRawPointer(pointer).storeBytes(of: _mm_packus_epi32(lanes.lowHalf, lanes.highHalf), as: __m128i.self)
}

/// Lane-wise maximum of integers.
@_alwaysEmitIntoClient @_transparent
public func maximum(_ a: IntVector, _ b: IntVector) -> IntVector {
    unsafeBitCast(
        _mm256_max_epi32(unsafeBitCast(a, to: __m256i.self), unsafeBitCast(b, to: __m256i.self)), to: IntVector.self)
}

/// The sum of the lanes. The standard library's function is generic and not always inlined.
@_alwaysEmitIntoClient @_transparent
public func laneSum(_ value: Vector) -> Float {
    let four = value.lowHalf + value.highHalf
    let two = four.lowHalf + four.highHalf
    return two[0] + two[1]
}

/// The largest lane.
@_alwaysEmitIntoClient @_transparent
public func largest(_ value: IntVector) -> Int32 {
    let four = value.lowHalf.replacing(with: value.highHalf, where: value.highHalf .> value.lowHalf)
    let two = four.lowHalf.replacing(with: four.highHalf, where: four.highHalf .> four.lowHalf)
    return two[0] > two[1] ? two[0] : two[1]
}

// MARK: - Quantised weights

/// The largest magnitude that a sum of products of nibble codes can hold.
@_alwaysEmitIntoClient @_transparent
public var codeSumLimit: Int { 32_767 }

/// The number that is added to signed codes of activations, for products with weights of whole bytes.
@_alwaysEmitIntoClient @_transparent
public var byteZero: Int32 { 0 }

/// sum += products of signed codes −127…127 and signed weights, four per 32-bit lane.
///
/// Two products do not fit in 16 bits if one factor is unsigned. They do when the sign is moved from the weight to the code:
/// 2·128·127 < 2¹⁵.
@_alwaysEmitIntoClient @_transparent
public func addByteProducts(_ sum: CodeVector, _ codes: CodeVector, _ weights: CodeVector) -> CodeVector {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(codes, weights))
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Converts sums of `addByteProducts` to integer lanes.
@_alwaysEmitIntoClient @_transparent
public func byteSums(_ sum: CodeVector) -> IntVector { unsafeBitCast(sum, to: IntVector.self) }

/// Codes of activations with 128 added, as `addByteProducts` takes them.
@_alwaysEmitIntoClient @_transparent
public func byteCodes(_ codes: CodeVector) -> CodeVector {
    _mm256_xor_si256(codes, _mm256_set1_epi8(Int8(bitPattern: 0x80)))
}

/// Whether products with weights of whole bytes are faster if no pair of adjacent ones is loud.
@_alwaysEmitIntoClient @_transparent
public var prefersQuietWeights: Bool { true }

/// The weights, of which every odd one is limited so that it and the one before it are a quiet pair: neither their positive nor their
/// negative sum exceeds 127 or 128 in magnitude.
@_alwaysEmitIntoClient @_transparent
public func quietWeights(_ weights: CodeVector) -> CodeVector {
    // The even weights, in the place of the odd ones. No limit remains for the even ones.
    let first = _mm256_slli_epi16(weights, 8)
    let zero = _mm256_setzero_si256()
    let least = _mm256_sub_epi8(_mm256_set1_epi8(-128), _mm256_min_epi8(first, zero))
    let most = _mm256_sub_epi8(_mm256_set1_epi8(127), _mm256_max_epi8(first, zero))
    return _mm256_min_epi8(_mm256_max_epi8(weights, least), most)
}

/// sum += products of unsigned codes and quiet weights, four per 32-bit lane. A pair of them fits in 16 bits: 255·128 < 2¹⁵.
@_alwaysEmitIntoClient @_transparent
public func addQuietProducts(_ sum: CodeVector, _ codes: CodeVector, _ weights: CodeVector) -> CodeVector {
    let pairs = _mm256_maddubs_epi16(codes, weights)
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Byte-wise a + b.
@_alwaysEmitIntoClient @_transparent
public func addBytes(_ a: CodeVector, _ b: CodeVector) -> CodeVector {
    _mm256_add_epi8(a, b)
}

/// Repeats a 32-bit integer in every lane.
@_alwaysEmitIntoClient @_transparent
public func splatWord(_ value: Int32) -> CodeVector { _mm256_set1_epi32(value) }

/// Splits the eight nibbles of every lane into two registers of bytes, the low ones and the high ones.
@_alwaysEmitIntoClient @_transparent
public func nibblesInBytes(_ packed: CodeVector) -> (low: CodeVector, high: CodeVector) {
    let mask = _mm256_set1_epi32(0x0f0f_0f0f)
    return (_mm256_and_si256(packed, mask), _mm256_and_si256(_mm256_srli_epi32(packed, 4), mask))
}

/// Looks up codes 0…15 in a table of 16 bytes.
@_alwaysEmitIntoClient @_transparent
public func lookUp(_ codes: CodeVector, _ table: UnsafePointer<UInt8>) -> CodeVector {
    let entries = UnsafeRawPointer(table).loadUnaligned(as: __m128i.self)
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), codes)
}

// MARK: - Tokens of a cache

/// The tokens of a score tile: 2 tokens × 4 rows are 8 accumulators, which hide the latency, beside 2 key and 4 query vectors.
@_alwaysEmitIntoClient @inline(__always)
public var tokenTile: Int { 2 }

/// Adds lanes, so that both halves have partial sums of the four rows.
@_alwaysEmitIntoClient @_transparent
func rowGroups(_ t: TokenSums) -> Vector {
    let ab = unsafeBitCast(_mm256_unpacklo_ps(t.r0, t.r1) + _mm256_unpackhi_ps(t.r0, t.r1), to: __m256d.self)
    let cd = unsafeBitCast(_mm256_unpacklo_ps(t.r2, t.r3) + _mm256_unpackhi_ps(t.r2, t.r3), to: __m256d.self)
    return unsafeBitCast(_mm256_unpacklo_pd(ab, cd), to: Vector.self)
        + unsafeBitCast(_mm256_unpackhi_pd(ab, cd), to: Vector.self)
}

@_alwaysEmitIntoClient @_transparent
func rowGroups(_ t: TokenCodeSums) -> IntVector {
    let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(t.r0, t.r1), _mm256_unpackhi_epi32(t.r0, t.r1))
    let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(t.r2, t.r3), _mm256_unpackhi_epi32(t.r2, t.r3))
    return unsafeBitCast(
        _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd)), to: IntVector.self)
}

/// Sums the lanes of every vector of a tile and stores the sums, [token][row].
@_alwaysEmitIntoClient @_transparent
public func storeTileSums(
    _ t0: TokenSums, _ t1: TokenSums, _ t2: TokenSums, _ t3: TokenSums, _ pointer: UnsafeMutablePointer<Float>
) {
    let (a, b) = (rowGroups(t0), rowGroups(t1))
    store(
        Vector(lowHalf: a.lowHalf, highHalf: b.lowHalf) + Vector(lowHalf: a.highHalf, highHalf: b.highHalf), pointer)
}

/// Sums the 32-bit lanes of every register of a tile and stores the sums as floats, [token][row].
@_alwaysEmitIntoClient @_transparent
public func storeTileSums(
    _ t0: TokenCodeSums, _ t1: TokenCodeSums, _ t2: TokenCodeSums, _ t3: TokenCodeSums, _ pointer: UnsafeMutablePointer<Float>
) {
    let (a, b) = (rowGroups(t0), rowGroups(t1))
    let sums = IntVector(lowHalf: a.lowHalf, highHalf: b.lowHalf) &+ IntVector(lowHalf: a.highHalf, highHalf: b.highHalf)
    store(floats(sums), pointer)
}

/// Loads two values and repeats each four times.
@_alwaysEmitIntoClient @_transparent
public func repeatEach(_ pointer: UnsafePointer<Float>) -> Vector {
    Vector(lowHalf: SIMD4(repeating: pointer[0]), highHalf: SIMD4(repeating: pointer[1]))
}

/// Integer lanes as a register of codes.
@_alwaysEmitIntoClient @_transparent
public func codes(_ value: IntVector) -> CodeVector { unsafeBitCast(value, to: CodeVector.self) }

/// sum += products of adjacent pairs of signed 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func addPairProducts(_ sum: CodeVector, _ a: CodeVector, _ b: CodeVector) -> CodeVector {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

/// Loads `2·laneCount` bytes as 16-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func loadBytes(_ pointer: UnsafeRawPointer) -> CodeVector {
    _mm256_cvtepu8_epi16(pointer.loadUnaligned(as: __m128i.self))
}

/// Loads `laneCount` bytes as 32-bit lanes.
@_alwaysEmitIntoClient @_transparent
public func loadByteLanes(_ pointer: UnsafeRawPointer) -> IntVector {
    // Eight bytes, in the lower half of a register.
    let bytes = _mm_cvtsi64_si128(pointer.loadUnaligned(as: Int64.self))
    return unsafeBitCast(_mm256_cvtepu8_epi32(bytes), to: IntVector.self)
}

/// Splits bytes in 16-bit lanes into their low and their high nibbles.
@_alwaysEmitIntoClient @_transparent
public func nibblesInHalves(_ bytes: CodeVector) -> (low: CodeVector, high: CodeVector) {
    (_mm256_and_si256(bytes, _mm256_set1_epi16(15)), _mm256_srli_epi16(bytes, 4))
}

/// Repeats four values to fill a vector.
@_alwaysEmitIntoClient @_transparent
public func repeatFour(_ four: SIMD4<Float>) -> Vector { Vector(lowHalf: four, highHalf: four) }

/// The sum over the two groups of four lanes.
@_alwaysEmitIntoClient @_transparent
public func foldSum(_ value: Vector) -> SIMD4<Float> { value.lowHalf + value.highHalf }

/// The maximum over the two groups of four lanes.
@_alwaysEmitIntoClient @_transparent
public func foldMaximum(_ value: Vector) -> SIMD4<Float> { _mm_max_ps(value.lowHalf, value.highHalf) }

/// Stores lanes past the caches, in memory that is aligned to whole vectors.
@_alwaysEmitIntoClient @_transparent
public func stream(_ value: Vector, _ pointer: UnsafeMutablePointer<Float>) { _mm256_stream_ps(pointer, value) }

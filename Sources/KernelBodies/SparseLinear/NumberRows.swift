// Rows of weights that are numbers of 8, 16 or 32 bits, widened to floats. One register at a time, with elements at the end read
// one by one, so that nothing outside of a row is touched.

import KernelInterface

/// A register of numbers from element `index` on, as `loadE4M3` and its siblings widen them.
@_transparent
func loadNumbers(_ row: UnsafeRawPointer, _ type: WeightType, _ index: Int) -> Vector {
    switch type {
    case .float32: load(row.assumingMemoryBound(to: Float.self) + index)
    case .float16: loadHalf(row.assumingMemoryBound(to: UInt16.self) + index)
    case .bfloat16: loadBFloat16(row.assumingMemoryBound(to: UInt16.self) + index)
    case .e4m3: loadE4M3(row + index)
    case .e5m2: loadE5M2(row + index)
    }
}

/// The bytes of a number, for types that are literals after inlining.
@_transparent
func numberBytes(_ type: WeightType) -> Int {
    switch type {
    case .float32: 4
    case .float16, .bfloat16: 2
    case .e4m3, .e5m2: 1
    }
}

/// Widens `count` numbers of a row.
@inline(never)
func widenNumbers(
    _ row: UnsafeRawPointer, _ type: WeightType, count: Int, into target: UnsafeMutablePointer<Float>
) {
    switch type {
    case .float32: widenNumbers(row, .float32, count, target)
    case .float16: widenNumbers(row, .float16, count, target)
    case .bfloat16: widenNumbers(row, .bfloat16, count, target)
    case .e4m3: widenNumbers(row, .e4m3, count, target)
    case .e5m2: widenNumbers(row, .e5m2, count, target)
    }
}

@_transparent
private func widenNumbers(
    _ row: UnsafeRawPointer, _ type: WeightType, _ count: Int, _ target: UnsafeMutablePointer<Float>
) {
    var x = 0
    while x + laneCount <= count {
        store(loadNumbers(row, type, x), target + x)
        x += laneCount
    }
    if x == count { return }
    if count >= laneCount {
        // The last register overlaps the one before it.
        store(loadNumbers(row, type, count - laneCount), target + count - laneCount)
    } else {
        widenFewNumbers(row, type, from: x, count: count, into: target)
    }
}

/// Widens numbers one by one.
@inline(never)
func widenFewNumbers(
    _ row: UnsafeRawPointer, _ type: WeightType, from first: Int, count: Int,
    into target: UnsafeMutablePointer<Float>
) {
    let bytes = byteCount(type)
    for x in first..<count {
        switch type {
        case .float32: target[x] = row.loadUnaligned(fromByteOffset: x * bytes, as: Float.self)
        case .float16:
            target[x] = widenHalf(row.loadUnaligned(fromByteOffset: x * bytes, as: UInt16.self))
        case .bfloat16:
            target[x] = Float(
                bitPattern: UInt32(row.loadUnaligned(fromByteOffset: x * bytes, as: UInt16.self)) << 16)
        case .e4m3: target[x] = widenE4M3(row.load(fromByteOffset: x, as: UInt8.self))
        case .e5m2: target[x] = widenHalf(UInt16(row.load(fromByteOffset: x, as: UInt8.self)) << 8)
        }
    }
}

/// 2⁻⁸ of the value of an E4M3 code, as `loadE4M3`.
@_transparent
private func widenE4M3(_ code: UInt8) -> Float {
    widenHalf(UInt16(code & 0x80) << 8 | UInt16(code & 0x7f) << 7)
}

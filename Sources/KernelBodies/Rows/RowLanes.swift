// Loads and stores of rows of any storage type, one vector at a time.
//
// The type is tested for every vector. The branch is always predicted, and rows are bound by memory or by their arithmetic.

import KernelInterface

/// `laneCount` adjacent elements of a row as floats.
@_transparent
func loadLanes(_ base: UnsafeRawPointer, _ type: StorageType, _ index: Int) -> Vector {
    switch type {
    case .float32: load(base.assumingMemoryBound(to: Float.self) + index)
    case .float16: loadHalf(base.assumingMemoryBound(to: UInt16.self) + index)
    case .bfloat16: loadBFloat16(base.assumingMemoryBound(to: UInt16.self) + index)
    }
}

/// The last `count` elements of a row, fewer than a vector, and `filler` in the other lanes.
@inline(never)
func loadLastLanes(_ base: UnsafeRawPointer, _ type: StorageType, _ index: Int, _ count: Int, filler: Float) -> Vector {
    var lanes = splat(filler)
    for lane in 0..<count {
        switch type {
        case .float32: lanes[lane] = base.assumingMemoryBound(to: Float.self)[index + lane]
        case .float16: lanes[lane] = widenHalf(base.assumingMemoryBound(to: UInt16.self)[index + lane])
        case .bfloat16:
            lanes[lane] = Float(bitPattern: UInt32(base.assumingMemoryBound(to: UInt16.self)[index + lane]) << 16)
        }
    }
    return lanes
}

/// Stores `laneCount` adjacent elements of a row, rounded to nearest even.
@_transparent
func storeLanes(_ value: Vector, _ base: UnsafeMutableRawPointer, _ type: StorageType, _ index: Int) {
    switch type {
    case .float32: store(value, base.assumingMemoryBound(to: Float.self) + index)
    case .float16: storeLowHalves(halfBits(value), base.assumingMemoryBound(to: UInt16.self) + index)
    case .bfloat16: storeLowHalves(bfloat16Bits(value), base.assumingMemoryBound(to: UInt16.self) + index)
    }
}

/// Stores the first `count` lanes, fewer than a vector, as the last elements of a row.
@inline(never)
func storeLastLanes(_ value: Vector, _ base: UnsafeMutableRawPointer, _ type: StorageType, _ index: Int, _ count: Int) {
    for lane in 0..<count {
        switch type {
        case .float32: base.assumingMemoryBound(to: Float.self)[index + lane] = value[lane]
        case .float16: base.assumingMemoryBound(to: UInt16.self)[index + lane] = narrowToHalf(value[lane])
        case .bfloat16: base.assumingMemoryBound(to: UInt16.self)[index + lane] = narrowToBFloat16(value[lane])
        }
    }
}

/// The elements of a row from `index` on that are before `end`, and zeros.
@_transparent
func loadPart(_ base: UnsafeRawPointer, _ type: StorageType, _ index: Int, _ end: Int) -> Vector {
    index + laneCount <= end ? loadLanes(base, type, index) : loadLastLanes(base, type, index, end - index, filler: 0)
}

/// Stores the lanes whose elements, from `index` on, are before `end`.
@_transparent
func storePart(_ value: Vector, _ base: UnsafeMutableRawPointer, _ type: StorageType, _ index: Int, _ end: Int) {
    if index + laneCount <= end {
        storeLanes(value, base, type, index)
    } else {
        storeLastLanes(value, base, type, index, end - index)
    }
}

/// Bytes of one element.
@_transparent
func byteCount(_ type: StorageType) -> Int { type == .float32 ? 4 : 2 }

// Checks of tensors for the interchange layouts.

func requireMatrix(_ name: String, _ shape: [Int], _ expected: String) throws(SparseKernelsError) {
    // The bound keeps every later product of extents below 2⁶³.
    try require(
        shape.count == 2 && shape.allSatisfy { $0 >= 1 && $0 < 1 << 28 }, .invalidShape, name, expected: expected,
        actual: "\(shape)")
}

func requireShape(_ name: String, _ shape: [Int], _ expected: [Int]) throws(SparseKernelsError) {
    try require(shape == expected, .invalidShape, name, expected: "\(expected)", actual: "\(shape)")
}

func requireMultipleOf8(_ name: String, _ extent: Int) throws(SparseKernelsError) {
    try require(extent % 8 == 0, .invalidShape, name, expected: "a multiple of 8, the nibbles of a word", actual: "\(extent)")
}

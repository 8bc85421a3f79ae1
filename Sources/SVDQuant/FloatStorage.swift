internal import SparseKernels

// Storage in fewer bits of floating-point tensors that were computed in `Float`.

extension ElementType {
    /// Appends the nearest value of this type, ties to even, little-endian. For `F32`, `F16`, `BF16` and `F8_E4M3`.
    func appendNearest(_ value: Float, to bytes: inout [UInt8]) {
        func append(_ bits: some FixedWidthInteger) {
            withUnsafeBytes(of: bits.littleEndian) { bytes.append(contentsOf: $0) }
        }
        switch self {
        case .float32: append(value.bitPattern)
        case .float16: append(halfBitPattern(value))
        case .bfloat16: append(BFloat16(value).bitPattern)
        case .float8E4M3: append(E4M3(value).bitPattern)
        default: preconditionFailure("no rounding to \(rawValue)")
        }
    }

    /// Whether this type represents the value exactly, including the sign of zero.
    func holds(_ value: Float) -> Bool {
        switch self {
        case .float32: true
        case .float16: roundedToHalf(value) == value
        case .bfloat16: value.bitPattern & 0xffff == 0
        case .float8E4M3: E4M3(value).floatValue == value
        default: false
        }
    }
}

extension SafetensorsWriter {
    /// Adds a tensor rounded to nearest, ties to even.
    /// - Throws: `.invalidArgument` for a name that is taken.
    mutating func addRounded(
        _ name: String, _ tensor: Tensor<Float>, to type: ElementType
    ) throws(SparseKernelsError) {
        if type == .float32 { return try add(name, tensor) }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(tensor.count * (type.byteCount ?? 0))
        let values = tensor.span
        for index in values.indices { type.appendNearest(values[index], to: &bytes) }
        try add(name, elementType: type, shape: tensor.shape, bytes: bytes)
    }

    /// Adds a tensor in the first of the types that represents all its values exactly, otherwise as `F32`.
    /// - Throws: `.invalidArgument` for a name that is taken.
    mutating func addExact(
        _ name: String, _ tensor: Tensor<Float>, as types: [ElementType]
    ) throws(SparseKernelsError) {
        let values = tensor.span
        let type = types.first { type in values.indices.allSatisfy { type.holds(values[$0]) } }
        try addRounded(name, tensor, to: type ?? .float32)
    }
}

extension SafetensorsFile {
    /// Copies a tensor of `F32`, `F16`, `BF16` or `F8_E4M3` to `Float`, exactly.
    /// - Throws: `.notFound`; `.invalidElementType` when the file has another type.
    func storedFloats(_ tensorName: String) throws(SparseKernelsError) -> Tensor<Float> {
        guard try entry(named: tensorName).elementType == .float8E4M3 else { return try floatTensor(tensorName) }
        let stored = try tensor(tensorName, as: E4M3.self)
        return try Tensor(stored.shape) { stored[flat: $0].floatValue }
    }
}

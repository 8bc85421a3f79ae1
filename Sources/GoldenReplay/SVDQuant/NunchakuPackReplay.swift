internal import SVDQuant
internal import SparseKernels

/// `nunchaku.pack`: codes, scales, a vector and low-rank factors in the order of the GPU, padded, and back. Bytes are exact.
func replayNunchakuPack(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let file = golden.file
    var comparison = GoldenComparison()
    let codes = try nibbles(of: file.tensor("in.codes", as: Int8.self), named: "in.codes of \(golden.name)")
    let packedCodes = try NunchakuLayout.packedCodes(codes)
    try comparison.compareBytes("out.qweight", packedCodes, in: golden)
    try comparison.compareBytes(
        "codes, unpacked", NunchakuLayout.unpackedCodes(packedCodes),
        with: nibbles(of: file.tensor("out.padded_codes", as: Int8.self), named: "out.padded_codes of \(golden.name)"))

    let scales = try file.floatTensor("in.scale")
    let packedScales = try NunchakuLayout.packedScales(scales, filling: 1)
    try comparison.compareValues("out.wscales", packedScales, in: golden)
    try comparison.compareCorner("scales", NunchakuLayout.unpackedScales(packedScales), with: scales)

    let microScales = try file.floatTensor("in.micro_scale")
    let bytes = try Tensor(microScales.shape) { E4M3(microScales[flat: $0]).bitPattern }
    let packedBytes = try NunchakuLayout.packedMicroScales(bytes, filling: E4M3(1).bitPattern)
    try comparison.compareBytes("out.micro_wscales_e4m3_bytes", packedBytes, in: golden)
    try comparison.compareCorner(
        "micro scales", NunchakuLayout.unpackedMicroScales(packedBytes).values, with: bytes.values)

    let vector = try file.floatTensor("in.vector")
    let packedVector = try NunchakuLayout.packedVector(vector, filling: 1)
    try comparison.compareValues("out.vector", packedVector, in: golden)
    try comparison.compareCorner("vector", NunchakuLayout.unpackedVector(packedVector), with: vector)

    let (down, up) = (try file.floatTensor("in.lora_down"), try file.floatTensor("in.lora_up"))
    let (packedDown, packedUp) = (try NunchakuLayout.packedDown(down), try NunchakuLayout.packedUp(up))
    try comparison.compareValues("out.lora_down", packedDown, in: golden)
    try comparison.compareValues("out.lora_up", packedUp, in: golden)
    try comparison.compareCorner("lora_down", NunchakuLayout.unpackedDown(packedDown), with: down)
    try comparison.compareCorner("lora_up", NunchakuLayout.unpackedUp(packedUp), with: up)
    return comparison.result(golden)
}

/// Packs codes of one byte each as pairs of nibbles, with the even column in the low one.
func nibbles(of codes: Tensor<Int8>, named name: String) throws(SparseKernelsError) -> Tensor<UInt8> {
    guard codes.shape.count == 2, codes.shape[1] % 2 == 0 else {
        throw SparseKernelsError(.invalidShape, name, expected: "[rows, an even number]", actual: "\(codes.shape)")
    }
    let source = codes.span
    return try Tensor([codes.shape[0], codes.shape[1] / 2]) {
        UInt8(bitPattern: source[2 * $0]) & 15 | UInt8(bitPattern: source[2 * $0 + 1]) << 4
    }
}

extension Tensor<UInt8> {
    fileprivate var values: Tensor<Float> {
        get throws(SparseKernelsError) { try Tensor<Float>(shape) { Float(self[flat: $0]) } }
    }
}

extension GoldenComparison {
    /// Compares all bytes of a recorded tensor of single bytes.
    mutating func compareBytes(
        _ name: String, _ actual: Tensor<UInt8>, in golden: GoldenCase
    ) throws(SparseKernelsError) {
        let entry = try golden.file.entry(named: name)
        try golden.check(name, actual.shape, entry.shape)
        let recorded = try golden.file.bytes(name)
        try compareBytes(name, actual, with: Tensor(entry.shape, recorded.withUnsafeBytes { Array($0) }))
    }

    /// Compares all bytes.
    mutating func compareBytes(
        _ name: String, _ actual: Tensor<UInt8>, with expected: Tensor<UInt8>
    ) throws(SparseKernelsError) {
        compare("extents of \(name)", actual: actual.shape == expected.shape ? 0 : 1, expected: 0, bound: 0)
        for index in 0..<min(actual.count, expected.count) {
            compare(
                "\(name)[\(index)]", actual: Double(actual[flat: index]), expected: Double(expected[flat: index]), bound: 0)
        }
    }

    /// Compares all elements of a recorded tensor of floats, exactly.
    mutating func compareValues(
        _ name: String, _ actual: Tensor<Float>, in golden: GoldenCase
    ) throws(SparseKernelsError) {
        let expected = try golden.file.floatTensor(name)
        try golden.check(name, actual.shape, expected.shape)
        compareCorner(name, actual, with: expected)
    }

    /// Compares the elements of `actual` exactly with those of `expected`, which may be smaller.
    mutating func compareCorner(_ name: String, _ actual: Tensor<Float>, with expected: Tensor<Float>) {
        let (columns, width) = (
            expected.shape.count == 2 ? expected.shape[1] : 1, actual.shape.count == 2 ? actual.shape[1] : 1
        )
        for index in 0..<expected.count {
            compare(
                "\(name)[\(index)]", actual: Double(actual[flat: index / columns * width + index % columns]),
                expected: Double(expected[flat: index]), bound: 0)
        }
    }
}

package import SparseKernels

/// Valid files of every element type, with which a mutator starts.
package func sampleSafetensors() throws(SparseKernelsError) -> [[UInt8]] {
    var every = SafetensorsWriter(metadata: ["format": "pt", "note": "é \"quoted\" \\ 😀\n"])
    for type in ElementType.allCases {
        // Four elements of six bits are three bytes.
        try every.add("layers.0.\(type.rawValue)", elementType: type, shape: [2, 4], bytes: pattern(type.bitCount!))
    }
    var unknown = SafetensorsWriter()
    try unknown.add("known", try Tensor<Float>([3], [1, 2, 3]))
    try unknown.add("packed", elementType: .float4, shape: [3, 2], bytes: pattern(3))
    try unknown.add("new", elementType: .other("Q3_K"), shape: [7], bytes: pattern(13))
    try unknown.add("wide", elementType: .other("C128"), shape: [2], bytes: pattern(32))
    var shapes = SafetensorsWriter()
    try shapes.add("scalar", try Tensor<Float>([], [1.5]))
    try shapes.add("empty", try Tensor<Float>(zeros: [3, 0, 2]))
    try shapes.add("head", try Tensor<BFloat16>(zeros: [4, 8]))
    try shapes.add("heads", try Tensor<Float>([2, 3, 4]) { Float($0) })
    try shapes.add("mask", elementType: .bool, shape: [5], bytes: [0, 1, 2, 255, 1])
    var single = SafetensorsWriter()
    try single.add("a", elementType: .int16, shape: [1, 1, 1, 1, 3], bytes: pattern(6))
    return try [
        every.encoded(), unknown.encoded(), shapes.encoded(), single.encoded(), SafetensorsWriter().encoded(),
        SafetensorsWriter(metadata: ["only": "text"]).encoded(),
    ]
}

private func pattern(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 * 37 + 11) } }

/// Opens a file and, if the reader accepts it, reads every byte of every tensor in every way that the API has.
/// - Parameter rewrites: whether the contents are also written to a second file and compared.
/// - Returns: a sum over all contents, so that the optimiser removes nothing.
/// - Throws: `SparseKernelsError` when the reader rejects the file, `BrokenPromise` when it accepts an invalid one.
@discardableResult
package func readEverything(_ bytes: [UInt8], rewrites: Bool) throws -> UInt64 {
    let file = try SafetensorsFile(bytes: bytes)
    var sum: UInt64 = 0
    var covered = 0
    for entry in file.tensors {
        guard file[entry.name] == entry, try file.entry(named: entry.name) == entry else {
            throw BrokenPromise(description: "\(entry.name) is not found under its name")
        }
        let bits = entry.elementType.bitCount.map { $0 * entry.count } ?? 8 * entry.byteRange.count
        guard entry.byteRange.lowerBound == covered, entry.shape.reduce(1, *) == entry.count, bits == 8 * entry.byteRange.count
        else {
            throw BrokenPromise(description: "\(entry) leaves a hole, overlaps, or has another size than its shape")
        }
        covered = entry.byteRange.upperBound
        let raw = try file.bytes(entry.name)
        for i in raw.byteOffsets { sum &+= UInt64(raw.unsafeLoad(fromByteOffset: i, as: UInt8.self)) }
        sum &+= try readTyped(file, entry)
    }
    let headerBytes = bytes.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
    guard 8 + headerBytes + covered == bytes.count else {
        throw BrokenPromise(description: "\(covered) bytes of tensors in a file of \(bytes.count)")
    }
    if rewrites { try rewrite(file) }
    return sum
}

private func readTyped(_ file: SafetensorsFile, _ entry: SafetensorsEntry) throws -> UInt64 {
    switch entry.elementType {
    case .float64: return try read(file, entry, as: Double.self)
    case .float32: return try read(file, entry, as: Float.self)
    case .bfloat16: return try read(file, entry, as: BFloat16.self)
    case .int64: return try read(file, entry, as: Int64.self)
    case .int32: return try read(file, entry, as: Int32.self)
    case .int16: return try read(file, entry, as: Int16.self)
    case .int8: return try read(file, entry, as: Int8.self)
    case .uint64: return try read(file, entry, as: UInt64.self)
    case .uint32: return try read(file, entry, as: UInt32.self)
    case .uint16: return try read(file, entry, as: UInt16.self)
    case .uint8, .bool: return try read(file, entry, as: UInt8.self)
    case .float16:
        #if !(os(macOS) && arch(x86_64))
            return try read(file, entry, as: Float16.self)
        #else
            return 0
        #endif
    case .float8E4M3: return try read(file, entry, as: E4M3.self)
    default:
        // Types without a Swift type have only bytes.
        do {
            _ = try file.span(entry.name, as: UInt8.self)
        } catch {
            if error.code == .invalidElementType { return 0 }
        }
        throw BrokenPromise(description: "\(entry) was read as UInt8")
    }
}

private func read<Element: TensorElement>(
    _ file: SafetensorsFile, _ entry: SafetensorsEntry, as type: Element.Type
) throws -> UInt64 {
    var sum: UInt64 = 0
    let copy = try file.tensor(entry.name, as: Element.self)
    let copied = copy.span.bytes
    for i in copied.byteOffsets { sum &+= UInt64(copied.unsafeLoad(fromByteOffset: i, as: UInt8.self)) }
    if [.float32, .float16, .bfloat16].contains(entry.elementType) {
        for value in try file.floatTensor(entry.name).elements { sum &+= UInt64(value.bitPattern) }
    }
    do {
        let view = try file.span(entry.name, as: Element.self)
        guard view.count == entry.count, view.bytes.isEqual(to: copied) else {
            throw BrokenPromise(description: "\(entry): the view differs from the copy")
        }
        let isOperand = [2, 3].contains(entry.shape.count) && entry.count > 0
        if isOperand {
            let operand = try file.tensorView(entry.name, as: Element.self, layout: .nhd)
            guard operand.heads * operand.tokens * operand.channels == entry.count else {
                throw BrokenPromise(description: "\(entry): the operand has another size")
            }
        }
    } catch let error as SparseKernelsError {
        // This is the only reason to refuse a view of an accepted file.
        if error.code != .misalignedData { throw BrokenPromise(description: "\(entry): \(error)") }
    }
    return sum
}

private func rewrite(_ file: SafetensorsFile) throws {
    var writer = SafetensorsWriter(metadata: file.metadata)
    for entry in file.tensors {
        try writer.add(entry.name, elementType: entry.elementType, shape: entry.shape, bytes: file.bytes(entry.name))
    }
    let second: SafetensorsFile
    do {
        second = try SafetensorsFile(bytes: writer.encoded())
    } catch {
        throw BrokenPromise(description: "the reader rejects what the writer wrote: \(error)")
    }
    guard second.metadata == file.metadata, second.tensors.count == file.tensors.count else {
        throw BrokenPromise(description: "rewriting changed the metadata or the number of tensors")
    }
    for entry in file.tensors {
        let other = try second.entry(named: entry.name)
        let (a, b) = (try file.bytes(entry.name), try second.bytes(entry.name))
        guard other.shape == entry.shape, other.elementType == entry.elementType, a.isEqual(to: b) else {
            throw BrokenPromise(description: "rewriting changed \(entry)")
        }
    }
}

extension RawSpan {
    package func isEqual(to other: RawSpan) -> Bool {
        guard byteCount == other.byteCount else { return false }
        for i in byteOffsets
        where unsafeLoad(fromByteOffset: i, as: UInt8.self) != other.unsafeLoad(fromByteOffset: i, as: UInt8.self) {
            return false
        }
        return true
    }
}

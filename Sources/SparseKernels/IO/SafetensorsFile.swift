/// A safetensors file that is open for reading: names, element types, shapes, and the elements in place.
///
/// Opening reads the header only. `span`, `bytes` and `tensorView` return the file's own memory, which the operating system
/// loads when it is read; `tensor` and `floatTensor` copy.
///
///     let file = try SafetensorsFile(path: "capture.safetensors")
///     let keys = try file.tensorView("key", as: Float16.self, layout: .hnd)
///     let scale = file.metadata["softmaxScale"]
///
/// The header is checked completely when the file is opened, so that a damaged or hostile file is an error there and not later.
/// The file must not be truncated while it is open. Many threads may read it.
public final class SafetensorsFile: Sendable {
    /// The path that was opened, or the name that was given with the bytes.
    public let name: String
    /// The free-form text entries of the header.
    public let metadata: [String: String]
    /// All tensors, in the order of their data.
    public let tensors: [SafetensorsEntry]

    private let positions: [String: Int]
    private let contents: FileMapping
    private let dataOffset: Int

    /// Maps a file into memory and checks its header.
    ///
    /// The whole format is enforced: ranges fit type and shape and cover the data exactly once, and no key is repeated. Names
    /// that Swift regards as equal, such as two ways to write “é”, count as repeated. A file may have tensors of unknown types:
    /// `bytes` reads them, `ElementType.other` has the name of the type, and other tensors are not affected.
    /// - Throws: `.inputOutput` when the file cannot be read, `.malformedFile` when it breaks the format or has another one. If
    ///   possible the error names that format: a Git LFS pointer, PyTorch, GGUF, the index of a model in parts, HTML…
    /// - Complexity: O(n log n) in the number of tensors, and linear in the bytes of the header.
    public convenience init(path: String) throws(SparseKernelsError) {
        try self.init(FileMapping(path: path), named: path)
    }

    /// Checks a file in memory. The bytes are copied, so that they are aligned. Messages show the name instead of a path.
    /// - Throws: `.malformedFile` when the bytes break the format.
    public convenience init(bytes: [UInt8], named name: String = "bytes") throws(SparseKernelsError) {
        try self.init(FileMapping(copying: bytes), named: name)
    }

    private init(_ contents: FileMapping, named name: String) throws(SparseKernelsError) {
        let header = try SafetensorsHeader(Span(_unsafeBytes: contents.buffer), source: name)
        self.name = name
        self.contents = contents
        metadata = header.metadata
        tensors = header.entries
        dataOffset = header.dataOffset
        var positions: [String: Int] = [:]
        positions.reserveCapacity(tensors.count)
        for (i, entry) in tensors.enumerated() { positions[entry.name] = i }
        self.positions = positions
    }

    // MARK: - Looking up

    /// The tensor with that name, or nil.
    public subscript(name: String) -> SafetensorsEntry? { positions[name].map { tensors[$0] } }

    /// The tensor with that name.
    /// - Throws: `.notFound`, with the most similar names in the file.
    public func entry(named tensorName: String) throws(SparseKernelsError) -> SafetensorsEntry {
        if let entry = self[tensorName] { return entry }
        let similar = mostSimilarNames(to: tensorName, limit: 4)
        throw SparseKernelsError(
            .notFound, "\(name), tensor \(quoted(tensorName))",
            expected: similar.isEmpty
                ? "in the file, which has no tensors"
                : "one of its \(tensors.count) tensors, such as \(similar.map { quoted($0) }.joined(separator: ", "))",
            actual: "no tensor of that name")
    }

    /// Names are similar that share many bytes at both ends. One pass finds another layer, a missing suffix or a typing error.
    private func mostSimilarNames(to wanted: String, limit: Int) -> [String] {
        func common(_ name: String) -> Int {
            let prefix = zip(name.utf8, wanted.utf8).prefix { $0 == $1 }.count
            let suffix = zip(name.utf8.reversed(), wanted.utf8.reversed()).prefix { $0 == $1 }.count
            return min(prefix + suffix, name.utf8.count)
        }
        var best: [(score: Int, name: String)] = []
        for entry in tensors {
            let score = common(entry.name)
            let place = best.firstIndex { $0.score < score } ?? best.count
            if place < limit {
                best.insert((score, entry.name), at: place)
                if best.count > limit { best.removeLast() }
            }
        }
        return best.map(\.name)
    }

    // MARK: - In place

    /// The bytes of a tensor of any type, even an unknown one, in place.
    /// - Throws: `.notFound`.
    @_lifetime(borrow self)
    public func bytes(_ tensorName: String) throws(SparseKernelsError) -> RawSpan {
        _overrideLifetime(bytes(of: try entry(named: tensorName)), borrowing: self)
    }

    /// The elements of a tensor, in place, last axis fastest. `BOOL` is read as `UInt8`, with any bytes.
    /// - Throws: `.notFound`; `.invalidElementType` when the file has another type; `.misalignedData` when the elements are not
    ///   aligned, which the format permits (`tensor` reads such a file).
    @_lifetime(borrow self)
    public func span<Element: TensorElement>(
        _ tensorName: String, as type: Element.Type = Element.self
    ) throws(SparseKernelsError) -> Span<Element> {
        let entry = try entry(named: tensorName)
        try requireType(of: entry, Element.self)
        let bytes = bytes(of: entry)
        if bytes.isEmpty { return Span<Element>() }
        let misalignment = bytes.withUnsafeBytes {
            Int(bitPattern: $0.baseAddress) % MemoryLayout<Element>.alignment
        }
        try require(
            misalignment == 0, .misalignedData, "\(name), tensor \(quoted(tensorName))",
            expected: "aligned to \(MemoryLayout<Element>.alignment) bytes for a view (`tensor(_:as:)` copies from anywhere)",
            actual: "file offset \(dataOffset + entry.byteRange.lowerBound)")
        return _overrideLifetime(Span<Element>(_bytes: bytes), borrowing: self)
    }

    /// A tensor as an attention operand, in place. Rank 3, with the axes in the order of `layout`; rank 2 is one head.
    /// - Throws: the errors of `span`, and `.invalidShape` for another rank or a zero extent.
    @_lifetime(borrow self)
    public func tensorView<Element: TensorElement>(
        _ tensorName: String, as type: Element.Type = Element.self, layout: TensorLayout = .hnd
    ) throws(SparseKernelsError) -> TensorView<Element> {
        let elements = try span(tensorName, as: Element.self)
        let geometry = try TensorGeometry(shape: entry(named: tensorName).shape, layout: layout, named: tensorName)
        return try TensorView(elements, geometry: geometry, named: tensorName)
    }

    // MARK: - Copies

    /// A copy of a tensor, with any alignment. `BOOL` is read as `UInt8`, with any bytes.
    /// - Throws: `.notFound`; `.invalidElementType` when the file has another type.
    public func tensor<Element: TensorElement>(
        _ tensorName: String, as type: Element.Type = Element.self
    ) throws(SparseKernelsError) -> Tensor<Element> {
        let entry = try entry(named: tensorName)
        try requireType(of: entry, Element.self)
        var tensor = try Tensor<Element>(zeros: entry.shape)
        var elements = tensor.mutableSpan
        let source = bytes(of: entry)
        elements.withUnsafeMutableBytes { target in source.withUnsafeBytes { target.copyMemory(from: $0) } }
        return tensor
    }

    /// A copy of a tensor of `F32`, `F16` or `BF16`, exactly converted to `Float`.
    /// - Throws: `.notFound`; `.invalidElementType` when the file has another type.
    public func floatTensor(_ tensorName: String) throws(SparseKernelsError) -> Tensor<Float> {
        let entry = try entry(named: tensorName)
        let source = bytes(of: entry)
        switch entry.elementType {
        case .float32: return try tensor(tensorName)
        case .float16: return try widened(source, entry.shape, floatValue(ofHalf:))
        case .bfloat16: return try widened(source, entry.shape) { BFloat16(bitPattern: $0).floatValue }
        default:
            throw SparseKernelsError(
                .invalidElementType, "\(name), tensor \(quoted(tensorName))", expected: "F32, F16 or BF16",
                actual: entry.elementType.rawValue)
        }
    }

    private func widened(
        _ source: RawSpan, _ shape: [Int], _ widen: (UInt16) -> Float
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var tensor = try Tensor<Float>(zeros: shape)
        var elements = tensor.mutableSpan
        source.withUnsafeBytes { source in
            for i in 0..<elements.count { elements[i] = widen(source.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self)) }
        }
        return tensor
    }

    // MARK: - Shared

    @_lifetime(borrow self)
    private func bytes(of entry: SafetensorsEntry) -> RawSpan {
        let range = dataOffset + entry.byteRange.lowerBound..<dataOffset + entry.byteRange.upperBound
        let span = RawSpan(_unsafeBytes: UnsafeRawBufferPointer(rebasing: contents.buffer[range]))
        return _overrideLifetime(span, borrowing: self)
    }

    private func requireType<Element: TensorElement>(
        of entry: SafetensorsEntry, _ type: Element.Type
    ) throws(SparseKernelsError) {
        let (stored, asked) = (entry.elementType, Element.elementType)
        try require(
            stored.hasSwiftType, .invalidElementType, "\(name), tensor \(quoted(entry.name))",
            expected: "read as bytes (`bytes`), because no Swift type holds \(stored.rawValue)",
            actual: "\(asked.rawValue) (\(Element.self))")
        try require(
            stored == asked || (stored == .bool && asked == .uint8), .invalidElementType,
            "\(name), tensor \(quoted(entry.name))",
            expected: "read as \(stored.rawValue), which the file holds\(stored == .bool ? ", in UInt8" : "")",
            actual: "\(asked.rawValue) (\(Element.self))")
    }
}

/// The exact value of a 16-bit IEEE float. It is computed from bits, because not every platform's compiler has `Float16`.
func floatValue(ofHalf bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let magnitude = UInt32(bits & 0x7fff) << 13
    // Infinity and NaN keep their mantissa under an exponent of ones. For other numbers shifting leaves the exponent 112 too
    // small, which a multiplication by a power of two corrects exactly, also for subnormal numbers.
    if magnitude >= 0x7c00 << 13 { return Float(bitPattern: sign | 0x7f80_0000 | magnitude) }
    return Float(bitPattern: sign | (Float(bitPattern: magnitude) * 0x1p112).bitPattern)
}

/// Collects tensors and text, and writes them as one safetensors file.
///
///     var writer = SafetensorsWriter(metadata: ["layout": "[heads, tokens, headDim]"])
///     try writer.add("key", keys)
///     try writer.write(to: "capture.safetensors")
///
/// The same names, tensors and metadata give the same bytes, whatever the order in which they were added. Tensors are shared,
/// not copied, until they are written.
public struct SafetensorsWriter: Sendable {
    /// Free-form text entries of the header.
    public var metadata: [String: String]
    private var parts: [String: Part] = [:]

    /// Makes a file without tensors, which is a legal file.
    public init(metadata: [String: String] = [:]) { self.metadata = metadata }

    // MARK: - Adding

    /// Adds a tensor.
    /// - Throws: `.invalidArgument` for a name that is used already, or that the format reserves for the metadata.
    public mutating func add<Element: TensorElement>(
        _ name: String, _ tensor: Tensor<Element>
    ) throws(SparseKernelsError) {
        try add(
            Part(name: name, elementType: Element.elementType, shape: tensor.shape, byteCount: tensor.span.bytes.byteCount) {
                use throws(SparseKernelsError) in try use(tensor.span.bytes)
            })
    }

    /// Adds a tensor of any type as little-endian bytes, last axis fastest. The bytes are copied.
    /// - Throws: `.invalidArgument` for a name that is used or reserved, `.invalidShape` when the number of bytes does not fit
    ///   type and shape (any number fits a type of unknown size), `.invalidElementType` for a type whose name is not 1 to 64
    ///   printable ASCII characters.
    public mutating func add(
        _ name: String, elementType: ElementType, shape: [Int], bytes: RawSpan
    ) throws(SparseKernelsError) {
        try add(name, elementType: elementType, shape: shape, bytes: bytes.withUnsafeBytes { Array($0) })
    }

    /// Adds a tensor of any type as little-endian bytes, last axis fastest.
    /// - Throws: `.invalidArgument` for a name that is used or reserved, `.invalidShape` when the number of bytes does not fit
    ///   type and shape (any number fits a type of unknown size), `.invalidElementType` for a type whose name is not 1 to 64
    ///   printable ASCII characters.
    public mutating func add(
        _ name: String, elementType: ElementType, shape: [Int], bytes: [UInt8]
    ) throws(SparseKernelsError) {
        try require(
            elementType.hasLegalName, .invalidElementType, "elementType of tensor \(quoted(name))",
            expected: "named by 1 to 64 printable ASCII characters", actual: quoted(elementType.rawValue))
        // A case `other` with the name of a known type becomes that type.
        let elementType = ElementType(rawValue: elementType.rawValue)
        let byteCount = try elementType.checkedByteCount(shape) ?? bytes.count
        try require(
            bytes.count == byteCount, .invalidShape, "tensor \(quoted(name))",
            expected: "\(byteCount) bytes for \(elementType.rawValue) \(abbreviated(shape))", actual: "\(bytes.count)")
        try add(
            Part(name: name, elementType: elementType, shape: shape, byteCount: byteCount) {
                use throws(SparseKernelsError) in try use(bytes.span.bytes)
            })
    }

    /// Adds a tensor of another file, bit for bit, of any type. Its bytes are read when this file is written, which may be
    /// larger than memory.
    ///
    /// - Parameters:
    ///   - name: the name in the new file.
    ///   - file: the file with the tensor, which the writer keeps open.
    ///   - sourceName: the name in that file; nil means the same.
    /// - Throws: `.notFound`; `.invalidArgument` for a name that is used or reserved.
    public mutating func add(
        _ name: String, from file: SafetensorsFile, named sourceName: String? = nil
    ) throws(SparseKernelsError) {
        let entry = try file.entry(named: sourceName ?? name)
        try add(
            Part(name: name, elementType: entry.elementType, shape: entry.shape, byteCount: entry.byteRange.count) {
                use throws(SparseKernelsError) in try use(file.bytes(entry.name))
            })
    }

    /// A closure that takes the bytes of a tensor, one piece after the other.
    package typealias ByteSink = (RawSpan) throws(SparseKernelsError) -> Void

    /// Adds a tensor whose bytes are not adjacent. `pieces` returns them in order when the file is written, which may happen
    /// more than once. Their number must fit type and shape.
    /// - Throws: `.invalidArgument` for a name that is used or reserved, `.invalidShape` for a size that overflows,
    ///   `.invalidElementType` for a type of unknown size.
    package mutating func add(
        _ name: String, elementType: ElementType, shape: [Int],
        pieces: @escaping @Sendable (ByteSink) throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) {
        guard let byteCount = try elementType.checkedByteCount(shape) else {
            throw SparseKernelsError(
                .invalidElementType, "elementType", expected: "of a known size", actual: quoted(elementType.rawValue))
        }
        try add(Part(name: name, elementType: elementType, shape: shape, byteCount: byteCount, withBytes: pieces))
    }

    private mutating func add(_ part: Part) throws(SparseKernelsError) {
        try requireSafeKey(part.name, "tensor name")
        try require(
            part.name != SafetensorsHeader.metadataKey, .invalidArgument, "tensor name",
            expected: "other than the reserved \(SafetensorsHeader.metadataKey)", actual: quoted(part.name))
        try require(
            parts[part.name] == nil, .invalidArgument, "tensor name", expected: "used once in a file",
            actual: "\(quoted(part.name)) again")
        parts[part.name] = part
    }

    // MARK: - Writing

    /// Writes the file to `path` in one step: an existing file is either replaced by the complete new one or left as it is.
    ///
    /// The file is written under another name in the same directory, synchronised with the disk and renamed. It gets mode 0644,
    /// minus the process's umask. A symbolic link is replaced, not followed.
    /// - Throws: `.inputOutput`, and the errors of ``encoded()``.
    public func write(to path: String) throws(SparseKernelsError) {
        let (parts, header) = try layout()
        try AtomicFile.replace(path) { file throws(SparseKernelsError) in
            try file.append(header.span.bytes)
            for part in parts {
                try part.withBytes { bytes throws(SparseKernelsError) in try file.append(bytes) }
            }
        }
    }

    /// The bytes of the file.
    /// - Throws: `.invalidArgument` when the header is larger than the format allows, or a metadata key is not legal.
    public func encoded() throws(SparseKernelsError) -> [UInt8] {
        let (parts, header) = try layout()
        var result = header
        result.reserveCapacity(header.count + parts.reduce(0) { $0 + $1.byteCount })
        for part in parts {
            try part.withBytes { bytes throws(SparseKernelsError) in
                bytes.withUnsafeBytes { result.append(contentsOf: $0) }
            }
        }
        return result
    }

    /// Throws for a key that the reader refuses.
    private func requireSafeKey(_ key: String, _ argument: String) throws(SparseKernelsError) {
        try require(
            hasBoundedMarks(key), .invalidArgument, argument, expected: "at most \(markLimit) combining marks in a row",
            actual: quoted(key))
    }

    /// The tensors in the order of the file, and the header with its length.
    private func layout() throws(SparseKernelsError) -> ([Part], [UInt8]) {
        // The format allows no gaps between tensors. If the data section is aligned and wide elements come first, every tensor
        // is aligned without gaps. Names make the order independent of the order of adding.
        let sorted = parts.values.sorted { a, b in
            let (x, y) = (a.width, b.width)
            return x == y ? a.name < b.name : x > y
        }
        for key in metadata.keys { try requireSafeKey(key, "metadata key") }
        var items: [String] = []
        if !metadata.isEmpty {
            let pairs = metadata.sorted { $0.key < $1.key }.map { "\(jsonString($0.key)):\(jsonString($0.value))" }
            items.append("\"\(SafetensorsHeader.metadataKey)\":{\(pairs.joined(separator: ","))}")
        }
        var offset = 0
        for part in sorted {
            let (end, overflow) = offset.addingReportingOverflow(part.byteCount)
            try require(!overflow, .invalidArgument, "file size", expected: "at most 63 bits", actual: "more")
            let shape = part.shape.map(String.init).joined(separator: ",")
            items.append(
                "\(jsonString(part.name)):{\"dtype\":\"\(part.elementType.rawValue)\",\"shape\":[\(shape)],"
                    + "\"data_offsets\":[\(offset),\(end)]}")
            offset = end
        }
        var text = Array("{\(items.joined(separator: ","))}".utf8)
        let alignment = 64
        let unpadded = SafetensorsHeader.prefixBytes + text.count
        text.append(contentsOf: repeatElement(UInt8(ascii: " "), count: (alignment - unpadded % alignment) % alignment))
        try require(
            text.count <= SafetensorsHeader.byteLimit, .invalidArgument, "header",
            expected: "at most \(SafetensorsHeader.byteLimit) bytes of names, shapes and metadata", actual: "\(text.count)")
        let prefix = (0..<SafetensorsHeader.prefixBytes).map { UInt8(truncatingIfNeeded: text.count >> (8 * $0)) }
        return (sorted, prefix + text)
    }
}

/// A tensor of any type. The closure keeps the owner of the bytes and passes them on without a copy, in one piece or several.
private struct Part: Sendable {
    let name: String
    let elementType: ElementType
    let shape: [Int]
    /// The size, which was checked when the part was added or its tensor was made.
    let byteCount: Int
    let withBytes: @Sendable (SafetensorsWriter.ByteSink) throws(SparseKernelsError) -> Void

    /// The width by which tensors are sorted: a power of two up to 8 that divides the tensor's size, so that tensors of this
    /// width or less may follow. It is an element's width if that is known, and otherwise the largest.
    var width: Int { elementType.byteCount ?? (elementType.bitCount == nil ? 1 << min(3, byteCount.trailingZeroBitCount) : 1) }
}

/// A JSON string with quotation marks. Only characters that need it are escaped; all others are UTF-8.
private func jsonString(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\"": result += "\\\""
        case "\\": result += "\\\\"
        case "\n": result += "\\n"
        case "\r": result += "\\r"
        case "\t": result += "\\t"
        case "\0"..<" ":
            let digits = String(scalar.value, radix: 16)
            result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result + "\""
}

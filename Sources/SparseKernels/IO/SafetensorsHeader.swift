/// The entry of a tensor in a safetensors file: its name, type, shape and position.
public struct SafetensorsEntry: Hashable, Sendable {
    public let name: String
    /// The type. Its raw value is the name in the file, for known and unknown types.
    public let elementType: ElementType
    /// Extents, outermost first; empty for a scalar.
    public let shape: [Int]
    /// The bytes of the elements, counted from the start of the file's data section.
    public let byteRange: Range<Int>

    /// The number of elements. They fill `byteRange`; how is not known for a type of unknown size (`ElementType.other`).
    public var count: Int { shape.reduce(1, *) }
}

/// The table of contents of a safetensors file, checked against the file.
///
/// A file is an 8-byte little-endian length, a JSON object of that length, and the data section:
///
///     {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
///
/// After these checks everything can be read without further ones: every range is inside the data section and has the size of
/// its type and shape (if the type is known), and the ranges together cover the section exactly once. Files are not trusted, so
/// the work and the memory are proportional to the file's real size, never to a number in it.
struct SafetensorsHeader {
    /// The limit of the reference implementation.
    static let byteLimit = 100_000_000
    /// Bytes of the length before the object.
    static let prefixBytes = 8
    static let metadataKey = "__metadata__"

    private(set) var metadata: [String: String] = [:]
    /// The entries in the order of their data.
    private(set) var entries: [SafetensorsEntry] = []
    /// The offset of the data section in the file.
    let dataOffset: Int

    private let source: String
    private let dataByteCount: Int

    /// - Parameter source: the file's name, for messages.
    /// - Throws: `.malformedFile`.
    init(_ file: Span<UInt8>, source: String) throws(SparseKernelsError) {
        self.source = source
        let length: Int
        do throws(SparseKernelsError) { length = try Self.headerLength(file, source: source) } catch {
            throw Self.foreignFile(file, source: source) ?? error
        }
        dataOffset = Self.prefixBytes + length
        dataByteCount = file.count - dataOffset

        var scanner = JSONScanner(file.extracting(Self.prefixBytes..<dataOffset), source: source)
        // White space around the object is padding, which the reference implementation accepts on both sides.
        do throws(SparseKernelsError) { try scanner.expect(UInt8(ascii: "{"), "`{` at its start") } catch {
            throw Self.foreignFile(file, source: source) ?? error
        }
        try parseObject(&scanner)
        try scanner.expectEnd()
        try checkCover()
    }

    /// The error for a recognised file of another kind; nil for a damaged one. Only for files without a legal start.
    private static func foreignFile(_ file: Span<UInt8>, source: String) -> SparseKernelsError? {
        foreignFormat(of: file).map {
            SparseKernelsError(.malformedFile, source, expected: "a safetensors file", actual: $0)
        }
    }

    private static func headerLength(_ file: Span<UInt8>, source: String) throws(SparseKernelsError) -> Int {
        try require(
            file.count >= prefixBytes, .malformedFile, source, expected: "\(prefixBytes) bytes of header length or more",
            actual: "\(file.count) bytes")
        var length: UInt64 = 0
        for i in (0..<prefixBytes).reversed() { length = length << 8 | UInt64(file[i]) }
        let limit = min(byteLimit, file.count - prefixBytes)
        try require(
            length <= UInt64(limit), .malformedFile, "\(source), header length",
            expected: limit == byteLimit
                ? "at most \(limit) bytes" : "at most the \(limit) bytes that follow it in the file", actual: "\(length)")
        return Int(length)
    }

    // MARK: - Parsing

    /// Parses the object after its `{`.
    private mutating func parseObject(_ scanner: inout JSONScanner) throws(SparseKernelsError) {
        var names: Set<String> = []
        var hasMetadata = false
        var isFirst = true
        while let name = try scanner.nextKey(isFirst: isFirst) {
            isFirst = false
            if name == Self.metadataKey {
                if hasMetadata { throw scanner.failure("one \(Self.metadataKey)", actual: "a second one") }
                hasMetadata = true
                try parseMetadata(&scanner)
                continue
            }
            scanner.tensor = name
            if !names.insert(name).inserted { throw scanner.failure("listed once", actual: "a second entry of that name") }
            entries.append(try parseEntry(&scanner, name: name))
            scanner.tensor = nil
        }
    }

    private mutating func parseMetadata(_ scanner: inout JSONScanner) throws(SparseKernelsError) {
        scanner.field = Self.metadataKey
        defer { scanner.field = nil }
        if scanner.skipNull() { return }
        try scanner.expect(UInt8(ascii: "{"), "an object of strings or null")
        var isFirst = true
        while let key = try scanner.nextKey(isFirst: isFirst) {
            isFirst = false
            if metadata[key] != nil { throw scanner.failure("keys that occur once", actual: "\(quoted(key)) again") }
            metadata[key] = try scanner.string("text in quotation marks")
        }
    }

    private func parseEntry(_ scanner: inout JSONScanner, name: String) throws(SparseKernelsError) -> SafetensorsEntry {
        var elementType: ElementType?
        var shape: [Int]?
        var offsets: [Int]?
        try scanner.expect(UInt8(ascii: "{"), "an object with dtype, shape and data_offsets")
        var isFirst = true
        while let key = try scanner.nextKey(isFirst: isFirst) {
            isFirst = false
            let isRepeated: Bool
            switch key {
            case "dtype": isRepeated = elementType != nil
            case "shape": isRepeated = shape != nil
            case "data_offsets": isRepeated = offsets != nil
            default:
                // A field of a later version of the format, or of another program.
                try scanner.skipValue()
                continue
            }
            if isRepeated { throw scanner.failure("keys that occur once", actual: "\(key) again") }
            scanner.field = key
            switch key {
            case "dtype": elementType = try parseElementType(&scanner)
            case "shape": shape = try parseCounts(&scanner)
            default: offsets = try parseCounts(&scanner, exactly: 2)
            }
            scanner.field = nil
        }
        guard let elementType, let shape, let offsets else {
            let missing = elementType == nil ? "dtype" : shape == nil ? "shape" : "data_offsets"
            throw scanner.failure("an object with dtype, shape and data_offsets", actual: "no \(missing)")
        }
        return try entry(name: name, elementType: elementType, shape: shape, offsets: offsets)
    }

    private func parseElementType(_ scanner: inout JSONScanner) throws(SparseKernelsError) -> ElementType {
        let type = ElementType(rawValue: try scanner.string("an element type in quotation marks"))
        if !type.hasLegalName {
            throw scanner.failure("an element type of 1 to 64 printable ASCII characters", actual: quoted(type.rawValue))
        }
        return type
    }

    private func parseCounts(
        _ scanner: inout JSONScanner, exactly count: Int? = nil
    ) throws(SparseKernelsError) -> [Int] {
        var values: [Int] = []
        try scanner.expect(UInt8(ascii: "["), "an array of integers")
        while try scanner.nextElement(isFirst: values.isEmpty) {
            if values.count == count { throw scanner.failure("\(values.count) integers", actual: "more") }
            values.append(try scanner.count())
        }
        if let count, values.count != count { throw scanner.failure("\(count) integers", actual: "\(values.count)") }
        return values
    }

    // MARK: - Ranges

    /// The entry, if its range is inside the data section and has the size of its type and shape.
    private func entry(
        name: String, elementType: ElementType, shape: [Int], offsets: [Int]
    ) throws(SparseKernelsError) -> SafetensorsEntry {
        let (begin, end) = (offsets[0], offsets[1])
        try require(
            begin <= end && end <= dataByteCount, .malformedFile, argument(name, "data_offsets"),
            expected: "ascending and at most the \(dataByteCount) bytes of the data section", actual: "[\(begin), \(end)]")
        let byteCount: Int?
        do throws(SparseKernelsError) { byteCount = try elementType.checkedByteCount(shape) } catch {
            throw SparseKernelsError(
                .malformedFile, argument(name, "shape"), expected: error.expected, actual: abbreviated(shape))
        }
        try require(
            byteCount == nil || end - begin == byteCount, .malformedFile, argument(name, "data_offsets"),
            expected: "\(byteCount ?? 0) bytes apart for \(elementType.rawValue) \(abbreviated(shape))",
            actual: "\(end - begin), [\(begin), \(end)]")
        return SafetensorsEntry(name: name, elementType: elementType, shape: shape, byteRange: begin..<end)
    }

    /// Sorts the entries in the order of their data and checks that they cover the section without overlaps and holes.
    private mutating func checkCover() throws(SparseKernelsError) {
        // Tensors without data share an offset with the next one and come before it. Names break the remaining ties.
        entries.sort { a, b in
            let (x, y) = (a.byteRange, b.byteRange)
            return (x.lowerBound, x.upperBound) == (y.lowerBound, y.upperBound)
                ? a.name < b.name : (x.lowerBound, x.upperBound) < (y.lowerBound, y.upperBound)
        }
        var covered = 0
        for (i, entry) in entries.enumerated() {
            let begin = entry.byteRange.lowerBound
            try require(
                begin == covered, .malformedFile, argument(entry.name, "data_offsets"),
                expected: "from \(covered) on, where "
                    + (i == 0 ? "the data section starts" : "tensor \(quoted(entries[i - 1].name)) ends"),
                actual: "\(begin), \(begin < covered ? "an overlap" : "a hole")")
            covered = entry.byteRange.upperBound
        }
        try require(
            covered == dataByteCount, .malformedFile, "\(source), data section",
            expected: "\(covered) bytes, where the last tensor ends", actual: "\(dataByteCount)")
    }

    private func argument(_ name: String, _ field: String) -> String { "\(source), tensor \(quoted(name)), \(field)" }
}

/// The index of a model in parts, `model.safetensors.index.json`: the file that has each tensor.
///
/// ```json
/// {"metadata": {"total_size": 16060522496}, "weight_map": {"lm_head.weight": "model-00004-of-00004.safetensors", …}}
/// ```
///
/// Keys other than `weight_map` are passed over, but must be JSON. A key that is there twice is an error, because either of its
/// values may be the wrong one.
public struct SafetensorsIndex: Sendable {
    /// The path that was read, or the name that was given with the bytes.
    public let name: String
    /// The names of the files, sorted. They are names within the folder of the index, without a path.
    public let files: [String]
    /// The file of each tensor.
    public let fileOfTensor: [String: String]

    /// - Throws: `.inputOutput` when the file cannot be read, `.malformedFile` when it is no index.
    public init(path: String) throws(SparseKernelsError) {
        let contents = try FileMapping(path: path)
        try self.init(Span(_unsafeBytes: contents.buffer), named: path)
        withExtendedLifetime(contents) {}
    }

    /// Reads an index from memory. Messages show the name instead of a path.
    /// - Throws: `.malformedFile` when the bytes are no index.
    public init(bytes: [UInt8], named name: String = "bytes") throws(SparseKernelsError) {
        try self.init(bytes.span, named: name)
    }

    private init(_ text: Span<UInt8>, named name: String) throws(SparseKernelsError) {
        self.name = name
        var scanner = JSONScanner(text, source: name, part: "text")
        try scanner.expect(UInt8(ascii: "{"), "`{` at the start of an index")
        var map: [String: String]?
        var keys: Set<String> = []
        while let key = try scanner.nextKey(isFirst: keys.isEmpty) {
            if !keys.insert(key).inserted { throw scanner.failure("one key \(quoted(key))", actual: "a second one") }
            if key == "weight_map" { map = try Self.map(&scanner) } else { try scanner.skipValue() }
        }
        try scanner.expectEnd()
        guard let map else {
            throw SparseKernelsError(.malformedFile, name, expected: "an index with a key \"weight_map\"", actual: "none")
        }
        fileOfTensor = map
        files = Set(map.values).sorted()
    }

    private static func map(_ scanner: inout JSONScanner) throws(SparseKernelsError) -> [String: String] {
        var map: [String: String] = [:]
        try scanner.expect(UInt8(ascii: "{"), "`{` at the start of weight_map")
        while let tensor = try scanner.nextKey(isFirst: map.isEmpty) {
            scanner.tensor = tensor
            if map[tensor] != nil { throw scanner.failure("listed once", actual: "a second entry of that name") }
            let file = try scanner.string("the name of a file")
            // A name from a file that is not trusted must not lead to another folder.
            if file.isEmpty || file.contains("/") || file.contains("\\") || file == "." || file == ".." || file.contains("\0") {
                throw scanner.failure("the name of a file in the folder of the index", actual: quoted(file))
            }
            map[tensor] = file
            scanner.tensor = nil
        }
        return map
    }
}

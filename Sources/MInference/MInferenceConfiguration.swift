internal import Foundation

/// The attention patterns of a model's heads, by layer and head, as found by the offline search.
///
/// The JSON form is the released one, an array with one object per layer:
///
///     [{"0": ["vertical_and_slash", 1000, 6096, 0.93], "1": ["stream_llm", 100, 800, 0.9], …}, …]
///
/// The numbers are (vertical, slash) for `vertical_and_slash` and (initial, local) for `stream_llm`. `block_sparse` ignores
/// them: it always keeps 100 blocks of 64. The last number is the score that the search gave the pattern.
public struct MInferenceConfiguration: Hashable, Sendable {
    /// The pattern of a head and the score that the search gave it.
    public struct Entry: Hashable, Sendable {
        public var head: MInferenceHead
        public var score: Double

        public init(_ head: MInferenceHead, score: Double = 1) {
            self.head = head
            self.score = score
        }
    }

    /// The entries of every layer, by head.
    public var layers: [[Int: Entry]]
    /// The first layer with these patterns. Earlier layers are dense.
    public var startingLayer: Int

    public init(layers: [[Int: Entry]], startingLayer: Int = 0) {
        self.layers = layers
        self.startingLayer = startingLayer
    }

    /// Reads a file in the released form.
    /// - Throws: `.inputOutput` when the file cannot be read, otherwise as `init(json:startingLayer:)`.
    public init(path: String, startingLayer: Int = 0) throws(SparseKernelsError) {
        let data: Data
        do {
            data = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw SparseKernelsError(.inputOutput, path, expected: "readable", actual: error.localizedDescription)
        }
        try self.init(json: data, named: path, startingLayer: startingLayer)
    }

    /// Reads a text in the released form.
    /// - Throws: `.malformedFile` naming the layer and head when the text is not JSON of this form, has an unknown pattern, or
    ///   has a number out of its domain.
    public init(json: String, startingLayer: Int = 0) throws(SparseKernelsError) {
        try self.init(json: Data(json.utf8), named: "json", startingLayer: startingLayer)
    }

    private init(json: Data, named name: String, startingLayer: Int) throws(SparseKernelsError) {
        let decoded: [[String: ReleasedEntry]]
        do {
            decoded = try JSONDecoder().decode([[String: ReleasedEntry]].self, from: json)
        } catch {
            throw Self.malformed(name, error)
        }
        layers = []
        self.startingLayer = startingLayer
        for (layer, released) in decoded.enumerated() {
            var entries: [Int: Entry] = [:]
            for (key, entry) in released {
                let place = "\(name)[\(layer)][\"\(key)\"]"
                guard let index = Int(key), index >= 0, String(index) == key else {
                    throw SparseKernelsError(.malformedFile, place, expected: "a head number as key", actual: key)
                }
                entries[index] = try entry.entry(named: place)
            }
            layers.append(entries)
        }
    }

    /// The patterns of a layer, one per query head: `.standard` where there is no entry, and `.dense` before `startingLayer`.
    /// - Throws: `.invalidArgument` for a negative layer, or an entry of a head that the layer does not have.
    public func heads(layer: Int, queryHeads: Int) throws(SparseKernelsError) -> [MInferenceHead] {
        try require(layer >= 0, .invalidArgument, "layer", expected: "at least 0", actual: "\(layer)")
        try require(queryHeads >= 1, .invalidArgument, "queryHeads", expected: "at least 1", actual: "\(queryHeads)")
        if layer < startingLayer { return Array(repeating: .dense, count: queryHeads) }
        var heads = [MInferenceHead](repeating: .standard, count: queryHeads)
        if layer >= layers.count { return heads }
        for (index, entry) in layers[layer] {
            try require(
                heads.indices.contains(index), .invalidArgument, "layers[\(layer)]", expected: "heads in 0..<\(queryHeads)",
                actual: "\(index)")
            heads[index] = entry.head
        }
        return heads
    }

    /// The released JSON form.
    /// - Throws: `.invalidArgument` naming an entry that the form cannot express: `.dense`, block-sparse heads with numbers
    ///   other than 100 and 64, or a score that is not finite.
    public func json() throws(SparseKernelsError) -> String {
        var released: [[String: ReleasedEntry]] = []
        for (layer, entries) in layers.enumerated() {
            var line: [String: ReleasedEntry] = [:]
            for (index, entry) in entries {
                line[String(index)] = try ReleasedEntry(entry, named: "layers[\(layer)][\(index)]")
            }
            released.append(line)
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        // The encoder accepts all strings, integers and finite numbers, so it cannot fail.
        return String(decoding: try! encoder.encode(released), as: UTF8.self)
    }

    private static func malformed(_ name: String, _ error: any Error) -> SparseKernelsError {
        let context: DecodingError.Context? =
            switch error as? DecodingError {
            case .typeMismatch(_, let context), .valueNotFound(_, let context), .keyNotFound(_, let context): context
            case .dataCorrupted(let context): context
            default: nil
            }
        // The path is layer, then head. Foundation gives a key like "0" an integer value as well.
        let path = (context?.codingPath ?? []).enumerated().map { level, key in
            level == 0 ? "[\(key.intValue ?? 0)]" : "[\"\(key.stringValue)\"]"
        }
        return SparseKernelsError(
            .malformedFile, name + path.joined(),
            expected: "an array of objects, head number → [pattern, vertical, slash, score]",
            actual: context?.debugDescription ?? "\(error)")
    }
}

/// `[pattern, number, number, score]`.
private struct ReleasedEntry: Codable {
    var pattern: String
    var first: Int
    var second: Int
    var score: Double

    init(from decoder: any Decoder) throws {
        do {
            var container = try decoder.unkeyedContainer()
            pattern = try container.decode(String.self)
            first = try container.decode(Int.self)
            second = try container.decode(Int.self)
            score = try container.decode(Double.self)
            if container.isAtEnd { return }
        } catch {}
        // Foundation's own errors do not always name the place, and not all of them are decoding errors.
        throw DecodingError.dataCorrupted(
            DecodingError.Context(codingPath: decoder.codingPath, debugDescription: "an entry of another form"))
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.unkeyedContainer()
        try container.encode(pattern)
        try container.encode(first)
        try container.encode(second)
        try container.encode(score)
    }

    init(_ entry: MInferenceConfiguration.Entry, named name: String) throws(SparseKernelsError) {
        switch entry.head {
        case .verticalSlash(let vertical, let slash): (pattern, first, second) = ("vertical_and_slash", vertical, slash)
        case .aShape(let initial, let local): (pattern, first, second) = ("stream_llm", initial, local)
        case .blockSparse(topK: 100, blockSize: 64): (pattern, first, second) = ("block_sparse", 100, 1)
        default:
            throw SparseKernelsError(
                .invalidArgument, name, expected: "a pattern of the released form", actual: "\(entry.head)")
        }
        try require(
            entry.score.isFinite, .invalidArgument, "\(name).score", expected: "finite", actual: "\(entry.score)")
        score = entry.score
    }

    func entry(named name: String) throws(SparseKernelsError) -> MInferenceConfiguration.Entry {
        let head: MInferenceHead
        switch pattern {
        case "vertical_and_slash": head = .verticalSlash(vertical: first, slash: second)
        case "stream_llm": head = .aShape(initial: first, local: second)
        case "block_sparse": head = .blockSparse()
        default:
            throw SparseKernelsError(
                .malformedFile, name, expected: "vertical_and_slash, stream_llm or block_sparse", actual: pattern)
        }
        do {
            try head.validate(named: name)
        } catch {
            throw SparseKernelsError(.malformedFile, error.argument, expected: error.expected, actual: error.actual)
        }
        return MInferenceConfiguration.Entry(head, score: score)
    }
}

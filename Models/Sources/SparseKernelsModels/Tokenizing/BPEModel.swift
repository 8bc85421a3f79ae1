import SparseKernels

/// Vocabulary and merges.
struct BPEModel: Sendable {
    /// Texts of tokens as the file has them, in UTF-8, which is the alphabet of bytes for a byte-level tokenizer.
    let vocabulary: [[UInt8]: Int]
    /// One more than the largest id.
    let count: Int
    /// Each id has a row in tables, so a wild one must not take all memory. No vocabulary comes near this one.
    static let idLimit = 1 << 22
    private var merges = MergeTable()
    private let isByteLevel: Bool
    /// The token of each byte: of its character in the alphabet, or `<0x..>`. −1 where there is none.
    private let byteTokens: [Int32]
    /// Whether a whole piece that is a token is not built of merges.
    private let ignoresMerges: Bool
    private let unknown: Int?
    private let fusesUnknown: Bool

    init(_ part: TokenizerPart, isByteLevel: Bool) throws(SparseKernelsError) {
        if let type = try part.part("type"), try type.text() != "BPE" { throw try part.unknown("model", "BPE") }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if let affix = try part.part(key), try !affix.text().isEmpty { throw affix.failure(expected: "empty or null") }
        }
        self.isByteLevel = isByteLevel
        ignoresMerges = try part.flag("ignore_merges", default: false)
        fusesUnknown = try part.flag("fuse_unk", default: false)
        let vocabulary = try Self.vocabulary(try part.required("vocab"))
        self.vocabulary = vocabulary
        count = (vocabulary.values.max() ?? -1) + 1
        let fallsBack = try part.flag("byte_fallback", default: false)
        byteTokens = (0..<256).map { byte in
            let name = isByteLevel ? ByteAlphabet.utf8[byte] : fallsBack ? TokenDecoder.byteName(UInt8(byte)) : []
            return Int32(vocabulary[name] ?? -1)
        }
        if let name = try part.part("unk_token") {
            guard let id = vocabulary[try name.bytes()] else { throw name.failure(expected: "in the vocabulary") }
            unknown = id
        } else {
            unknown = nil
        }
        try readMerges(try part.required("merges"))
    }

    private static func vocabulary(_ part: TokenizerPart) throws(SparseKernelsError) -> [[UInt8]: Int] {
        guard case .object(let members) = part.value else { throw part.failure(expected: "an object") }
        var vocabulary: [[UInt8]: Int] = [:]
        vocabulary.reserveCapacity(members.count)
        var ids = Set<Int>()
        for (name, value) in members {
            let id = try TokenizerPart(place: "\(part.place), token \(JSONTree.text(name).kind)", value: value).integer()
            guard id < Self.idLimit else { throw part.failure(expected: "ids below \(Self.idLimit)", actual: "\(id)") }
            guard vocabulary.updateValue(id, forKey: name) == nil else {
                throw part.failure(expected: "without a token twice", actual: "\(JSONTree.text(name).kind)")
            }
            guard ids.insert(id).inserted else { throw part.failure(expected: "without an id twice", actual: "\(id)") }
        }
        return vocabulary
    }

    /// Merges are texts "a b", or arrays of two in newer files.
    private mutating func readMerges(_ part: TokenizerPart) throws(SparseKernelsError) {
        guard case .array(let elements) = part.value else { throw part.failure(expected: "an array") }
        merges.reserve(elements.count)
        for (rank, element) in elements.enumerated() {
            func failure(_ expected: String, _ actual: String) -> SparseKernelsError {
                SparseKernelsError(.malformedFile, "\(part.place)[\(rank)]", expected: expected, actual: actual)
            }
            let (left, right): ([UInt8], [UInt8])
            switch element {
            case .text(let text):
                let halves = text.split(separator: 0x20, omittingEmptySubsequences: false)
                guard halves.count == 2 else { throw failure("two tokens with a space between", element.kind) }
                (left, right) = (Array(halves[0]), Array(halves[1]))
            case .array(let halves):
                guard halves.count == 2, case .text(let first) = halves[0], case .text(let second) = halves[1] else {
                    throw failure("two tokens", element.kind)
                }
                (left, right) = (first, second)
            default: throw failure("two tokens", element.kind)
            }
            var ids: [Int] = []
            for name in [left, right, left + right] {
                guard let id = vocabulary[name] else {
                    throw failure("tokens of the vocabulary, and their union too", JSONTree.text(name).kind)
                }
                ids.append(id)
            }
            merges.add(ids[0], ids[1], result: ids[2], rank: rank)
        }
    }

    /// Appends the tokens of a piece.
    func append(_ piece: [Unicode.Scalar], to result: inout [Int]) {
        if ignoresMerges, let id = vocabulary[isByteLevel ? ByteAlphabet.utf8(of: Self.utf8(piece)) : Self.utf8(piece)] {
            result.append(id)
            return
        }
        for token in merges.merge(isByteLevel ? bytes(piece) : characters(piece)) { result.append(Int(token)) }
    }

    private static func utf8(_ piece: [Unicode.Scalar]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(piece.count)
        for scalar in piece { bytes.append(contentsOf: UTF8.encode(scalar)!) }
        return bytes
    }

    /// The tokens of bytes. A byte without a token, which no text of known tokenizers has, is unknown.
    private func bytes(_ piece: [Unicode.Scalar]) -> [Int32] {
        var tokens: [Int32] = []
        for byte in Self.utf8(piece) { append(byteTokens[Int(byte)], to: &tokens) }
        return tokens
    }

    private func characters(_ piece: [Unicode.Scalar]) -> [Int32] {
        var tokens: [Int32] = []
        tokens.reserveCapacity(piece.count)
        for scalar in piece {
            let bytes = Array(UTF8.encode(scalar)!)
            if let id = vocabulary[bytes] {
                tokens.append(Int32(id))
            } else if bytes.allSatisfy({ byteTokens[Int($0)] >= 0 }) {
                tokens += bytes.map { byteTokens[Int($0)] }
            } else {
                append(-1, to: &tokens)
            }
        }
        return tokens
    }

    /// Appends a token, or for −1 the unknown one, if there is one.
    private func append(_ token: Int32, to tokens: inout [Int32]) {
        if token >= 0 { return tokens.append(token) }
        guard let unknown, !(fusesUnknown && tokens.last == Int32(unknown)) else { return }
        tokens.append(Int32(unknown))
    }
}

/// The alphabet in which byte-level tokenizers write bytes: printable characters of Latin-1 stand for themselves, the other 68
/// bytes for the characters from U+0100 on.
///
/// - Source: `bytes_to_unicode` of GPT-2's encoder.
enum ByteAlphabet {
    static let scalars: [Unicode.Scalar] = {
        var next: UInt32 = 0x100
        return (UInt8.min...UInt8.max).map { byte in
            switch byte {
            case 0x21...0x7e, 0xa1...0xac, 0xae...0xff: return Unicode.Scalar(byte)
            default:
                next += 1
                return Unicode.Scalar(next - 1)!
            }
        }
    }()

    /// The UTF-8 of the character of each byte.
    static let utf8 = scalars.map { Array(UTF8.encode($0)!) }

    private static let bytes = Dictionary(
        uniqueKeysWithValues: scalars.enumerated().map { ($1, UInt8($0)) })

    /// The UTF-8 of the characters of some bytes.
    static func utf8(of bytes: [UInt8]) -> [UInt8] { bytes.flatMap { utf8[Int($0)] } }

    /// The bytes of a text in the alphabet; nil when it has another character.
    static func bytes(of text: [UInt8]) -> [UInt8]? {
        var result: [UInt8] = []
        for scalar in String(decoding: text, as: UTF8.self).unicodeScalars {
            guard let byte = bytes[scalar] else { return nil }
            result.append(byte)
        }
        return result
    }
}

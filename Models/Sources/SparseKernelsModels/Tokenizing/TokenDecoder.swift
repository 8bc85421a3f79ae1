import SparseKernels

/// The bytes of every token, and what is taken from the start of a text.
struct TokenDecoder: Sendable {
    /// The bytes of all tokens, one after the other.
    private let bytes: [UInt8]
    /// Where those of each token begin, and the end.
    private let starts: [Int]
    /// What is taken off the start of a text, at most so often.
    private let prefix: (bytes: [UInt8], count: Int)

    private enum Step {
        case replace([UInt8], with: [UInt8])
        case byteFallback
    }

    /// - Parameters:
    ///   - count: one more than the largest id.
    ///   - isByteLevel: how texts were cut, for a file without a decoder.
    init(
        _ part: TokenizerPart?, model: BPEModel, added: [AddedTokens.Token], count: Int, isByteLevel: Bool
    ) throws(SparseKernelsError) {
        var (steps, prefix, isByteLevel): ([Step], ([UInt8], Int), Bool) = ([], ([], 0), part == nil && isByteLevel)
        var isFused = false
        for component in try part?.components("decoders") ?? [] {
            switch try component.text("type") {
            case "ByteLevel": isByteLevel = true
            case "Fuse": isFused = true
            case "ByteFallback": steps.append(.byteFallback)
            case "Replace":
                let pattern = Array(try component.required("pattern").text("String").utf8)
                steps.append(.replace(pattern, with: Array(try component.text("content").utf8)))
            case "Strip":
                let stop = try component.part("stop")?.integer() ?? 0
                guard isFused, stop == 0 else { throw component.failure(expected: "after Fuse, at the start only") }
                prefix = (Array(try component.text("content").utf8), try component.part("start")?.integer() ?? 0)
            case "Metaspace":
                let mark = Array(try component.part("replacement")?.text().utf8 ?? "▁".utf8)
                steps.append(.replace(mark, with: [0x20]))
                let scheme = try component.part("prepend_scheme")?.text() ?? "always"
                let addsPrefix = try component.flag("add_prefix_space", default: true)
                if scheme != "never" && addsPrefix { prefix = ([0x20], 1) }
            default:
                throw try component.unknown(
                    "decoder", "Sequence, ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace")
            }
        }
        var table = [[UInt8]](repeating: [], count: count)
        for (name, id) in model.vocabulary {
            table[id] = isByteLevel ? ByteAlphabet.bytes(of: name) ?? name : steps.reduce(name, Self.apply)
        }
        for token in added { table[token.id] = token.isSpecial ? [] : token.content.flatMap { Array(UTF8.encode($0)!) } }
        bytes = table.flatMap { $0 }
        starts = table.reduce(into: [0]) { $0.append($0.last! + $1.count) }
        self.prefix = (prefix.0, prefix.0.isEmpty ? 0 : prefix.1)
    }

    /// The name of a token that stands for a byte.
    static func byteName(_ byte: UInt8) -> [UInt8] {
        let digits = String(byte, radix: 16, uppercase: true)
        return Array("<0x\(digits.count < 2 ? "0" : "")\(digits)>".utf8)
    }

    private static let fallback = Dictionary(
        uniqueKeysWithValues: (UInt8.min...UInt8.max).map { (byteName($0), $0) })

    private static func apply(_ name: [UInt8], _ step: Step) -> [UInt8] {
        switch step {
        case .replace(let pattern, let replacement): name.replacing(pattern, with: replacement)
        case .byteFallback: fallback[name].map { [$0] } ?? name
        }
    }

    func bytes(of token: Int) -> [UInt8] {
        starts.indices.dropLast().contains(token) ? Array(bytes[starts[token]..<starts[token + 1]]) : []
    }

    func decode(_ tokens: [Int]) -> [UInt8] {
        var result: [UInt8] = []
        for token in tokens where starts.indices.dropLast().contains(token) {
            result += bytes[starts[token]..<starts[token + 1]]
        }
        var start = 0
        for _ in 0..<prefix.count {
            guard result[start...].starts(with: prefix.bytes) else { break }
            start += prefix.bytes.count
        }
        return start == 0 ? result : Array(result[start...])
    }
}

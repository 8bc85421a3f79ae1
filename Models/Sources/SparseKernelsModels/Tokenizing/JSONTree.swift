import SparseKernels

/// A JSON text as a tree whose texts are UTF-8 bytes.
///
/// Files of tokenizers need it: their keys are tokens, of which some differ only in how accents are composed, and these are
/// equal as `String` and as keys of Foundation's dictionaries.
enum JSONTree {
    case null
    case flag(Bool)
    case number(Double)
    case text([UInt8])
    case array([JSONTree])
    /// In the order of the file, with equal keys as often as they are there.
    case object([(key: [UInt8], value: JSONTree)])

    /// The kind of a value, for messages.
    var kind: String {
        switch self {
        case .null: "null"
        case .flag(let flag): "\(flag)"
        case .number(let number): Int(exactly: number).map(String.init) ?? "\(number)"
        case .text(let bytes): "\"\(String(decoding: bytes.prefix(60), as: UTF8.self))\(bytes.count > 60 ? "…" : "")\""
        case .array(let elements): "an array of \(elements.count)"
        case .object(let members): "an object of \(members.count)"
        }
    }

    /// - Parameter source: the name of the file, for messages.
    /// - Throws: `.malformedFile` with the position of what breaks the rules of JSON.
    /// - Complexity: O(bytes); values may be nested 64 deep.
    init(_ bytes: [UInt8], source: String) throws(SparseKernelsError) {
        // Texts are cut out of the file, so they are UTF-8 if the file is.
        guard String(validating: bytes, as: UTF8.self) != nil else {
            throw SparseKernelsError(.malformedFile, source, expected: "UTF-8", actual: "other bytes")
        }
        var parser = Parser(bytes: bytes, source: source)
        self = try parser.value(depth: 0)
        parser.skipWhitespace()
        if parser.position < bytes.count { throw parser.failure("nothing but white space after the value") }
    }
}

private struct Parser {
    let bytes: [UInt8]
    let source: String
    var position = 0

    init(bytes: [UInt8], source: String) {
        self.bytes = bytes
        self.source = source
    }

    func failure(_ expected: String) -> SparseKernelsError {
        let actual =
            position < bytes.count
            ? "\"\(Unicode.Scalar(bytes[position]).escaped(asASCII: true))\"" : "the end of the file"
        return SparseKernelsError(.malformedFile, "\(source), byte \(position)", expected: expected, actual: actual)
    }

    mutating func skipWhitespace() {
        while position < bytes.count, [0x20, 0x09, 0x0a, 0x0d].contains(bytes[position]) { position += 1 }
    }

    private mutating func accept(_ byte: UInt8) -> Bool {
        skipWhitespace()
        guard position < bytes.count, bytes[position] == byte else { return false }
        position += 1
        return true
    }

    private mutating func expect(_ byte: UInt8) throws(SparseKernelsError) {
        if !accept(byte) { throw failure("`\(Unicode.Scalar(byte))`") }
    }

    mutating func value(depth: Int) throws(SparseKernelsError) -> JSONTree {
        guard depth < 64 else { throw failure("at most 64 values inside each other") }
        skipWhitespace()
        guard position < bytes.count else { throw failure("a value") }
        switch bytes[position] {
        case UInt8(ascii: "{"):
            position += 1
            var members: [(key: [UInt8], value: JSONTree)] = []
            if accept(UInt8(ascii: "}")) { return .object([]) }
            repeat {
                skipWhitespace()
                let key = try text()
                try expect(UInt8(ascii: ":"))
                members.append((key, try value(depth: depth + 1)))
            } while accept(UInt8(ascii: ","))
            try expect(UInt8(ascii: "}"))
            return .object(members)
        case UInt8(ascii: "["):
            position += 1
            var elements: [JSONTree] = []
            if accept(UInt8(ascii: "]")) { return .array([]) }
            repeat { elements.append(try value(depth: depth + 1)) } while accept(UInt8(ascii: ","))
            try expect(UInt8(ascii: "]"))
            return .array(elements)
        case UInt8(ascii: "\""): return .text(try text())
        case UInt8(ascii: "t"): return try word("true", .flag(true))
        case UInt8(ascii: "f"): return try word("false", .flag(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func word(_ word: StaticString, _ value: JSONTree) throws(SparseKernelsError) -> JSONTree {
        let expected = Array("\(word)".utf8)
        guard bytes[position...].starts(with: expected) else { throw failure("a value") }
        position += expected.count
        return value
    }

    private mutating func number() throws(SparseKernelsError) -> JSONTree {
        let start = position
        while position < bytes.count, "+-.0123456789eE".utf8.contains(bytes[position]) { position += 1 }
        let text = String(decoding: bytes[start..<position], as: UTF8.self)
        guard let first = text.first, first == "-" || first.isNumber, let number = Double(text), number.isFinite else {
            position = start
            throw failure("a value")
        }
        return .number(number)
    }

    private mutating func text() throws(SparseKernelsError) -> [UInt8] {
        guard position < bytes.count, bytes[position] == UInt8(ascii: "\"") else { throw failure("a text in quotation marks") }
        position += 1
        var result: [UInt8] = []
        while position < bytes.count {
            let byte = bytes[position]
            position += 1
            switch byte {
            case UInt8(ascii: "\""): return result
            case UInt8(ascii: "\\"): try appendEscape(to: &result)
            case 0..<0x20:
                position -= 1
                throw failure("no control character in a text")
            default: result.append(byte)
            }
        }
        throw failure("`\"` at the end of a text")
    }

    private mutating func appendEscape(to result: inout [UInt8]) throws(SparseKernelsError) {
        guard position < bytes.count else { throw failure("an escape") }
        let plain: [UInt8: UInt8] = [
            0x22: 0x22, 0x5c: 0x5c, 0x2f: 0x2f, 0x62: 0x08, 0x66: 0x0c, 0x6e: 0x0a, 0x72: 0x0d, 0x74: 0x09,
        ]
        let byte = bytes[position]
        if let character = plain[byte] {
            position += 1
            return result.append(character)
        }
        guard byte == UInt8(ascii: "u") else { throw failure("an escape of JSON") }
        position += 1
        var code = try hexadecimal()
        if (0xd800..<0xdc00).contains(code), position + 1 < bytes.count, bytes[position] == UInt8(ascii: "\\"),
            bytes[position + 1] == UInt8(ascii: "u")
        {
            position += 2
            let low = try hexadecimal()
            // A wrong second half gives a number that is no scalar either.
            code = (0xdc00..<0xe000).contains(low) ? 0x10000 + (code - 0xd800) << 10 + (low - 0xdc00) : 0xd800
        }
        guard let scalar = Unicode.Scalar(code) else { throw failure("two halves of a surrogate pair") }
        result.append(contentsOf: UTF8.encode(scalar)!)
    }

    private mutating func hexadecimal() throws(SparseKernelsError) -> UInt32 {
        let end = position + 4
        guard end <= bytes.count, bytes[position..<end].allSatisfy({ Character(Unicode.Scalar($0)).isHexDigit }) else {
            throw failure("four hexadecimal digits")
        }
        defer { position = end }
        return UInt32(String(decoding: bytes[position..<end], as: UTF8.self), radix: 16)!
    }
}

/// Reads the tokens of a JSON text in order, and accepts nothing that the JSON standard forbids. Façades use it too.
///
/// It builds no tree. The caller asks for the next token of its format, so nesting needs no recursion, and any other token is
/// an error at its position. Foundation's parser is unsuitable, because it silently keeps one of two equal keys. Every method
/// is linear in the bytes that it passes, and no byte is passed twice.
package struct JSONScanner: ~Escapable {
    private let text: Span<UInt8>
    private(set) var position: Int
    private let source: String
    /// What the text is, for messages.
    private let part: String
    /// The tensor and the field of the tokens, for messages.
    var tensor: String?
    var field: String?

    /// - Parameters:
    ///   - source: the file's name, for messages.
    ///   - part: what the text is in the file, for messages.
    @_lifetime(copy text)
    package init(_ text: Span<UInt8>, source: String, part: String = "header") {
        self.text = text
        self.source = source
        self.part = part
        position = 0
    }

    // MARK: - Structure

    /// Passes `{`, or another byte that must come next.
    package mutating func expect(_ byte: UInt8, _ expected: String) throws(SparseKernelsError) {
        skipWhitespace()
        if position == text.count || text[position] != byte { throw failure(expected) }
        position += 1
    }

    /// Passes the next key of the open object, with its colon; returns nil when the object ends.
    package mutating func nextKey(isFirst: Bool) throws(SparseKernelsError) -> String? {
        guard try nextItem(isFirst: isFirst, closing: UInt8(ascii: "}"), "`}`") else { return nil }
        let key = try string("a key in quotation marks")
        if !hasBoundedMarks(key) { throw failure("keys with at most \(markLimit) combining marks in a row", actual: "more") }
        try expect(UInt8(ascii: ":"), "`:` after a key")
        return key
    }

    /// Whether the open array has another element.
    package mutating func nextElement(isFirst: Bool) throws(SparseKernelsError) -> Bool {
        try nextItem(isFirst: isFirst, closing: UInt8(ascii: "]"), "`]`")
    }

    /// Throws unless only white space follows, which pads a header.
    package mutating func expectEnd() throws(SparseKernelsError) {
        skipWhitespace()
        if position < text.count { throw failure("nothing but white space after the \(part)'s object") }
    }

    private mutating func nextItem(
        isFirst: Bool, closing: UInt8, _ name: String
    ) throws(SparseKernelsError) -> Bool {
        skipWhitespace()
        if position < text.count && text[position] == closing {
            position += 1
            return false
        }
        if !isFirst { try expect(UInt8(ascii: ","), "`,` or \(name)") }
        return true
    }

    private mutating func skipWhitespace() {
        while position < text.count {
            switch text[position] {
            case UInt8(ascii: " "), UInt8(ascii: "\t"), UInt8(ascii: "\n"), UInt8(ascii: "\r"): position += 1
            default: return
            }
        }
    }

    // MARK: - Values that are not kept

    /// Passes `null`. Returns false and passes nothing when another value follows.
    mutating func skipNull() -> Bool {
        skipWhitespace()
        return skipWord("null")
    }

    /// Passes a value of any kind, which must be valid JSON too.
    mutating func skipValue() throws(SparseKernelsError) {
        // The closing bytes of the open arrays and objects. This list replaces recursion.
        var open: [UInt8] = []
        while true {
            skipWhitespace()
            var isInside = false
            let byte = position < text.count ? text[position] : 0
            switch byte {
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                // The limit of the reference implementation, which is 127 with the header and the entry.
                if open.count == Self.depthLimit {
                    throw failure("values nested at most \(Self.depthLimit) deep", actual: "more")
                }
                position += 1
                // `{` and `}`, `[` and `]` are two apart in ASCII.
                open.append(byte + 2)
                isInside = try nextItemOrKey(isFirst: true, closing: byte + 2)
                if !isInside { open.removeLast() }
            case UInt8(ascii: "\""): _ = try string("a value")
            default:
                if !skipWord("true") && !skipWord("false") && !skipWord("null") { try skipNumber() }
            }
            // The value is complete, and so is every array and object that ends here.
            while !isInside, let closing = open.last {
                isInside = try nextItemOrKey(isFirst: false, closing: closing)
                if !isInside { open.removeLast() }
            }
            if !isInside { return }
        }
    }

    private static let depthLimit = 125

    private mutating func nextItemOrKey(isFirst: Bool, closing: UInt8) throws(SparseKernelsError) -> Bool {
        closing == UInt8(ascii: "}") ? try nextKey(isFirst: isFirst) != nil : try nextElement(isFirst: isFirst)
    }

    /// The next byte after white space, without passing it; nil at the end.
    package mutating func peek() -> UInt8? {
        skipWhitespace()
        return position < text.count ? text[position] : nil
    }

    /// Passes a word. Returns false and passes nothing when something else follows.
    package mutating func skipWord(_ word: StaticString) -> Bool {
        let count = word.utf8CodeUnitCount
        guard text.count - position >= count else { return false }
        for i in 0..<count where text[position + i] != word.utf8Start[i] { return false }
        position += count
        return true
    }

    /// Passes a number in JSON's form: no leading zeros, digits on both sides of the point, of any size.
    private mutating func skipNumber() throws(SparseKernelsError) {
        let start = position
        if next(is: "-") { position += 1 }
        let isZero = next(is: "0")
        let digits = skipDigits()
        var isNumber = digits > 0 && !(isZero && digits > 1)
        if isNumber && next(is: ".") {
            position += 1
            isNumber = skipDigits() > 0
        }
        if isNumber && (next(is: "e") || next(is: "E")) {
            position += 1
            if next(is: "+") || next(is: "-") { position += 1 }
            isNumber = skipDigits() > 0
        }
        if !isNumber || (position < text.count && isNumberByte(text[position])) { throw failure("a JSON value", at: start) }
    }

    private func next(is scalar: Unicode.Scalar) -> Bool { position < text.count && text[position] == UInt8(ascii: scalar) }

    private mutating func skipDigits() -> Int {
        let start = position
        while position < text.count, text[position] &- UInt8(ascii: "0") < 10 { position += 1 }
        return position - start
    }

    // MARK: - Numbers

    /// Reads a number of any form of JSON, rounded to `Double`.
    package mutating func number() throws(SparseKernelsError) -> Double {
        skipWhitespace()
        let start = position
        try skipNumber()
        var token = ""
        for index in start..<position { token.unicodeScalars.append(Unicode.Scalar(text[index])) }
        guard let number = Double(token) else { throw failure("a number", actual: token, at: start) }
        return number
    }

    /// Reads a count or an offset: digits only, no leading zero, at most `Int.max`.
    mutating func count() throws(SparseKernelsError) -> Int {
        skipWhitespace()
        let start = position
        var value = 0
        while position < text.count, text[position] &- UInt8(ascii: "0") < 10 {
            let digit = Int(text[position] &- UInt8(ascii: "0"))
            let (tens, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, overflowed) = tens.addingReportingOverflow(digit)
            if overflow || overflowed || (position > start && value == 0) { throw numberFailure(at: start) }
            value = sum
            position += 1
        }
        // A fraction, an exponent or letters directly after the digits belong to the token.
        if position == start || (position < text.count && isNumberByte(text[position])) { throw numberFailure(at: start) }
        return value
    }

    private func isNumberByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "z"),
            UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: "."):
            true
        default: false
        }
    }

    private func numberFailure(at start: Int) -> SparseKernelsError {
        var token = ""
        var end = start
        while end < text.count && end - start < 32 && isNumberByte(text[end]) {
            token.unicodeScalars.append(Unicode.Scalar(text[end]))
            end += 1
        }
        return failure(
            "a plain integer from 0 to \(Int.max)", actual: token.isEmpty ? describeByte(at: start) : token, at: start)
    }

    // MARK: - Strings

    /// Reads a string and resolves its escapes.
    package mutating func string(_ expected: String) throws(SparseKernelsError) -> String {
        try expect(UInt8(ascii: "\""), expected)
        let start = position
        while true {
            switch try stringByte() {
            case UInt8(ascii: "\""): return try validated(text.extracting(start..<position - 1), at: start)
            case UInt8(ascii: "\\"): return try escapedString(from: start)
            default: continue
            }
        }
    }

    /// Reads the rest of a string whose first escape starts before `position`. Separate because few strings have escapes.
    private mutating func escapedString(from start: Int) throws(SparseKernelsError) -> String {
        var bytes: [UInt8] = []
        for i in start..<position - 1 { bytes.append(text[i]) }
        bytes.append(contentsOf: try escape())
        while true {
            let byte = try stringByte()
            switch byte {
            case UInt8(ascii: "\""): return try validated(bytes.span, at: start)
            case UInt8(ascii: "\\"): bytes.append(contentsOf: try escape())
            default: bytes.append(byte)
            }
        }
    }

    /// Reads the next byte of a string.
    private mutating func stringByte() throws(SparseKernelsError) -> UInt8 {
        if position == text.count { throw failure("`\"` at the end of a string") }
        let byte = text[position]
        if byte < 0x20 { throw failure("strings without unescaped control characters") }
        position += 1
        return byte
    }

    /// Reads the characters after a backslash.
    private mutating func escape() throws(SparseKernelsError) -> Unicode.UTF8.EncodedScalar {
        let start = position - 1
        let byte = try stringByte()
        let scalar: Unicode.Scalar
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): scalar = Unicode.Scalar(byte)
        case UInt8(ascii: "b"): scalar = "\u{8}"
        case UInt8(ascii: "f"): scalar = "\u{c}"
        case UInt8(ascii: "n"): scalar = "\n"
        case UInt8(ascii: "r"): scalar = "\r"
        case UInt8(ascii: "t"): scalar = "\t"
        case UInt8(ascii: "u"): scalar = try unicodeEscape(at: start)
        default: throw failure("an escape that JSON has", at: start + 1)
        }
        return UTF8.encode(scalar)!
    }

    /// Reads the scalar of `\uXXXX`, or of two such escapes that make a surrogate pair.
    private mutating func unicodeEscape(at start: Int) throws(SparseKernelsError) -> Unicode.Scalar {
        let first = try fourHexDigits()
        if let scalar = Unicode.Scalar(first) { return scalar }
        if first < 0xdc00 && position + 1 < text.count && text[position] == UInt8(ascii: "\\")
            && text[position + 1] == UInt8(ascii: "u")
        {
            position += 2
            let second = try fourHexDigits()
            if second >= 0xdc00 && second < 0xe000 {
                return Unicode.Scalar(0x10000 + (first - 0xd800) << 10 + (second - 0xdc00))!
            }
        }
        throw failure("surrogates in pairs", actual: "\\u\(String(first, radix: 16)) alone", at: start)
    }

    private mutating func fourHexDigits() throws(SparseKernelsError) -> UInt32 {
        var value: UInt32 = 0
        for _ in 0..<4 {
            let byte = try stringByte()
            guard byte < 0x80, let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw failure("four hexadecimal digits after \\u", at: position - 1)
            }
            value = value << 4 | UInt32(digit)
        }
        return value
    }

    private func validated(_ bytes: Span<UInt8>, at start: Int) throws(SparseKernelsError) -> String {
        do {
            return String(copying: try UTF8Span(validating: bytes))
        } catch {
            throw failure("valid UTF-8", actual: "\(error)", at: start)
        }
    }

    // MARK: - Messages

    /// An error about the byte at `offset`, or about the next one.
    package func failure(_ expected: String, actual: String? = nil, at offset: Int? = nil) -> SparseKernelsError {
        let offset = offset ?? position
        var argument = source
        if let tensor { argument += ", tensor \(quoted(tensor))" }
        if let field { argument += ", \(field)" }
        return SparseKernelsError(
            .malformedFile, "\(argument) (\(part) byte \(offset))", expected: expected,
            actual: actual ?? describeByte(at: offset))
    }

    private func describeByte(at offset: Int) -> String {
        if offset >= text.count { return "the end of the \(part)" }
        let byte = text[offset]
        return byte >= 0x20 && byte < 0x7f ? "`\(Unicode.Scalar(byte))`" : "byte 0x\(String(byte, radix: 16))"
    }
}

/// The most combining marks in a row in a key, which is the limit of Unicode's stream-safe format. No language needs more.
let markLimit = 30

/// Whether a key is safe to hash and compare. For these Swift sorts the marks of a character in quadratic time: a key with a
/// megabyte of marks would take minutes.
func hasBoundedMarks(_ key: String) -> Bool {
    var marks = 0
    for scalar in key.unicodeScalars {
        // There are no marks below U+0300, so that most keys need no look-up.
        if scalar.value < 0x300 {
            marks = 0
            continue
        }
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark: marks += 1
        default: marks = 0
        }
        if marks > markLimit { return false }
    }
    return true
}

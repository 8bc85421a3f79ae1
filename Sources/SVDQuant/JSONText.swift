/// A JSON text whose objects keep the order of their members: in configurations of adapters the first pattern that matches counts.
///
/// Takes what Python's `json` writes, and no more than 32 levels of nesting. Of members with equal keys the last one counts, at the place
/// of the first, as there.
indirect enum JSONText: Equatable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSONText])
    case object([Member])

    struct Member: Equatable {
        let key: String
        var value: JSONText
    }

    /// nil for a text that is not JSON.
    init?(_ text: String) {
        var scanner = Scanner(bytes: Array(text.utf8))
        guard let value = scanner.value(depth: 0) else { return nil }
        scanner.skipSpace()
        guard scanner.position == scanner.bytes.count else { return nil }
        self = value
    }

    var members: [Member]? { if case .object(let members) = self { members } else { nil } }

    /// What a message shows of it.
    var summary: String {
        switch self {
        case .null: "null"
        case .bool(let value): "\(value)"
        case .number(let value): "\(value)"
        case .string(let text): "\"\(text.prefix(40))\""
        case .array(let elements): "an array of \(elements.count)"
        case .object(let members): "an object of \(members.count)"
        }
    }

    private struct Scanner {
        let bytes: [UInt8]
        var position = 0

        mutating func skipSpace() {
            while position < bytes.count, [0x20, 0x09, 0x0a, 0x0d].contains(bytes[position]) { position += 1 }
        }

        /// Whether the next byte behind white space is this one, which is passed then.
        mutating func take(_ scalar: Unicode.Scalar) -> Bool {
            skipSpace()
            guard position < bytes.count, bytes[position] == UInt8(ascii: scalar) else { return false }
            position += 1
            return true
        }

        mutating func value(depth: Int) -> JSONText? {
            guard depth < 32 else { return nil }
            if take("{") { return object(depth: depth) }
            if take("[") { return array(depth: depth) }
            if take("\"") { return string().map { .string($0) } }
            let start = position
            while position < bytes.count, ![0x2c, 0x5d, 0x7d, 0x20, 0x09, 0x0a, 0x0d].contains(bytes[position]) {
                position += 1
            }
            let token = String(decoding: bytes[start..<position], as: UTF8.self)
            switch token {
            case "null": return .null
            case "true": return .bool(true)
            case "false": return .bool(false)
            default:
                // Of what `Double` reads, hexadecimal numbers and names of infinities are not JSON.
                guard token.utf8.allSatisfy({ "+-.eE0123456789".utf8.contains($0) }) else { return nil }
                return Double(token).map { .number($0) }
            }
        }

        private mutating func object(depth: Int) -> JSONText? {
            var members: [Member] = []
            var places: [String: Int] = [:]
            if take("}") { return .object([]) }
            repeat {
                guard take("\""), let key = string(), take(":"), let value = value(depth: depth + 1) else { return nil }
                if let place = places[key] {
                    members[place].value = value
                } else {
                    places[key] = members.count
                    members.append(Member(key: key, value: value))
                }
            } while take(",")
            return take("}") ? .object(members) : nil
        }

        private mutating func array(depth: Int) -> JSONText? {
            var elements: [JSONText] = []
            if take("]") { return .array([]) }
            repeat {
                guard let value = value(depth: depth + 1) else { return nil }
                elements.append(value)
            } while take(",")
            return take("]") ? .array(elements) : nil
        }

        /// The rest of a string behind its first quotation mark.
        private mutating func string() -> String? {
            var result: [UInt8] = []
            while position < bytes.count {
                let byte = bytes[position]
                position += 1
                switch byte {
                case UInt8(ascii: "\""): return String(validating: result, as: UTF8.self)
                case UInt8(ascii: "\\"):
                    guard let scalar = escape() else { return nil }
                    result.append(contentsOf: Array(String(Character(scalar)).utf8))
                case 0..<0x20: return nil
                default: result.append(byte)
                }
            }
            return nil
        }

        private mutating func escape() -> Unicode.Scalar? {
            guard position < bytes.count else { return nil }
            let byte = bytes[position]
            position += 1
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
            case UInt8(ascii: "b"): return "\u{8}"
            case UInt8(ascii: "f"): return "\u{c}"
            case UInt8(ascii: "n"): return "\n"
            case UInt8(ascii: "r"): return "\r"
            case UInt8(ascii: "t"): return "\t"
            case UInt8(ascii: "u"):
                guard let unit = codeUnit() else { return nil }
                guard (0xd800..<0xdc00).contains(unit) else { return Unicode.Scalar(unit) }
                guard position + 1 < bytes.count, bytes[position] == UInt8(ascii: "\\"),
                    bytes[position + 1] == UInt8(ascii: "u")
                else { return nil }
                position += 2
                guard let low = codeUnit(), (0xdc00..<0xe000).contains(low) else { return nil }
                return Unicode.Scalar(0x10000 + (unit - 0xd800) << 10 + (low - 0xdc00))
            default: return nil
            }
        }

        private mutating func codeUnit() -> UInt32? {
            guard position + 4 <= bytes.count else { return nil }
            defer { position += 4 }
            let digits = bytes[position..<position + 4]
            guard digits.allSatisfy({ Character(Unicode.Scalar($0)).isHexDigit }) else { return nil }
            return UInt32(String(decoding: digits, as: UTF8.self), radix: 16)
        }
    }
}

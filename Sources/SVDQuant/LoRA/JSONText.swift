internal import SparseKernels

/// A JSON text whose objects keep the order of their members, because the first matching pattern of an adapter counts.
///
/// Accepts the output of Python's `json` with up to 32 levels of nesting. Among members with equal keys the last one counts, at
/// the position of the first, as in Python.
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

    /// Returns nil for a text that is not JSON.
    init?(_ text: String) {
        let bytes = Array(text.utf8)
        var scanner = JSONScanner(bytes.span, source: "JSON")
        do throws(SparseKernelsError) {
            self = try Self.value(&scanner, depth: 0)
            try scanner.expectEnd()
        } catch {
            return nil
        }
    }

    var members: [Member]? { if case .object(let members) = self { members } else { nil } }

    /// A short description for messages.
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

    private static func value(_ scanner: inout JSONScanner, depth: Int) throws(SparseKernelsError) -> JSONText {
        if depth == 32 { throw scanner.failure("values nested at most 32 deep", actual: "more") }
        switch scanner.peek() {
        case UInt8(ascii: "{"): return .object(try members(&scanner, depth: depth))
        case UInt8(ascii: "["):
            try scanner.expect(UInt8(ascii: "["), "`[`")
            var elements: [JSONText] = []
            while try scanner.nextElement(isFirst: elements.isEmpty) {
                elements.append(try value(&scanner, depth: depth + 1))
            }
            return .array(elements)
        case UInt8(ascii: "\""): return .string(try scanner.string("a string"))
        default:
            if scanner.skipWord("null") { return .null }
            if scanner.skipWord("true") { return .bool(true) }
            if scanner.skipWord("false") { return .bool(false) }
            return .number(try scanner.number())
        }
    }

    private static func members(_ scanner: inout JSONScanner, depth: Int) throws(SparseKernelsError) -> [Member] {
        try scanner.expect(UInt8(ascii: "{"), "`{`")
        var members: [Member] = []
        var places: [String: Int] = [:]
        var isFirst = true
        while let key = try scanner.nextKey(isFirst: isFirst) {
            isFirst = false
            let value = try value(&scanner, depth: depth + 1)
            if let place = places[key] {
                members[place].value = value
            } else {
                places[key] = members.count
                members.append(Member(key: key, value: value))
            }
        }
        return members
    }
}

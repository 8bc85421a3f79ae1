public import Foundation
public import SparseKernels

/// A `config.json`, whose values are read by key, with errors of one line that name the file and the key.
///
/// An absent key and one that is `null` are equal, as in the program that writes these files.
struct ConfigurationFile {
    let path: String
    private let values: [String: Value]

    /// - Throws: `.inputOutput` when the file cannot be read, `.malformedFile` when it is not a JSON object.
    init(path: String) throws(SparseKernelsError) {
        self.path = path
        let data = Self.quotingNonFinite(try contents(ofFile: path))
        let value: Value
        do { value = try JSONDecoder().decode(Value.self, from: data) } catch {
            throw SparseKernelsError(.malformedFile, path, expected: "a JSON object", actual: Self.nature(of: data))
        }
        guard case .object(let values) = value else {
            throw SparseKernelsError(.malformedFile, path, expected: "a JSON object", actual: value.description)
        }
        self.values = values
    }

    private init(path: String, values: [String: Value]) {
        self.path = path
        self.values = values
    }

    /// The kind of a file that is not JSON.
    private static func nature(of data: Data) -> String {
        if data.isEmpty { return "an empty file" }
        let start = String(decoding: data.prefix(64), as: UTF8.self).drop { $0.isWhitespace }.lowercased()
        if start.hasPrefix("version https://git-lfs") { return "a Git LFS pointer: `git lfs pull` fetches the file" }
        if start.hasPrefix("<") { return "an HTML page or XML document" }
        return start.hasPrefix("{") ? "an object that breaks off or breaks the rules of JSON" : "something that is not JSON"
    }

    /// Puts quotes around `Infinity`, `-Infinity` and `NaN` outside texts, which Python writes and JSON does not have.
    private static func quotingNonFinite(_ data: Data) -> Data {
        let words = ["-Infinity", "Infinity", "NaN"].map { Array($0.utf8) }
        let bytes = Array(data)
        var (result, isText, index): ([UInt8], Bool, Int) = ([], false, 0)
        let (quote, backslash) = (UInt8(ascii: "\""), UInt8(ascii: "\\"))
        guard bytes.contains(where: { $0 == UInt8(ascii: "I") || $0 == UInt8(ascii: "N") }) else { return data }
        while index < bytes.count {
            if !isText, let word = words.first(where: { bytes[index...].starts(with: $0) }) {
                result += [quote] + word + [quote]
                index += word.count
                continue
            }
            if isText, bytes[index] == backslash, index + 1 < bytes.count {
                result += bytes[index...index + 1]
                index += 2
                continue
            }
            if bytes[index] == quote { isText.toggle() }
            result.append(bytes[index])
            index += 1
        }
        return Data(result)
    }

    // MARK: - Values

    /// Whether the key exists with a value other than `null`.
    func has(_ key: String) -> Bool { values[key] != nil && values[key] != .null }

    /// Whether the key exists, be it with `null`.
    func contains(_ key: String) -> Bool { values[key] != nil }

    /// A whole number, which may be written as 12.0.
    func integer(
        _ key: String, in range: ClosedRange<Int> = 1...1 << 20, default standard: Int? = nil
    ) throws(SparseKernelsError) -> Int {
        guard let value = try value(key, default: standard.map { .number(Double($0)) }) else { throw missing(key) }
        let expected = "a whole number from \(range.lowerBound) to \(range.upperBound)"
        guard case .number(let number) = value, let integer = Int(exactly: number), range.contains(integer) else {
            throw failure(key, expected: expected, actual: value.description)
        }
        return integer
    }

    /// A number that is above 0, or at least 0, and finite as `Float`.
    func positive(
        _ key: String, orZero: Bool = false, default standard: Double? = nil
    ) throws(SparseKernelsError) -> Double {
        guard let value = try value(key, default: standard.map { .number($0) }) else { throw missing(key) }
        guard case .number(let number) = value, number > 0 || (orZero && number == 0), Float(number).isFinite else {
            throw failure(key, expected: orZero ? "a number of 0 or more" : "a number above 0", actual: value.description)
        }
        return number
    }

    func flag(_ key: String) throws(SparseKernelsError) -> Bool? {
        guard let value = try value(key) else { return nil }
        guard case .flag(let flag) = value else { throw failure(key, expected: "true or false", actual: value.description) }
        return flag
    }

    func text(_ key: String) throws(SparseKernelsError) -> String? {
        guard let value = try value(key) else { return nil }
        guard case .text(let text) = value else { throw failure(key, expected: "a text", actual: value.description) }
        return text
    }

    /// A bound above 0; nil where the key is `null`, and `absent` where there is no such key.
    func cap(_ key: String, absent: Float?) throws(SparseKernelsError) -> Float? {
        if !contains(key) { return absent }
        return has(key) ? Float(try positive(key)) : nil
    }

    /// Texts in an array.
    func texts(_ key: String) throws(SparseKernelsError) -> [String] {
        guard let value = try value(key) else { throw missing(key) }
        guard case .array(let elements) = value else {
            throw failure(key, expected: "an array of texts", actual: value.description)
        }
        var texts: [String] = []
        for element in elements {
            guard case .text(let text) = element else {
                throw failure(key, expected: "an array of texts", actual: "an array with \(element.description)")
            }
            texts.append(text)
        }
        return texts
    }

    /// Whole numbers in an array.
    func integers(_ key: String, in range: ClosedRange<Int> = 1...1 << 20) throws(SparseKernelsError) -> [Int] {
        guard let value = try value(key) else { throw missing(key) }
        let expected = "an array of whole numbers from \(range.lowerBound) to \(range.upperBound)"
        guard case .array(let elements) = value else { throw failure(key, expected: expected, actual: value.description) }
        var integers: [Int] = []
        for element in elements {
            guard case .number(let number) = element, let integer = Int(exactly: number), range.contains(integer) else {
                throw failure(key, expected: expected, actual: "an array with \(element.description)")
            }
            integers.append(integer)
        }
        return integers
    }

    /// Numbers in an array, of which some may be written as `Infinity` or "inf".
    func extendedNumbers(_ key: String) throws(SparseKernelsError) -> [Double] {
        guard let value = try value(key) else { throw missing(key) }
        let expected = "an array of numbers"
        guard case .array(let elements) = value else { throw failure(key, expected: expected, actual: value.description) }
        var numbers: [Double] = []
        for element in elements {
            switch element {
            case .number(let number): numbers.append(number)
            case .text("inf"), .text("Infinity"), .text("+inf"): numbers.append(.infinity)
            default: throw failure(key, expected: expected, actual: "an array with \(element.description)")
            }
        }
        return numbers
    }

    /// The object of a key. Messages name its keys after a dot.
    func object(_ key: String) throws(SparseKernelsError) -> ConfigurationFile? {
        guard let value = try value(key) else { return nil }
        guard case .object(let values) = value else { throw failure(key, expected: "an object", actual: value.description) }
        return ConfigurationFile(path: "\(path), \(key)", values: values)
    }

    private func value(_ key: String, default standard: Value? = nil) throws(SparseKernelsError) -> Value? {
        has(key) ? values[key] : standard
    }

    private func missing(_ key: String) -> SparseKernelsError {
        failure(key, expected: "there, as it has no default", actual: values[key] == nil ? "no such key" : "null")
    }

    /// An error about a key.
    func failure(_ key: String, expected: String, actual: String) -> SparseKernelsError {
        SparseKernelsError(.malformedFile, "\(path), key \"\(key)\"", expected: expected, actual: actual)
    }
}

/// A value of a JSON text.
private enum Value: Decodable, Equatable {
    case null
    case flag(Bool)
    case number(Double)
    case text(String)
    case array([Value])
    case object([String: Value])

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let flag = try? container.decode(Bool.self) {
            self = .flag(flag)
        } else if let number = try? container.decode(Double.self) {
            self = .number(number)
        } else if let text = try? container.decode(String.self) {
            self = .text(text)
        } else if let values = try? container.decode([String: Value].self) {
            self = .object(values)
        } else {
            self = .array(try container.decode([Value].self))
        }
    }

    /// The form for messages: short, and on one line.
    var description: String {
        switch self {
        case .null: return "null"
        case .flag(let flag): return "\(flag)"
        case .number(let number): return Int(exactly: number).map(String.init) ?? "\(number)"
        case .text(let text):
            let start = text.unicodeScalars.prefix(40).map { $0.escaped(asASCII: false) }.joined()
            return "\"\(start)\"\(text.unicodeScalars.count > 40 ? "…" : "")"
        case .array: return "an array"
        case .object: return "an object"
        }
    }
}

/// The bytes of a file.
/// - Throws: `.inputOutput` naming the file, with the system's reason.
public func contents(ofFile path: String) throws(SparseKernelsError) -> Data {
    // Foundation's errors are longer and say less.
    guard access(path, R_OK) == 0 else {
        throw SparseKernelsError(
            .inputOutput, path, expected: "a file that can be read", actual: String(cString: strerror(errno)))
    }
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder), !isFolder.boolValue else {
        throw SparseKernelsError(.inputOutput, path, expected: "a file that can be read", actual: "a folder")
    }
    do { return try Data(contentsOf: URL(fileURLWithPath: path)) } catch {
        throw SparseKernelsError(
            .inputOutput, path, expected: "a file that can be read", actual: error.localizedDescription)
    }
}

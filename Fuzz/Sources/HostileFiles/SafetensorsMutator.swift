package import SparseKernels
import SparseKernelsReference

extension SplitMix64 {
    /// A number from 0 to `bound` − 1.
    package mutating func below(_ bound: Int) -> Int { bound <= 1 ? 0 : Int(truncatingIfNeeded: next() >> 1) % bound }

    package mutating func chance(_ numerator: Int, of denominator: Int) -> Bool { below(denominator) < numerator }

    package mutating func pick<T>(_ items: [T]) -> T { items[below(items.count)] }
}

/// An endless sequence of damaged safetensors files, and a few intact ones.
///
/// Random bytes never pass the check of the header's length. So most files start from a valid one or from a grammar, are
/// damaged in one or a few places, and get a corrected length, with which the damage reaches as deep as possible.
package struct SafetensorsMutator {
    private var random: SplitMix64
    private let samples: [[UInt8]]

    /// - Parameter samples: valid files to start from, at least one.
    package init(seed: UInt64, samples: [[UInt8]]) {
        random = SplitMix64(seed: seed)
        self.samples = samples
    }

    package mutating func next() -> [UInt8] {
        switch random.below(16) {
        case 0: return randomBytes()
        case 1...4: return damaged(random.pick(samples))
        case 5...9: return withDamagedHeader(random.pick(samples))
        case 10: return damaged(withDamagedHeader(random.pick(samples)))
        case 11: return spliced()
        default: return generated()
        }
    }

    // MARK: - Damage to bytes

    private mutating func randomBytes() -> [UInt8] {
        var bytes = (0..<random.below(200)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        if random.chance(1, of: 2) && bytes.count >= 9 {
            setHeaderLength(&bytes, UInt64(random.below(bytes.count)))
            bytes[8] = UInt8(ascii: "{")
        }
        return bytes
    }

    private mutating func damaged(_ original: [UInt8]) -> [UInt8] {
        var bytes = original
        for _ in 0...random.below(3) {
            switch random.below(6) {
            case 0, 1:
                for _ in 0...random.below(8) where !bytes.isEmpty {
                    bytes[random.below(bytes.count)] ^= 1 << UInt8(random.below(8))
                }
            case 2: bytes.removeLast(random.below(bytes.count + 1))
            case 3: bytes.append(contentsOf: repeatElement(UInt8(random.below(256)), count: 1 + random.below(16)))
            case 4: setHeaderLength(&bytes, interestingLength(bytes.count))
            default:
                let place = random.below(bytes.count + 1)
                bytes.insert(UInt8(random.below(256)), at: place)
            }
        }
        return bytes
    }

    private mutating func spliced() -> [UInt8] {
        let (a, b) = (random.pick(samples), random.pick(samples))
        return Array(a.prefix(random.below(a.count + 1)) + b.suffix(random.below(b.count + 1)))
    }

    private mutating func interestingLength(_ count: Int) -> UInt64 {
        switch random.below(4) {
        case 0: UInt64(random.below(count + 8))
        case 1: UInt64(max(0, count - 8 + random.below(3) - 1))
        case 2: random.next()
        default: random.pick([0, 1, 2, 100_000_000, 100_000_001, 1 << 31, 1 << 32, 1 << 63, .max, .max - 7, 1 << 63 - 8])
        }
    }

    private func setHeaderLength(_ bytes: inout [UInt8], _ length: UInt64) {
        for i in 0..<min(8, bytes.count) { bytes[i] = UInt8(truncatingIfNeeded: length >> (8 * UInt64(i))) }
    }

    // MARK: - Damage to tokens

    private static let numbers = [
        "-1", "-0", "0", "00", "01", "1", "7", "8", "65535", "4294967296", "9223372036854775807", "9223372036854775808",
        "18446744073709551616", "99999999999999999999999999", "1.0", "1e3", "1E400", "0x10", "+1", "NaN", "true", "null", ".5",
        "1_000", "", " ", "٣",
    ]
    private static let words = [
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "\\ud800", "\\udc00", "\\ud83d\\ude00", "\\u0000", "\\x", "\n", "\t",
        " ",
        "\0", "\u{7f}", "é", "e\u{301}", "\"__metadata__\"", "\"dtype\"", "\"shape\"", "\"data_offsets\"", "\"F32\"", "\"F16\"",
        "\"BOOL\"", "\"F4\"", "\"F6_E2M3\"", "\"C64\"", "\"f32\"", "\"\"", "\"x\":1,", "\"x\":[{\"y\":-1.5e3}],", "null,", "{}",
        "[]", "[0,0]", "//", "/**/", "null",
    ]

    /// Edits the header as text and, mostly, corrects the length.
    private mutating func withDamagedHeader(_ original: [UInt8]) -> [UInt8] {
        let headerEnd = 8 + original.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
        var header = Array(original[8..<headerEnd])
        while header.last == UInt8(ascii: " ") { header.removeLast() }
        for _ in 0...random.below(3) { damageToken(in: &header) }
        if random.chance(1, of: 4) { header.append(contentsOf: repeatElement(UInt8(ascii: " "), count: random.below(70))) }
        return assembled(header, data: original[headerEnd...])
    }

    private mutating func damageToken(in header: inout [UInt8]) {
        switch random.below(6) {
        case 0, 1:
            replace(random.pick(runs(of: isDigit, in: header)), in: &header, by: Array(random.pick(Self.numbers).utf8))
        case 2:
            // A number that is slightly wrong causes overlaps, holes, and sizes that disagree with the shape.
            let run = random.pick(runs(of: isDigit, in: header))
            let value = Int(String(decoding: header[run], as: UTF8.self)) ?? 0
            replace(run, in: &header, by: Array("\(value &+ random.below(33) &- 16)".utf8))
        case 3:
            // Repeating a range between two structural bytes repeats keys, entries or brackets.
            let (a, b) = (random.pick(marks(in: header)), random.pick(marks(in: header)))
            let stretch = Array(header[min(a, b)..<max(a, b)])
            header.insert(contentsOf: stretch, at: random.pick(marks(in: header)))
        case 4:
            let word = Array(random.pick(Self.words).utf8)
            let repeats = random.chance(1, of: 8) ? 1 << random.below(12) : 1
            header.insert(contentsOf: repeatElement(word, count: repeats).joined(), at: random.pick(marks(in: header)))
        default:
            let (a, b) = (random.pick(marks(in: header)), random.pick(marks(in: header)))
            header.removeSubrange(min(a, b)..<max(a, b))
        }
    }

    private func isDigit(_ byte: UInt8) -> Bool { byte &- UInt8(ascii: "0") < 10 }

    private mutating func replace(_ range: Range<Int>, in bytes: inout [UInt8], by replacement: [UInt8]) {
        bytes.replaceSubrange(range, with: replacement)
    }

    /// Ranges of neighbouring bytes that `belongs` accepts, or an empty range when there are none.
    private func runs(of belongs: (UInt8) -> Bool, in bytes: [UInt8]) -> [Range<Int>] {
        var result: [Range<Int>] = []
        var start = 0
        while start < bytes.count {
            var end = start
            while end < bytes.count && belongs(bytes[end]) { end += 1 }
            if end > start { result.append(start..<end) }
            start = end + 1
        }
        return result.isEmpty ? [0..<0] : result
    }

    /// Positions at which a token starts or ends.
    private func marks(in bytes: [UInt8]) -> [Int] {
        let structural = Array("{}[],:\"".utf8)
        return [0, bytes.count] + bytes.indices.filter { structural.contains(bytes[$0]) }
    }

    private mutating func assembled(_ header: [UInt8], data: some Collection<UInt8>) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 8) + header + data
        let isWrong = random.chance(1, of: 20)
        setHeaderLength(&bytes, isWrong ? interestingLength(bytes.count) : UInt64(header.count))
        return bytes
    }

    // MARK: - Files from a grammar

    private static let types: [(String, bits: Int)] = [
        ("F64", 64), ("F32", 32), ("F16", 16), ("BF16", 16), ("F8_E4M3", 8), ("F8_E5M2", 8), ("I64", 64), ("I32", 32),
        ("I16", 16),
        ("I8", 8), ("U64", 64), ("U32", 32), ("U16", 16), ("U8", 8), ("BOOL", 8), ("C64", 64), ("F8_E8M0", 8), ("F4", 4),
        ("F6_E3M2", 6), ("Q5_K", 11),
    ]

    /// Valid values of a key that the format does not define, and two invalid ones.
    private static let extras = [
        "null", "true", "-0.5e-7", "\"\\u00e9\"", "[]", "{}", "[[[]], {\"a\": [1, 2]}]", "{\"a\": {\"b\": null}, \"a\": false}",
        "01", "[1,]",
    ]

    /// A file whose parts are drawn from the format's grammar: mostly valid, in unusual spellings, with rare mistakes.
    private mutating func generated() -> [UInt8] {
        var entries: [String] = []
        var offset = 0
        for i in 0..<random.below(6) {
            let (type, bits) = random.pick(Self.types)
            let shape = (0..<random.below(5)).map { _ in random.chance(1, of: 12) ? 0 : 1 + random.below(4) }
            let size = shape.reduce(1, *) * bits / 8
            var begin = offset
            var end = offset + size
            if random.chance(1, of: 40) { begin += random.below(9) - 4 }
            if random.chance(1, of: 40) { end += random.below(9) - 4 }
            offset += size
            var fields = [
                "\(spelled("dtype")):\(spelled(random.chance(1, of: 60) ? "F33" : type))",
                "\(spelled("shape")):\(space())[\(shape.map { "\(space())\($0)\(space())" }.joined(separator: ","))]",
                "\(spelled("data_offsets")):[\(space())\(begin),\(end)\(space())]",
            ]
            if random.chance(1, of: 60) { fields.append(random.pick(fields)) }
            if random.chance(1, of: 20) { fields.append("\(spelled("more")):\(random.pick(Self.extras))") }
            fields.shuffle(using: &random)
            if random.chance(1, of: 60) { fields.removeLast() }
            let name = random.chance(1, of: 30) ? "t0" : "t\(i)"
            entries.append("\(spelled(name)):\(space()){\(fields.joined(separator: ","))}")
        }
        if random.chance(1, of: 3) {
            let texts = ["", "v", "é", "😀", "\\n", "\\\""]
            let pairs = (0..<random.below(4)).map { "\(spelled("k\($0)")):\(spelled(random.pick(texts)))" }
            entries.append("\"__metadata__\":\(random.chance(1, of: 4) ? "null" : "{\(pairs.joined(separator: ","))}")")
        }
        // Entries may be in any order, independent of the order of their data.
        entries.shuffle(using: &random)
        let data = (0..<max(0, offset + (random.chance(1, of: 30) ? random.below(5) - 2 : 0))).map { _ in
            UInt8(truncatingIfNeeded: random.next())
        }
        return assembled(Array("\(space()){\(space())\(entries.joined(separator: ","))\(space())}\(space())".utf8), data: data)
    }

    /// A JSON string, in which some characters are spelled as escapes.
    private mutating func spelled(_ text: String) -> String {
        var result = space() + "\""
        for scalar in text.unicodeScalars {
            if scalar.isASCII && scalar != "\\" && scalar != "\"" && random.chance(1, of: 30) {
                let digits = String(scalar.value, radix: 16, uppercase: random.chance(1, of: 2))
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            } else {
                result.unicodeScalars.append(scalar)
            }
        }
        return result + "\"" + space()
    }

    private mutating func space() -> String { random.chance(1, of: 12) ? random.pick([" ", "\n", "\t", "\r\n", "  "]) : "" }
}

internal import SparseKernels

/// A 64-bit digest, which tells whether the input of a finished layer is unchanged.
///
/// It protects against mistakes, not against forgery. Every step is a bijection of the state, so contents that differ in one
/// word always have different digests.
struct ContentDigest {
    private var state: UInt64 = 0

    /// Adds the number of bytes and the bytes.
    mutating func add(_ bytes: RawSpan) {
        mix(UInt64(bytes.byteCount))
        bytes.withUnsafeBytes { buffer in
            let words = buffer.count / 8
            for i in 0..<words { mix(UInt64(littleEndian: buffer.loadUnaligned(fromByteOffset: 8 * i, as: UInt64.self))) }
            var rest: UInt64 = 0
            for i in 8 * words..<buffer.count { rest = rest << 8 | UInt64(buffer[i]) }
            mix(rest)
        }
    }

    mutating func add(_ text: String) {
        let bytes = Array(text.utf8)
        add(bytes.span.bytes)
    }

    /// Adds the type, the shape and the bytes of a tensor of a file.
    mutating func add(_ name: String, of file: SafetensorsFile) throws(SparseKernelsError) {
        let entry = try file.entry(named: name)
        add("\(entry.elementType.rawValue) \(entry.shape)")
        add(try file.bytes(name))
    }

    /// The digest as sixteen hexadecimal digits.
    var text: String {
        let digits = String(state, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    private mutating func mix(_ word: UInt64) {
        state = (state ^ word) &* 0x9e37_79b9_7f4a_7c15
        state ^= state >> 32
    }
}

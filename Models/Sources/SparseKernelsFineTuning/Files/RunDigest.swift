/// A 64-bit digest, which tells whether a run goes on with the model and the text that it began with.
///
/// It protects against mistakes, not against forgery.
struct RunDigest {
    private var state: UInt64 = 0

    mutating func add(_ word: UInt64) {
        state = (state ^ word) &* 0x9E37_79B9_7F4A_7C15
        state ^= state >> 32
    }

    /// Adds the number of bytes and the bytes.
    mutating func add(_ bytes: RawSpan) {
        add(UInt64(bytes.byteCount))
        bytes.withUnsafeBytes { buffer in
            let words = buffer.count / 8
            for i in 0..<words { add(UInt64(littleEndian: buffer.loadUnaligned(fromByteOffset: 8 * i, as: UInt64.self))) }
            for i in 8 * words..<buffer.count { add(UInt64(buffer[i])) }
        }
    }

    mutating func add(_ text: String) {
        let bytes = Array(text.utf8)
        add(bytes.span.bytes)
    }

    /// Sixteen hexadecimal digits.
    var text: String {
        let digits = String(state, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}

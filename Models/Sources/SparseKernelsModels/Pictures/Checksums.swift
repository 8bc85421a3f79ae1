/// The checksums of PNG: CRC-32 of chunks and Adler-32 of what was compressed.
enum Checksums {
    /// Remainders of all bytes for the polynomial of ISO 3309, reflected.
    private static let table: [UInt32] = (0..<256).map { byte in
        (0..<8).reduce(UInt32(byte)) { remainder, _ in
            remainder & 1 == 1 ? 0xedb8_8320 ^ (remainder >> 1) : remainder >> 1
        }
    }

    static func crc32(_ bytes: UnsafeBufferPointer<UInt8>) -> UInt32 {
        var remainder: UInt32 = ~0
        table.withUnsafeBufferPointer { table in
            for byte in bytes { remainder = table[Int((remainder ^ UInt32(byte)) & 255)] ^ (remainder >> 8) }
        }
        return ~remainder
    }

    static func adler32(_ bytes: UnsafeBufferPointer<UInt8>) -> UInt32 {
        var (a, b, position): (UInt32, UInt32, Int) = (1, 0, 0)
        while position < bytes.count {
            // The largest number of bytes whose sums fit 32 bits.
            let end = min(bytes.count, position + 5552)
            while position < end {
                a &+= UInt32(bytes[position])
                b &+= a
                position += 1
            }
            a %= 65521
            b %= 65521
        }
        return b << 16 | a
    }
}

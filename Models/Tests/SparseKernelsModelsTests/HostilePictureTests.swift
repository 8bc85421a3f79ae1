import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Damaged and hostile pictures")
struct HostilePictureTests {
    /// A file of chunks, with their checksums.
    static func file(_ chunks: [(String, [UInt8])]) -> [UInt8] {
        var file: [UInt8] = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]
        for (type, data) in chunks {
            file += number(data.count)
            let body = Array(type.utf8) + data
            file += body + number(Int(crc(body[...])))
        }
        return file
    }

    static func number(_ value: Int) -> [UInt8] { [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> $0) } }

    static func crc(_ bytes: ArraySlice<UInt8>) -> UInt32 {
        var remainder: UInt32 = ~0
        for byte in bytes {
            remainder ^= UInt32(byte)
            for _ in 0..<8 { remainder = remainder & 1 == 1 ? 0xedb8_8320 ^ (remainder >> 1) : remainder >> 1 }
        }
        return ~remainder
    }

    /// A zlib stream of stored blocks.
    static func stored(_ bytes: [UInt8]) -> [UInt8] {
        let length = [UInt8(bytes.count & 255), UInt8(bytes.count >> 8)]
        var (a, b) = (1, 0)
        for byte in bytes {
            a = (a + Int(byte)) % 65521
            b = (b + a) % 65521
        }
        return [0x78, 0x01, 1] + length + length.map { ~$0 } + bytes + number(b << 16 | a)
    }

    static func header(_ columns: Int, _ rows: Int, depth: UInt8 = 8, type: UInt8 = 0, rest: [UInt8] = [0, 0, 0]) -> [UInt8] {
        number(columns) + number(rows) + [depth, type] + rest
    }

    private func expect(_ chunk: String?, _ fragments: String..., bytes: [UInt8]) {
        let error = #expect(throws: SparseKernelsError.self) { try Picture(png: bytes, named: "p.png") }
        #expect(error?.code == .malformedFile, "\(error!)")
        #expect(error?.argument == (chunk.map { "p.png, chunk \"\($0)\"" } ?? "p.png"), "\(error!)")
        for fragment in fragments { #expect(error!.description.contains(fragment), "\(error!)") }
    }

    private let pixels = Self.stored([0, 1, 2, 0, 3, 4])

    @Test("a file by hand is read")
    func byHand() throws {
        let good = Self.file([("IHDR", Self.header(2, 2)), ("IDAT", pixels), ("IEND", [])])
        #expect(try Picture(png: good).bytes == [1, 2, 3, 4])
        let parts = [
            ("IHDR", Self.header(2, 2)), ("tEXt", [9]), ("IDAT", Array(pixels[..<3])), ("IDAT", Array(pixels[3...])),
            ("IEND", []),
        ]
        #expect(try Picture(png: Self.file(parts)).bytes == [1, 2, 3, 4])
        let clear = [("IHDR", Self.header(2, 2)), ("tRNS", [0, 3]), ("IDAT", pixels), ("IEND", [])]
        #expect(try Picture(png: Self.file(clear)).bytes == [1, 255, 2, 255, 3, 0, 4, 255])
    }

    @Test("rules of chunks are named with the chunk that breaks them")
    func chunks() throws {
        let header = ("IHDR", Self.header(2, 2))
        let (data, end) = (("IDAT", pixels), ("IEND", [UInt8]()))
        expect(nil, "a PNG file", bytes: [])
        expect(nil, "a PNG file", bytes: Array("P6".utf8))
        expect(nil, "first chunk \"IHDR\"", "IDAT", bytes: Self.file([data, end]))
        expect(nil, "end of the file", bytes: Self.file([header, data]))
        expect("IEND", "without \"IDAT\"", bytes: Self.file([header, end]))
        expect("IDAT", "beside", "tEXt", bytes: Self.file([header, data, ("tEXt", []), data, end]))
        expect("IHDR", bytes: Self.file([header, header, data, end]))
        expect("ABCD", "need", bytes: Self.file([header, ("ABCD", []), data, end]))
        expect(nil, "letters", bytes: Self.file([header, ("A1CD", []), data, end]))
        for (bad, fragment) in [
            (Array(Self.header(2, 2).dropLast()), "13 bytes"), (Self.header(0, 2), "2 × 0"),
            (Self.header(2, 1 << 21), "pixels"),
            (Self.header(1 << 20, 1 << 20), "pixels"), (Self.header(2, 2, depth: 3), "bits for colour type 0"),
            (Self.header(2, 2, depth: 4, type: 2), "[8, 16]"), (Self.header(2, 2, depth: 16, type: 3), "colour type 3"),
            (Self.header(2, 2, type: 1), "colour type of"), (Self.header(2, 2, rest: [1, 0, 0]), "compression"),
            (Self.header(2, 2, rest: [0, 0, 2]), "interlacing"),
        ] { expect("IHDR", fragment, bytes: Self.file([("IHDR", bad), data, end])) }
        let palette = ("IHDR", Self.header(2, 2, type: 3))
        expect("PLTE", "no such chunk", bytes: Self.file([palette, data, end]))
        expect("PLTE", "1 to 256", bytes: Self.file([palette, ("PLTE", [1, 2]), data, end]))
        expect("PLTE", "1 to 256", bytes: Self.file([palette, ("PLTE", []), data, end]))
        expect("PLTE", "before", bytes: Self.file([palette, ("PLTE", [1, 2, 3]), ("PLTE", [1, 2, 3]), data, end]))
        expect("tRNS", "after \"PLTE\"", bytes: Self.file([palette, ("tRNS", [1]), ("PLTE", [1, 2, 3]), data, end]))
        expect("tRNS", "1 to 1", bytes: Self.file([palette, ("PLTE", [1, 2, 3]), ("tRNS", [1, 2]), data, end]))
        expect("tRNS", "absent", bytes: Self.file([("IHDR", Self.header(2, 2, type: 6)), ("tRNS", [1]), data, end]))
        expect("tRNS", "2 bytes", bytes: Self.file([header, ("tRNS", [1]), data, end]))
        expect(
            "IDAT", "indices below 3", "4",
            bytes: Self.file([
                palette, ("PLTE", Array(repeating: 0, count: 9)), ("IDAT", Self.stored([0, 1, 2, 0, 0, 4])), end,
            ]))
        expect("IDAT", "filters 0 to 4", "5", bytes: Self.file([header, ("IDAT", Self.stored([0, 1, 2, 5, 3, 4])), end]))
        expect("IDAT", "6 bytes", bytes: Self.file([header, ("IDAT", Self.stored([0, 1, 2, 0, 3])), end]))
        expect("IDAT", "6 bytes", "more", bytes: Self.file([header, ("IDAT", Self.stored([0, 1, 2, 0, 3, 4, 5])), end]))
        // Pixels that no stream of this length can have cost no memory.
        expect("IDAT", "or more", bytes: Self.file([("IHDR", Self.header(16_000, 16_000, type: 6)), data, end]))
    }

    @Test("streams that break their format are refused")
    func streams() throws {
        let damaged: [[UInt8]] = [
            [], [0x78], [0x79, 0x9c, 1], [0x78, 0x9d, 1], [0x78, 0xbb, 1],  // no header, a check that fails, a dictionary
            [0x78, 0x9c, 7], [0x78, 0x9c, 1, 6, 0, 0, 0],  // a block of kind 3, a length without its complement
            [0x78, 0x9c, 3, 0xfc, 0xff],  // a distance without anything before it
            [0x78, 0x9c, 0x05, 0xff, 0xff, 0xff, 0xff, 0xff],  // tables of a kind 2 that are none
            [0x78, 0x9c, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            Array(pixels.dropLast()), Array(pixels.dropLast(4)) + [0, 0, 0, 0],
        ]
        for (index, stream) in damaged.enumerated() {
            let file = Self.file([("IHDR", Self.header(2, 2)), ("IDAT", stream), ("IEND", [])])
            let error = #expect(throws: SparseKernelsError.self, "stream \(index)") { try Picture(png: file) }
            #expect(error?.code == .malformedFile && error?.argument.contains("IDAT") == true)
        }
    }

    @Test("files that are cut off anywhere, and flipped bits with and without new checksums, give errors or pictures")
    func damage() throws {
        var random = SplitMix64(seed: 12)
        let sources =
            try PictureFileTests.foreign.map { PictureFileTests.bytes($0.file) } + [
                PictureFileTests.picture(9, 7, .rgb).png(), PictureFileTests.picture(12, 30, .greyAlpha).png(),
            ]
        var refused = 0
        func read(_ bytes: [UInt8]) {
            do throws(SparseKernelsError) { _ = try Picture(png: bytes) } catch {
                #expect(error.code == .malformedFile)
                refused += 1
            }
        }
        for source in sources {
            refused = 0
            for length in stride(from: 0, to: source.count, by: 3) { read(Array(source[..<length])) }
            #expect(refused == (source.count + 2) / 3, "every part of a file is refused")
            refused = 0
            for _ in 0..<60 {
                var bytes = source
                bytes[Int(random.next() % UInt64(bytes.count))] ^= 1 << UInt8(random.next() % 8)
                read(bytes)
            }
            #expect(refused >= 57, "checksums find a flipped bit almost anywhere")
            for _ in 0..<200 {
                var bytes = source
                for _ in 0...random.next() % 3 {
                    bytes[Int(random.next() % UInt64(bytes.count))] ^= 1 << UInt8(random.next() % 8)
                }
                read(Self.withChecksums(bytes))
            }
        }
    }

    /// The file with checksums of what its chunks hold now, so that damage gets further.
    static func withChecksums(_ bytes: [UInt8]) -> [UInt8] {
        var (bytes, position) = (bytes, 8)
        while position + 12 <= bytes.count {
            let length = (0..<4).reduce(0) { $0 << 8 | Int(bytes[position + $1]) }
            guard length <= bytes.count - position - 12 else { break }
            let end = position + 8 + length
            bytes.replaceSubrange(end..<end + 4, with: number(Int(crc(bytes[position + 4..<end]))))
            position = end + 4
        }
        return bytes
    }
}

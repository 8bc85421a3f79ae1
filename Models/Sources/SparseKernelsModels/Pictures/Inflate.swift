internal import SparseKernels

/// Decompression of a zlib stream (RFC 1950, RFC 1951) whose decompressed size is known.
///
/// It writes within the memory that it is given, reads within its input, and ends for every input: each step reads bits or fails.
struct Inflate {
    private let input: UnsafeBufferPointer<UInt8>
    private let output: UnsafeMutableBufferPointer<UInt8>
    private let name: String
    private var position = 0
    private var written = 0
    /// Bits that were read and not used, the next one lowest.
    private var bits: UInt64 = 0
    private var bitCount = 0

    /// The most bytes that one byte of a stream stands for: a match of 258 bytes takes two bits.
    static let largestRatio = 1032

    private init(
        _ input: UnsafeBufferPointer<UInt8>, into output: UnsafeMutableBufferPointer<UInt8>, named name: String
    ) {
        self.input = input
        self.output = output
        self.name = name
    }

    /// Decompresses a stream to `count` bytes. Bytes after the stream are ignored.
    /// - Parameter name: of the stream, for messages.
    /// - Throws: `.malformedFile` for a stream that breaks its format, is cut off, has another size, or another checksum.
    static func decompress(_ bytes: [UInt8], count: Int, named name: String) throws(SparseKernelsError) -> [UInt8] {
        var failure: SparseKernelsError?
        let result = bytes.withUnsafeBufferPointer { input in
            [UInt8](unsafeUninitializedCapacity: count) { output, initialized in
                var inflate = Inflate(input, into: UnsafeMutableBufferPointer(rebasing: output[..<count]), named: name)
                do throws(SparseKernelsError) {
                    try inflate.run()
                    initialized = count
                } catch {
                    failure = error
                    initialized = 0
                }
            }
        }
        if let failure { throw failure }
        return result
    }

    private func malformed(_ expected: String, _ actual: String) -> SparseKernelsError {
        SparseKernelsError(.malformedFile, name, expected: expected, actual: actual)
    }

    // MARK: - Stream

    private mutating func run() throws(SparseKernelsError) {
        let header = (try take(8), try take(8))
        guard header.0 & 15 == 8, header.0 >> 4 <= 7, (header.0 << 8 | header.1) % 31 == 0, header.1 & 32 == 0 else {
            throw malformed("a zlib stream without a dictionary", "the header \(header.0), \(header.1)")
        }
        var isLast = false
        while !isLast {
            isLast = try take(1) == 1
            switch try take(2) {
            case 0: try copyStored()
            case 1: try decode(Self.fixedLiterals, Self.fixedDistances)
            case 2:
                let (literals, distances) = try readCodes()
                try decode(literals, distances)
            default: throw malformed("blocks of the kinds 0, 1 and 2", "kind 3")
            }
        }
        guard written == output.count else { throw malformed("\(output.count) bytes", "\(written)") }
        _ = try take(bitCount % 8)
        var expected: UInt32 = 0
        for _ in 0..<4 { expected = expected << 8 | UInt32(try take(8)) }
        let actual = Checksums.adler32(UnsafeBufferPointer(output))
        guard actual == expected else { throw malformed("data with the Adler-32 \(expected)", "\(actual)") }
    }

    private mutating func copyStored() throws(SparseKernelsError) {
        _ = try take(bitCount % 8)
        let length = try take(16)
        guard try take(16) == ~length & 0xffff else { throw malformed("a length and its complement", "\(length)") }
        for _ in 0..<length { try write(UInt8(try take(8))) }
    }

    /// Reads bits, the lowest first.
    private mutating func take(_ count: Int) throws(SparseKernelsError) -> Int {
        fill()
        guard bitCount >= count else { throw malformed("a whole stream", "one that ends after \(input.count) bytes") }
        let value = Int(bits & (1 << UInt64(count) - 1))
        bits >>= UInt64(count)
        bitCount -= count
        return value
    }

    private mutating func fill() {
        while bitCount <= 56, position < input.count {
            bits |= UInt64(input[position]) << UInt64(bitCount)
            position += 1
            bitCount += 8
        }
    }

    private mutating func write(_ byte: UInt8) throws(SparseKernelsError) {
        guard written < output.count else { throw malformed("\(output.count) bytes", "more") }
        output[written] = byte
        written += 1
    }

    // MARK: - Codes

    /// A Huffman code: for every value of the next `width` bits, symbol · 16 + length; 0 where no code begins with them.
    private struct Code {
        var width: Int
        var table: [UInt16]
    }

    /// - Returns: nil for lengths that are no code.
    private static func code(_ lengths: [Int]) -> Code? {
        var counts = [Int](repeating: 0, count: 16)
        for length in lengths { counts[length] += 1 }
        counts[0] = 0
        guard let width = counts.lastIndex(where: { $0 > 0 }) else { return Code(width: 1, table: [0, 0]) }
        var next = [Int](repeating: 0, count: 17)
        for length in 1...15 {
            next[length + 1] = (next[length] + counts[length]) << 1
            if next[length] + counts[length] > 1 << length { return nil }
        }
        // An incomplete code is allowed where it has one symbol, of one bit.
        let isComplete = next[width] + counts[width] == 1 << width
        guard isComplete || (width == 1 && counts[1] == 1) else { return nil }
        var table = [UInt16](repeating: 0, count: 1 << width)
        for (symbol, length) in lengths.enumerated() where length > 0 {
            var reversed = 0
            for bit in 0..<length where next[length] >> bit & 1 == 1 { reversed |= 1 << (length - 1 - bit) }
            next[length] += 1
            for index in stride(from: reversed, to: 1 << width, by: 1 << length) {
                table[index] = UInt16(symbol << 4 | length)
            }
        }
        return Code(width: width, table: table)
    }

    private static let fixedLiterals = code(
        Array(repeating: 8, count: 144) + Array(repeating: 9, count: 112) + Array(repeating: 7, count: 24)
            + Array(repeating: 8, count: 8))!
    private static let fixedDistances = code(Array(repeating: 5, count: 32))!

    private mutating func symbol(_ code: UnsafeBufferPointer<UInt16>, _ width: Int) throws(SparseKernelsError) -> Int {
        fill()
        let entry = Int(code[Int(bits & (1 << UInt64(width) - 1))])
        let length = entry & 15
        guard length > 0 else { throw malformed("codes of the block's tables", "bits that are none") }
        guard length <= bitCount else { throw malformed("a whole stream", "one that ends after \(input.count) bytes") }
        bits >>= UInt64(length)
        bitCount -= length
        return entry >> 4
    }

    private mutating func symbol(_ code: Code) throws(SparseKernelsError) -> Int {
        var result = Result<Int, SparseKernelsError>.success(0)
        code.table.withUnsafeBufferPointer { table in
            do throws(SparseKernelsError) { result = .success(try symbol(table, code.width)) } catch {
                result = .failure(error)
            }
        }
        return try result.get()
    }

    private static let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]

    /// The codes that a block of kind 2 begins with.
    private mutating func readCodes() throws(SparseKernelsError) -> (Code, Code) {
        let (literalCount, distanceCount, lengthCount) = (try take(5) + 257, try take(5) + 1, try take(4) + 4)
        guard literalCount <= 286, distanceCount <= 30 else {
            throw malformed("at most 286 and 30 codes", "\(literalCount) and \(distanceCount)")
        }
        var lengthLengths = [Int](repeating: 0, count: 19)
        for index in 0..<lengthCount { lengthLengths[Self.order[index]] = try take(3) }
        guard let lengthCode = Self.code(lengthLengths) else { throw malformed("a prefix code of lengths", "another") }
        var lengths: [Int] = []
        while lengths.count < literalCount + distanceCount {
            let symbol = try symbol(lengthCode)
            switch symbol {
            case 0...15: lengths.append(symbol)
            case 16:
                guard let last = lengths.last else { throw malformed("a length to repeat", "none") }
                lengths += Array(repeating: last, count: 3 + (try take(2)))
            case 17: lengths += Array(repeating: 0, count: 3 + (try take(3)))
            default: lengths += Array(repeating: 0, count: 11 + (try take(7)))
            }
        }
        guard lengths.count == literalCount + distanceCount, lengths[256] > 0,
            let literals = Self.code(Array(lengths[..<literalCount])),
            let distances = Self.code(Array(lengths[literalCount...]))
        else { throw malformed("prefix codes with an end of the block", "others") }
        return (literals, distances)
    }

    // MARK: - Blocks

    private static let lengthBases = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258,
    ]
    private static let lengthBits = [
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
    ]
    private static let distanceBases = [
        1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193,
        12289, 16385, 24577,
    ]

    private mutating func decode(_ literals: Code, _ distances: Code) throws(SparseKernelsError) {
        var failure: SparseKernelsError?
        literals.table.withUnsafeBufferPointer { literalTable in
            distances.table.withUnsafeBufferPointer { distanceTable in
                do throws(SparseKernelsError) {
                    try decode(literalTable, literals.width, distanceTable, distances.width)
                } catch { failure = error }
            }
        }
        if let failure { throw failure }
    }

    private mutating func decode(
        _ literals: UnsafeBufferPointer<UInt16>, _ literalWidth: Int, _ distances: UnsafeBufferPointer<UInt16>,
        _ distanceWidth: Int
    ) throws(SparseKernelsError) {
        while true {
            let symbol = try symbol(literals, literalWidth)
            if symbol < 256 {
                try write(UInt8(symbol))
                continue
            }
            if symbol == 256 { return }
            guard symbol <= 285 else { throw malformed("lengths of the codes 257 to 285", "\(symbol)") }
            let length = Self.lengthBases[symbol - 257] + (try take(Self.lengthBits[symbol - 257]))
            let code = try self.symbol(distances, distanceWidth)
            guard code < 30 else { throw malformed("distances of the codes 0 to 29", "\(code)") }
            let distance = Self.distanceBases[code] + (try take(max(0, code / 2 - 1)))
            guard distance <= written, length <= output.count - written else {
                throw malformed("matches within \(output.count) bytes", "\(length) bytes from \(distance) before \(written)")
            }
            // A match may overlap itself, so that bytes are copied one after the other.
            for index in written..<written + length { output[index] = output[index - distance] }
            written += length
        }
    }
}

public import SparseKernels

extension Picture {
    /// Reads a binary PPM (`P6`) or PGM (`P5`) file with samples of up to 16 bits, which are scaled to 0…255.
    ///
    /// - Parameters:
    ///   - bytes: of the file.
    ///   - name: of the file, for messages.
    /// - Throws: `.malformedFile` for a file that breaks its format or is cut off, or whose extents are too large.
    public init(ppm bytes: [UInt8], named name: String = "picture") throws(SparseKernelsError) {
        func malformed(_ expected: String, _ actual: String) -> SparseKernelsError {
            SparseKernelsError(.malformedFile, name, expected: expected, actual: actual)
        }
        let isColour = bytes.starts(with: Array("P6".utf8))
        guard isColour || bytes.starts(with: Array("P5".utf8)) else {
            throw malformed("a PPM or PGM file, P6 or P5", "one that begins with \(bytes.prefix(2))")
        }
        var position = 2
        /// The next number of the header, after white space and comments.
        func number(_ what: String, _ range: ClosedRange<Int>) throws(SparseKernelsError) -> Int {
            var isComment = false
            while position < bytes.count {
                let byte = bytes[position]
                if isComment {
                    isComment = byte != 10 && byte != 13
                } else if byte == 35 {
                    isComment = true
                } else if !Self.isSpace(byte) {
                    break
                }
                position += 1
            }
            var (value, digits) = (0, 0)
            while position < bytes.count, (48...57).contains(bytes[position]), digits < 10 {
                value = value * 10 + Int(bytes[position] - 48)
                digits += 1
                position += 1
            }
            guard digits > 0, range.contains(value) else {
                throw malformed(
                    "\(what) from \(range.lowerBound) to \(range.upperBound) at byte \(position - digits)",
                    digits == 0 ? "no number" : "\(value)")
            }
            return value
        }
        let columns = try number("columns", 1...Self.largestExtent)
        let rows = try number("rows", 1...Self.largestExtent)
        let largest = try number("a largest sample", 1...65535)
        guard position < bytes.count, Self.isSpace(bytes[position]) else {
            throw malformed("white space after the header", "byte \(position)")
        }
        position += 1
        let size = GridSize(rows: rows, columns: columns)
        do { try Self.validate(size, "size") } catch { throw malformed(error.expected, error.actual) }
        let (count, width) = (size.count * (isColour ? 3 : 1), largest > 255 ? 2 : 1)
        guard bytes.count - position >= count * width else {
            throw malformed("\(count * width) bytes of samples", "\(bytes.count - position)")
        }
        var samples = [UInt8](repeating: 0, count: count)
        for index in 0..<count {
            let value =
                width == 1
                ? Int(bytes[position + index])
                : Int(bytes[position + 2 * index]) << 8 | Int(bytes[position + 2 * index + 1])
            guard value <= largest else { throw malformed("samples of at most \(largest)", "\(value)") }
            samples[index] = UInt8((value * 255 + largest / 2) / largest)
        }
        try self.init(size, isColour ? .rgb : .grey, bytes: samples)
    }

    private static func isSpace(_ byte: UInt8) -> Bool { byte == 32 || (9...13).contains(byte) }

    /// The picture as a binary PPM file; a grey one as a PGM file. What is not opaque is laid over white.
    public func ppm() -> [UInt8] {
        let picture = samples == .grey ? self : rgb()
        return Array("\(samples == .grey ? "P5" : "P6")\n\(size.columns) \(size.rows)\n255\n".utf8) + picture.bytes
    }

    /// Writes a PPM or PGM file; it is there as a whole or not at all.
    /// - Throws: `.inputOutput` naming the file.
    public func writePPM(to path: String) throws(SparseKernelsError) { try Self.write(ppm(), to: path) }
}

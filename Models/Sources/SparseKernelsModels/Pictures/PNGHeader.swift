internal import SparseKernels

/// The first chunk of a PNG file, and what follows from it.
struct PNGHeader {
    enum ColourType: UInt8 {
        case grey = 0
        case rgb = 2
        case palette = 3
        case greyAlpha = 4
        case rgba = 6

        /// Samples of a pixel in the file.
        var samples: Int {
            switch self {
            case .grey, .palette: 1
            case .greyAlpha: 2
            case .rgb: 3
            case .rgba: 4
            }
        }

        /// Bits of a sample.
        var depths: [Int] {
            switch self {
            case .grey: [1, 2, 4, 8, 16]
            case .palette: [1, 2, 4, 8]
            case .rgb, .greyAlpha, .rgba: [8, 16]
            }
        }
    }

    let size: GridSize
    let depth: Int
    let colourType: ColourType
    let isInterlaced: Bool

    /// - Throws: `.malformedFile` naming the chunk.
    init(_ bytes: ArraySlice<UInt8>, named name: String) throws(SparseKernelsError) {
        func malformed(_ expected: String, _ actual: String) -> SparseKernelsError {
            SparseKernelsError(.malformedFile, "\(name), chunk \"IHDR\"", expected: expected, actual: actual)
        }
        guard bytes.count == 13 else { throw malformed("13 bytes", "\(bytes.count)") }
        let start = bytes.startIndex
        let (columns, rows) = (PNG.number(bytes, at: start), PNG.number(bytes, at: start + 4))
        let size = GridSize(rows: rows, columns: columns)
        do { try Picture.validate(size, "IHDR") } catch { throw malformed(error.expected, error.actual) }
        guard let colourType = ColourType(rawValue: bytes[start + 9]) else {
            throw malformed("a colour type of 0, 2, 3, 4 or 6", "\(bytes[start + 9])")
        }
        let depth = Int(bytes[start + 8])
        guard colourType.depths.contains(depth) else {
            throw malformed("\(colourType.depths) bits for colour type \(colourType.rawValue)", "\(depth)")
        }
        guard bytes[start + 10] == 0, bytes[start + 11] == 0 else {
            throw malformed("compression 0 and filter 0", "\(bytes[start + 10]) and \(bytes[start + 11])")
        }
        guard bytes[start + 12] <= 1 else { throw malformed("interlacing 0 or 1", "\(bytes[start + 12])") }
        self.size = size
        self.depth = depth
        self.colourType = colourType
        isInterlaced = bytes[start + 12] == 1
    }

    /// A pass over some pixels of a picture: from which on, how far apart, and how many.
    struct Pass {
        var first: (row: Int, column: Int)
        var step: (row: Int, column: Int)
        var size: GridSize
    }

    /// The passes with pixels: one, or up to seven of an interlaced picture.
    var passes: [Pass] {
        guard isInterlaced else { return [Pass(first: (0, 0), step: (1, 1), size: size)] }
        let all = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        return all.compactMap { row, column, rowStep, columnStep in
            let rows = (size.rows - row + rowStep - 1) / rowStep
            let columns = (size.columns - column + columnStep - 1) / columnStep
            guard rows > 0, columns > 0 else { return nil }
            return Pass(
                first: (row, column), step: (rowStep, columnStep), size: GridSize(rows: rows, columns: columns))
        }
    }

    /// Bytes of a row of some pixels, without the one that names its filter.
    func rowBytes(columns: Int) -> Int { (columns * colourType.samples * depth + 7) / 8 }

    /// The distance of bytes that filters compare: a pixel, or a byte if that is more.
    var pixelBytes: Int { max(1, colourType.samples * depth / 8) }

    /// Bytes of all rows before compression.
    var byteCount: Int { passes.reduce(0) { $0 + $1.size.rows * (1 + rowBytes(columns: $1.size.columns)) } }
}

/// What reading and writing PNG files share.
enum PNG {
    static let signature: [UInt8] = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]

    /// A number of four bytes, the highest first.
    static func number(_ bytes: ArraySlice<UInt8>, at index: Int) -> Int {
        (0..<4).reduce(0) { $0 << 8 | Int(bytes[index + $1]) }
    }

    /// The prediction of a byte from those to the left, above, and above to the left: the one nearest to left + above − corner.
    @inline(__always)
    static func paeth(_ left: Int, _ above: Int, _ corner: Int) -> Int {
        let (a, b, c) = (abs(above - corner), abs(left - corner), abs(left + above - 2 * corner))
        return a <= b && a <= c ? left : b <= c ? above : corner
    }
}

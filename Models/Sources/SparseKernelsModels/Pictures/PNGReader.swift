internal import Foundation
public import SparseKernels

extension Picture {
    /// Reads a PNG file: grey, colours or a palette of 1 to 16 bits, with or without opacity, interlaced or not.
    ///
    /// Samples of fewer bits are spread to 0…255, and those of 16 bits rounded to 8. Palettes become colours; a transparent colour
    /// becomes opacity. Colour profiles, gamma and other chunks that pictures may do without are not used.
    ///
    /// - Parameters:
    ///   - bytes: of the file.
    ///   - name: of the file, for messages.
    /// - Throws: `.malformedFile`, naming the chunk where there is one, for a file that breaks its format, is cut off or damaged, or
    ///   whose extents are too large; no memory is taken for pixels that the file is too short to have.
    /// - Complexity: O(pixels).
    public init(png bytes: [UInt8], named name: String = "picture") throws(SparseKernelsError) {
        self = try PNGReader(bytes, named: name).picture()
    }

    /// Reads a file that is a PNG, or a PPM or PGM.
    /// - Throws: `.inputOutput` for a file that cannot be read, and the errors of its format.
    public init(path: String) throws(SparseKernelsError) {
        let bytes = Array(try contents(ofFile: path))
        if bytes.starts(with: PNG.signature) {
            try self.init(png: bytes, named: path)
        } else if bytes.starts(with: Array("P6".utf8)) || bytes.starts(with: Array("P5".utf8)) {
            try self.init(ppm: bytes, named: path)
        } else {
            throw SparseKernelsError(
                .malformedFile, path, expected: "a PNG, PPM or PGM picture",
                actual: bytes.isEmpty ? "an empty file" : "a file that begins with \(bytes.prefix(4))")
        }
    }
}

/// The chunks of a PNG file, checked and collected.
private struct PNGReader {
    private let name: String
    private let header: PNGHeader
    /// Red, green, blue, and opacity if any entry has one.
    private var palette: [[UInt8]] = []
    private var paletteHasAlpha = false
    /// The samples of a colour that is transparent, as the file has them.
    private var transparent: [Int]?
    private var compressed: [UInt8] = []

    private func malformed(_ chunk: String, _ expected: String, _ actual: String) -> SparseKernelsError {
        SparseKernelsError(.malformedFile, "\(name), chunk \"\(chunk)\"", expected: expected, actual: actual)
    }

    init(_ bytes: [UInt8], named name: String) throws(SparseKernelsError) {
        self.name = name
        guard bytes.starts(with: PNG.signature) else {
            throw SparseKernelsError(
                .malformedFile, name, expected: "a PNG file", actual: "one that begins with \(bytes.prefix(8))")
        }
        var chunks = PNGChunks(bytes: bytes, name: name)
        let first = try chunks.next()
        guard first.type == "IHDR" else {
            throw SparseKernelsError(
                .malformedFile, name, expected: "a first chunk \"IHDR\"", actual: "\"\(first.type)\"")
        }
        header = try PNGHeader(first.data, named: name)
        var (previous, seen) = ("IHDR", Set<String>())
        while true {
            let (type, data) = try chunks.next()
            switch type {
            case "IEND":
                guard seen.contains("IDAT") else { throw malformed(type, "after the picture", "a file without \"IDAT\"") }
                if header.colourType == .palette, palette.isEmpty {
                    throw malformed("PLTE", "there for colour type 3", "no such chunk")
                }
                return
            case "IDAT":
                guard previous == type || !seen.contains(type) else {
                    throw malformed(type, "beside the other ones", "one after \"\(previous)\"")
                }
                compressed += data
            case "PLTE":
                guard !seen.contains(type), !seen.contains("IDAT"), !seen.contains("tRNS") else {
                    throw malformed(type, "one, before \"tRNS\" and \"IDAT\"", "another place")
                }
                try readPalette(data)
            case "tRNS":
                guard !seen.contains(type), !seen.contains("IDAT") else {
                    throw malformed(type, "one, before \"IDAT\"", "another place")
                }
                try readTransparency(data)
            default:
                // A chunk whose name begins with a small letter may be passed over.
                guard type.utf8.first! & 32 != 0, type != "IHDR" else {
                    throw malformed(type, "a chunk that PNG files need, at its place", "another")
                }
            }
            seen.insert(type)
            previous = type
        }
    }

    private mutating func readPalette(_ data: ArraySlice<UInt8>) throws(SparseKernelsError) {
        let most = header.colourType == .palette ? 1 << header.depth : 256
        guard data.count % 3 == 0, (1...most).contains(data.count / 3) else {
            throw malformed("PLTE", "1 to \(most) colours of 3 bytes", "\(data.count) bytes")
        }
        // Pictures of colours may suggest a palette, which is not used.
        guard header.colourType == .palette else { return }
        palette = stride(from: data.startIndex, to: data.endIndex, by: 3).map { Array(data[$0..<$0 + 3]) + [255] }
    }

    private mutating func readTransparency(_ data: ArraySlice<UInt8>) throws(SparseKernelsError) {
        switch header.colourType {
        case .palette:
            guard !data.isEmpty, data.count <= palette.count else {
                throw malformed("tRNS", "1 to \(palette.count) bytes, after \"PLTE\"", "\(data.count)")
            }
            paletteHasAlpha = true
            for (index, alpha) in data.enumerated() { palette[index][3] = alpha }
        case .grey, .rgb:
            let samples = header.colourType.samples
            guard data.count == 2 * samples else { throw malformed("tRNS", "\(2 * samples) bytes", "\(data.count)") }
            let mask = 1 << header.depth - 1
            transparent = (0..<samples).map { index in
                (Int(data[data.startIndex + 2 * index]) << 8 | Int(data[data.startIndex + 2 * index + 1])) & mask
            }
        default: throw malformed("tRNS", "absent from pictures with opacity", "there")
        }
    }

    // MARK: - Pixels

    private var samples: Picture.Samples {
        switch header.colourType {
        case .grey: transparent == nil ? .grey : .greyAlpha
        case .greyAlpha: .greyAlpha
        case .rgb: transparent == nil ? .rgb : .rgba
        case .palette: paletteHasAlpha ? .rgba : .rgb
        case .rgba: .rgba
        }
    }

    func picture() throws(SparseKernelsError) -> Picture {
        let count = header.byteCount
        guard count / Inflate.largestRatio <= compressed.count else {
            throw malformed(
                "IDAT", "\(count / Inflate.largestRatio) bytes or more for \(header.size) pixels", "\(compressed.count)")
        }
        var rows = try Inflate.decompress(compressed, count: count, named: "\(name), chunk \"IDAT\"")
        var pixels = [UInt8](repeating: 0, count: header.size.count * samples.count)
        var start = 0
        for pass in header.passes {
            let length = header.rowBytes(columns: pass.size.columns)
            for row in 0..<pass.size.rows {
                try unfilter(&rows, at: start, length: length, isFirst: row == 0)
                try place(rows, at: start + 1, row, pass, in: &pixels)
                start += 1 + length
            }
        }
        return try Picture(header.size, samples, bytes: pixels)
    }

    /// Undoes the filter of a row in place. The row above is the one before it.
    private func unfilter(
        _ bytes: inout [UInt8], at start: Int, length: Int, isFirst: Bool
    ) throws(SparseKernelsError) {
        let (filter, step) = (bytes[start], header.pixelBytes)
        guard filter <= 4 else { throw malformed("IDAT", "filters 0 to 4", "\(filter)") }
        if filter == 0 { return }
        bytes.withUnsafeMutableBufferPointer { bytes in
            let row = bytes.baseAddress! + start + 1
            let above = row - (length + 1)
            for index in 0..<length {
                let left = index >= step ? Int(row[index - step]) : 0
                let up = isFirst ? 0 : Int(above[index])
                let prediction =
                    switch filter {
                    case 1: left
                    case 2: up
                    case 3: (left + up) / 2
                    default: PNG.paeth(left, up, isFirst || index < step ? 0 : Int(above[index - step]))
                    }
                row[index] = row[index] &+ UInt8(truncatingIfNeeded: prediction)
            }
        }
    }

    /// Writes the samples of a row to where its pixels are in the picture.
    private func place(
        _ bytes: [UInt8], at start: Int, _ row: Int, _ pass: PNGHeader.Pass, in pixels: inout [UInt8]
    ) throws(SparseKernelsError) {
        let (inFile, depth, count) = (header.colourType.samples, header.depth, samples.count)
        let firstPixel = (pass.first.row + row * pass.step.row) * header.size.columns + pass.first.column
        let largest = 1 << depth - 1
        let failure: Int? = bytes.withUnsafeBufferPointer { bytes in
            pixels.withUnsafeMutableBufferPointer { pixels in
                for column in 0..<pass.size.columns {
                    let target = (firstPixel + column * pass.step.column) * count
                    var isTransparent = transparent != nil
                    for sample in 0..<inFile {
                        let index = column * inFile + sample
                        let value =
                            switch depth {
                            case 8: Int(bytes[start + index])
                            case 16: Int(bytes[start + 2 * index]) << 8 | Int(bytes[start + 2 * index + 1])
                            default: Int(bytes[start + index * depth / 8]) >> (8 - depth - index * depth % 8) & largest
                            }
                        if header.colourType == .palette {
                            guard value < palette.count else { return value }
                            for part in 0..<count { pixels[target + part] = palette[value][part] }
                            continue
                        }
                        pixels[target + sample] = depth == 8 ? UInt8(value) : UInt8((value * 255 + largest / 2) / largest)
                        if let transparent { isTransparent = isTransparent && value == transparent[sample] }
                    }
                    if transparent != nil { pixels[target + count - 1] = isTransparent ? 0 : 255 }
                }
                return nil
            }
        }
        if let failure { throw malformed("IDAT", "indices below \(palette.count), the colours of the palette", "\(failure)") }
    }
}

/// The chunks of a file in turn, with their checksums.
private struct PNGChunks {
    let bytes: [UInt8]
    let name: String
    var position = 8

    /// - Throws: `.malformedFile` at the end, for a chunk that is cut off or damaged, and for a name that is not four letters.
    mutating func next() throws(SparseKernelsError) -> (type: String, data: ArraySlice<UInt8>) {
        func malformed(_ expected: String, _ actual: String) -> SparseKernelsError {
            SparseKernelsError(.malformedFile, name, expected: expected, actual: actual)
        }
        guard bytes.count - position >= 12 else {
            throw malformed("a chunk at byte \(position)", "the end of the file after \(bytes.count) bytes")
        }
        let length = PNG.number(bytes[...], at: position)
        let letters = bytes[position + 4..<position + 8]
        guard letters.allSatisfy({ (65...90).contains($0 & ~32) }) else {
            throw malformed("the four letters of a chunk at byte \(position + 4)", "\(Array(letters))")
        }
        let type = String(decoding: letters, as: UTF8.self)
        guard length <= bytes.count - position - 12 else {
            throw malformed(
                "\(length) bytes of chunk \"\(type)\" at byte \(position)", "the end of the file after \(bytes.count) bytes")
        }
        let data = bytes[position + 8..<position + 8 + length]
        let checked = position + 4..<position + 8 + length
        let actual = bytes.withUnsafeBufferPointer { Checksums.crc32(UnsafeBufferPointer(rebasing: $0[checked])) }
        let expected = PNG.number(bytes[...], at: position + 8 + length)
        guard Int(actual) == expected else {
            throw SparseKernelsError(
                .malformedFile, "\(name), chunk \"\(type)\"", expected: "data with the CRC \(expected)", actual: "\(actual)")
        }
        position += 12 + length
        return (type, data)
    }
}

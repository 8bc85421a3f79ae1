internal import Foundation
public import SparseKernels

extension Picture {
    /// The picture as a PNG file of 8 bits per sample.
    ///
    /// A picture in at most 256 colours is written with a palette, of which a pixel takes one byte. Rows of others are filtered, each by
    /// the filter whose results are smallest. The same picture gives the same bytes on every machine.
    /// - Complexity: O(pixels).
    public func png() -> [UInt8] {
        var file = PNG.signature
        let palette = self.palette()
        let colourType: PNGHeader.ColourType =
            switch samples {
            case .grey: .grey
            case .greyAlpha: .greyAlpha
            case .rgb: palette == nil ? .rgb : .palette
            case .rgba: .rgba
            }
        let header = Self.number(size.columns) + Self.number(size.rows) + [8, colourType.rawValue, 0, 0, 0]
        Self.append("IHDR", header, to: &file)
        if let palette {
            Self.append("PLTE", palette.colours, to: &file)
            Self.append("IDAT", Deflate.compress(Self.unfiltered(palette.indices, columns: size.columns)), to: &file)
        } else {
            Self.append("IDAT", Deflate.compress(filtered()), to: &file)
        }
        Self.append("IEND", [], to: &file)
        return file
    }

    /// Writes a PNG file; it is there as a whole or not at all.
    /// - Throws: `.inputOutput` naming the file.
    public func writePNG(to path: String) throws(SparseKernelsError) { try Self.write(png(), to: path) }

    static func write(_ bytes: [UInt8], to path: String) throws(SparseKernelsError) {
        do { try Data(bytes).write(to: URL(fileURLWithPath: path), options: .atomic) } catch {
            throw SparseKernelsError(
                .inputOutput, path, expected: "a file that can be written", actual: error.localizedDescription)
        }
    }

    private static func number(_ value: Int) -> [UInt8] { [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> $0) } }

    private static func append(_ type: String, _ data: [UInt8], to file: inout [UInt8]) {
        file += number(data.count)
        let start = file.count
        file += Array(type.utf8) + data
        let crc = file.withUnsafeBufferPointer { Checksums.crc32(UnsafeBufferPointer(rebasing: $0[start...])) }
        file += number(Int(crc))
    }

    // MARK: - Palettes

    /// The colours in the order in which they come, and the index of every pixel; nil for more than 256 or other samples.
    private func palette() -> (colours: [UInt8], indices: [UInt8])? {
        guard samples == .rgb else { return nil }
        var places: [Int: UInt8] = [:]
        var colours: [UInt8] = []
        var indices = [UInt8](repeating: 0, count: size.count)
        var (last, lastIndex) = (-1, UInt8(0))
        for pixel in 0..<size.count {
            let colour = Int(bytes[3 * pixel]) << 16 | Int(bytes[3 * pixel + 1]) << 8 | Int(bytes[3 * pixel + 2])
            if colour != last {
                if let known = places[colour] {
                    lastIndex = known
                } else {
                    guard places.count < 256 else { return nil }
                    lastIndex = UInt8(places.count)
                    places[colour] = lastIndex
                    colours += bytes[3 * pixel..<3 * pixel + 3]
                }
                last = colour
            }
            indices[pixel] = lastIndex
        }
        return (colours, indices)
    }

    /// Rows without a filter.
    private static func unfiltered(_ bytes: [UInt8], columns: Int) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(bytes.count + bytes.count / columns)
        for start in stride(from: 0, to: bytes.count, by: columns) {
            result.append(0)
            result += bytes[start..<start + columns]
        }
        return result
    }

    // MARK: - Filters

    /// Rows after the filter that makes the sum of magnitudes of their bytes smallest, each after the filter's number.
    private func filtered() -> [UInt8] {
        let (length, step) = (size.columns * samples.count, samples.count)
        var result = [UInt8](repeating: 0, count: size.rows * (length + 1))
        var candidate = [UInt8](repeating: 0, count: length)
        bytes.withUnsafeBufferPointer { bytes in
            result.withUnsafeMutableBufferPointer { result in
                candidate.withUnsafeMutableBufferPointer { candidate in
                    for row in 0..<size.rows {
                        let source = bytes.baseAddress! + row * length
                        let target = result.baseAddress! + row * (length + 1)
                        var least = Int.max
                        for filter in 0..<5 {
                            var sum = 0
                            for index in 0..<length {
                                let left = index >= step ? Int(source[index - step]) : 0
                                let up = row > 0 ? Int((source - length)[index]) : 0
                                let prediction: Int
                                switch filter {
                                case 0: prediction = 0
                                case 1: prediction = left
                                case 2: prediction = up
                                case 3: prediction = (left + up) / 2
                                default:
                                    let corner = row > 0 && index >= step ? Int((source - length)[index - step]) : 0
                                    prediction = PNG.paeth(left, up, corner)
                                }
                                let byte = source[index] &- UInt8(truncatingIfNeeded: prediction)
                                candidate[index] = byte
                                sum += Int(Int8(bitPattern: byte).magnitude)
                            }
                            if sum < least {
                                least = sum
                                target[0] = UInt8(filter)
                                (target + 1).update(from: candidate.baseAddress!, count: length)
                            }
                        }
                    }
                }
            }
        }
        return result
    }
}

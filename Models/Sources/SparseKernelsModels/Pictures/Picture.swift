public import SparseKernels

/// A picture of 8 bits per sample, as files have it: the samples of a pixel side by side, pixels row by row from the top.
public struct Picture: Sendable, Equatable {
    /// What the samples of a pixel are.
    public enum Samples: Int, Sendable, CaseIterable {
        case grey = 1
        /// Grey, and opacity from 0 to 255.
        case greyAlpha = 2
        case rgb = 3
        /// Red, green, blue, and opacity from 0 to 255.
        case rgba = 4

        /// Samples of a pixel.
        public var count: Int { rawValue }
    }

    public let size: GridSize
    public let samples: Samples
    /// `[rows, columns, samples]`.
    public var bytes: [UInt8]

    /// Rows or columns of the largest picture, and 2²⁸ pixels together: three times as many samples fit any address space.
    public static let largestExtent = 1 << 20
    static let mostPixels = 1 << 28

    /// - Throws: `.invalidShape` for extents below 1 or too large, or another number of bytes.
    public init(_ size: GridSize, _ samples: Samples, bytes: [UInt8]) throws(SparseKernelsError) {
        try Self.validate(size, "size")
        let count = size.count * samples.count
        guard bytes.count == count else {
            throw SparseKernelsError(
                .invalidShape, "bytes", expected: "\(count) bytes for \(size) pixels of \(samples.count)",
                actual: "\(bytes.count)")
        }
        self.size = size
        self.samples = samples
        self.bytes = bytes
    }

    /// A picture of one colour.
    /// - Throws: `.invalidShape` for extents below 1 or too large.
    public init(_ size: GridSize, filledWith colour: Colour) throws(SparseKernelsError) {
        try Self.validate(size, "size")
        self.size = size
        samples = .rgb
        bytes = [UInt8](unsafeUninitializedCapacity: size.count * 3) { buffer, count in
            for pixel in 0..<size.count {
                buffer[3 * pixel] = colour.red
                buffer[3 * pixel + 1] = colour.green
                buffer[3 * pixel + 2] = colour.blue
            }
            count = size.count * 3
        }
    }

    static func validate(_ size: GridSize, _ argument: String) throws(SparseKernelsError) {
        let fits =
            (1...largestExtent).contains(size.rows) && (1...largestExtent).contains(size.columns)
            && size.count <= mostPixels
        guard fits else {
            throw SparseKernelsError(
                .invalidShape, argument, expected: "1 to \(largestExtent) rows and columns, and at most \(mostPixels) pixels",
                actual: "\(size.rows) × \(size.columns)")
        }
    }

    /// A colour of 8 bits per sample.
    public struct Colour: Hashable, Sendable {
        public var red: UInt8
        public var green: UInt8
        public var blue: UInt8

        public init(_ red: UInt8, _ green: UInt8, _ blue: UInt8) {
            self.red = red
            self.green = green
            self.blue = blue
        }

        /// This colour with a share of another one.
        public func mixed(with other: Colour, share: Float) -> Colour {
            func mix(_ a: UInt8, _ b: UInt8) -> UInt8 {
                UInt8(max(0, min(255, (Float(a) + (Float(b) - Float(a)) * share).rounded())))
            }
            return Colour(mix(red, other.red), mix(green, other.green), mix(blue, other.blue))
        }
    }

    /// The colour of a pixel of an `.rgb` picture. Its place must be in the picture.
    public subscript(row: Int, column: Int) -> Colour {
        get {
            let index = offset(row, column)
            return Colour(bytes[index], bytes[index + 1], bytes[index + 2])
        }
        set {
            let index = offset(row, column)
            bytes[index] = newValue.red
            bytes[index + 1] = newValue.green
            bytes[index + 2] = newValue.blue
        }
    }

    private func offset(_ row: Int, _ column: Int) -> Int {
        precondition(samples == .rgb, "colours of a picture of \(samples)")
        precondition(
            row >= 0 && row < size.rows && column >= 0 && column < size.columns, "pixel (\(row), \(column)) outside \(size)")
        return 3 * (row * size.columns + column)
    }

    /// The picture in red, green and blue. What is not opaque is mixed with a background.
    public func rgb(over background: Colour = Colour(255, 255, 255)) -> Picture {
        if samples == .rgb { return self }
        let count = size.count
        let behind = [background.red, background.green, background.blue]
        let converted = bytes.withUnsafeBufferPointer { source in
            [UInt8](unsafeUninitializedCapacity: 3 * count) { target, initialized in
                for pixel in 0..<count {
                    for channel in 0..<3 {
                        let sample = Int(source[pixel * samples.count + (samples.count > 2 ? channel : 0)])
                        let alpha = samples.count % 2 == 1 ? 255 : Int(source[(pixel + 1) * samples.count - 1])
                        let mixed = (sample * alpha + Int(behind[channel]) * (255 - alpha) + 127) / 255
                        target[3 * pixel + channel] = UInt8(mixed)
                    }
                }
                initialized = 3 * count
            }
        }
        // The size is that of a valid picture.
        return try! Picture(size, .rgb, bytes: converted)
    }

    /// The picture as a vision model takes it, `[3, rows, columns]`: (sample / 255 − mean) / deviation of every channel.
    ///
    /// - Parameters:
    ///   - mean: of red, green and blue.
    ///   - deviation: of red, green and blue, above 0.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidArgument` for other numbers of values, or deviations that are not above 0.
    public func planes(
        mean: [Float] = [0.5, 0.5, 0.5], deviation: [Float] = [0.5, 0.5, 0.5], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        guard mean.count == 3, mean.allSatisfy(\.isFinite) else {
            throw SparseKernelsError(.invalidArgument, "mean", expected: "three finite numbers", actual: "\(mean)")
        }
        guard deviation.count == 3, deviation.allSatisfy({ $0 > 0 && $0.isFinite }) else {
            throw SparseKernelsError(
                .invalidArgument, "deviation", expected: "three finite numbers above 0", actual: "\(deviation)")
        }
        let picture = rgb()
        // A sample has one of 256 values.
        let tables = (0..<3).map { channel in (0..<256).map { (Float($0) / 255 - mean[channel]) / deviation[channel] } }
        var planes = try Tensor<Float>(zeros: [3, size.rows, size.columns])
        let count = size.count
        var elements = planes.mutableSpan
        elements.withUnsafeMutableBufferPointer { target in
            // Every task writes rows of its own, and the storage outlives the call.
            nonisolated(unsafe) let target = target.baseAddress!
            picture.bytes.withUnsafeBufferPointer { source in
                nonisolated(unsafe) let source = source.baseAddress!
                pool.forEachRange(of: size.rows, workPerItem: 16 * size.columns) { rows in
                    for channel in 0..<3 {
                        tables[channel].withUnsafeBufferPointer { table in
                            for pixel in rows.lowerBound * size.columns..<rows.upperBound * size.columns {
                                target[channel * count + pixel] = table[Int(source[3 * pixel + channel])]
                            }
                        }
                    }
                }
            }
        }
        return planes
    }
}

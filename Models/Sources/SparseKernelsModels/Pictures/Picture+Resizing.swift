public import SparseKernels

extension Picture {
    /// The picture as a vision model takes it, at another size: bicubic, and antialiased where it shrinks, as image processors of such
    /// models do by default. A picture of that size stays as it is.
    ///
    /// - Parameters:
    ///   - mean: of red, green and blue.
    ///   - deviation: of red, green and blue, above 0.
    ///   - size: rows and columns of the result.
    ///   - pool: the threads to use.
    /// - Returns: `[3, rows, columns]`.
    /// - Throws: the errors of `planes`, and `.invalidShape` for a size below 1 × 1 or too large.
    public func planes(
        mean: [Float] = [0.5, 0.5, 0.5], deviation: [Float] = [0.5, 0.5, 0.5], resizedTo size: GridSize,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let planes = try planes(mean: mean, deviation: deviation, on: pool)
        if size == self.size { return planes }
        return try ImageResize(self.size, to: size, filter: .bicubic, antialias: true)(planes, on: pool)
    }

    /// The picture in red, green and blue at another size. Pixels become means of those that they cover, or copies of the nearest one where
    /// the picture grows, so that flat areas keep their colours.
    /// - Throws: `.invalidShape` for a size below 1 × 1 or too large.
    public func resized(to size: GridSize, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Picture {
        try Self.validate(size, "size")
        let planes = try planes(mean: [0, 0, 0], deviation: [1, 1, 1], on: pool)
        let shrinks = size.rows <= self.size.rows && size.columns <= self.size.columns
        let resized = try ImageResize(self.size, to: size, filter: shrinks ? .area : .nearest)(planes, on: pool)
        let (values, count) = (resized.span, size.count)
        var bytes = [UInt8](repeating: 0, count: 3 * count)
        for channel in 0..<3 {
            for pixel in 0..<count {
                bytes[3 * pixel + channel] = UInt8(max(0, min(255, (values[channel * count + pixel] * 255).rounded())))
            }
        }
        return try Picture(size, .rgb, bytes: bytes)
    }
}

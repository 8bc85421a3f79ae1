public import SparseKernels

/// The frames of a video, in red, green and blue from −1 to 1. Values outside are kept; who shows them clamps them.
public struct VideoClip: Sendable {
    /// `[frames, 3, height, width]`.
    public let pixels: Tensor<Float>

    public var frames: Int { pixels.shape[0] }
    public var height: Int { pixels.shape[2] }
    public var width: Int { pixels.shape[3] }

    /// - Throws: `.invalidShape` for another rank, other than three colours, or no pixels.
    public init(pixels: Tensor<Float>) throws(SparseKernelsError) {
        guard pixels.shape.count == 4, pixels.shape[1] == 3, pixels.count > 0 else {
            throw SparseKernelsError(
                .invalidShape, "pixels", expected: "[frames, 3, height, width]", actual: "\(pixels.shape)")
        }
        self.pixels = pixels
    }

    /// Puts patches together: a row of `patches` is a square of one frame, in the order colour, row, column.
    /// - Throws: `.invalidShape` unless patches are `[videoTokens, patchChannels]`.
    public init(patches: Tensor<Float>, _ c: VideoTransformerConfiguration) throws(SparseKernelsError) {
        guard patches.shape == [c.videoTokens, c.patchChannels] else {
            throw SparseKernelsError(
                .invalidShape, "patches", expected: "\([c.videoTokens, c.patchChannels])", actual: "\(patches.shape)")
        }
        let (size, patch, grid) = (c.imageSize, c.patchSize, c.grid)
        let source = patches.span
        var pixels = try Tensor<Float>(zeros: [c.frames, 3, size, size])
        var target = pixels.mutableSpan
        var position = 0
        for frame in 0..<c.frames {
            for colour in 0..<3 {
                for y in 0..<size {
                    for x in 0..<size {
                        let token = (frame * grid + y / patch) * grid + x / patch
                        let channel = (colour * patch + y % patch) * patch + x % patch
                        target[position] = source[token * c.patchChannels + channel]
                        position += 1
                    }
                }
            }
        }
        self.pixels = pixels
    }

    /// A frame in bytes, red, green and blue of each pixel in turn, row by row, each pixel as a square of `scale` pixels.
    ///
    /// −1 becomes 0 and 1 becomes 255; values outside are clamped, and NaN becomes 0.
    public func bytes(ofFrame frame: Int, scale: Int = 1) -> [UInt8] {
        let (height, width) = (height, width)
        let pixels = pixels.span
        var bytes: [UInt8] = []
        bytes.reserveCapacity(height * width * scale * scale * 3)
        for y in 0..<height * scale {
            for x in 0..<width * scale {
                for colour in 0..<3 {
                    let value = pixels[((frame * 3 + colour) * height + y / scale) * width + x / scale]
                    bytes.append(value >= -1 ? UInt8((min(value, 1) + 1) * 127.5 + 0.5) : 0)
                }
            }
        }
        return bytes
    }
}

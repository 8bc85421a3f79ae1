public import SparseKernels

/// The token reduction of STORM, after the encoder: spatial pooling, temporal pooling, and sampling of frames at test time.
///
/// - Spatial pooling: every square of `spatialPool` × `spatialPool` tokens of a frame becomes its mean. The paper's factor p is the ratio of
///   tokens, so 4 there is 2 here.
/// - Temporal pooling: every `temporalPool` consecutive frames become their mean, token by token.
/// - Sampling: of the frames that are left, 0, s, 2s, … are kept.
///
/// They happen in this order, the encoder before and sampling last. A tail of frames, rows or columns that does not fill a pool is
/// averaged over what is there, so nothing is dropped.
///
/// - Exactness: one pass; a token is a sum of `temporalPool` means of frames. All orders of pooling would be the same mean, but tails.
///   Arithmetic is in single precision. NaN stays in its channel of the tokens that it is a part of.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: each kept token is read once; frames that sampling drops are not read.
/// - Source: arXiv 2503.04130, section 3.3.
public struct STORMTokenReduction: Hashable, Sendable {
    /// Frames of a mean.
    public let temporalPool: Int
    /// Rows and columns of a mean.
    public let spatialPool: Int
    /// One of how many frames is kept.
    public let samplingRate: Int

    /// - Parameters:
    ///   - temporalPool: k, at least 1; 4 in the paper.
    ///   - spatialPool: at least 1; 2 in the paper.
    ///   - samplingRate: s, at least 1; 2 in the paper's tables, 4 in its examples.
    /// - Throws: `.invalidArgument` for numbers below 1.
    public init(temporalPool: Int = 1, spatialPool: Int = 1, samplingRate: Int = 1) throws(SparseKernelsError) {
        for (name, value) in [("temporalPool", temporalPool), ("spatialPool", spatialPool), ("samplingRate", samplingRate)] {
            try require(value >= 1, .invalidArgument, name, expected: "at least 1", actual: "\(value)")
        }
        self.temporalPool = temporalPool
        self.spatialPool = spatialPool
        self.samplingRate = samplingRate
    }

    /// The frames after pooling that are kept, ascending.
    public func sampledFrames(of frames: Int) -> [Int] {
        Array(stride(from: 0, to: Self.pools(frames, temporalPool), by: samplingRate))
    }

    /// Extents of the result, `[frames, rows, columns, channels]`.
    /// - Throws: `.invalidShape` for another rank.
    public func shape(of shape: [Int]) throws(SparseKernelsError) -> [Int] {
        try require(
            shape.count == 4, .invalidShape, "x", expected: "[frames, rows, columns, channels]", actual: "\(shape)")
        let frames = Self.pools(Self.pools(shape[0], temporalPool), samplingRate)
        return [frames, Self.pools(shape[1], spatialPool), Self.pools(shape[2], spatialPool), shape[3]]
    }

    private static func pools(_ extent: Int, _ pool: Int) -> Int { extent == 0 ? 0 : (extent - 1) / pool + 1 }

    /// Reduces the tokens of a video into a tensor that is reused from call to call.
    ///
    /// - Parameters:
    ///   - x: `[frames, rows, columns, channels]`.
    ///   - y: as `shape(of:)` says, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the tensor of another shape; nothing is written then.
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let result = try shape(of: x.shape)
        try require(y.shape == result, .invalidShape, "y", expected: "\(result)", actual: "\(y.shape)")
        if y.count == 0 { return }
        let (frames, rows, columns, channels) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
        let (temporal, spatial, rate) = (temporalPool, spatialPool, samplingRate)
        let lines = result[0] * result[1]
        x.span.withUnsafeBufferPointer { source in
            var span = y.mutableSpan
            span.withUnsafeMutableBufferPointer { target in
                let memory = Addresses(source: source.baseAddress!, target: target.baseAddress!)
                // Items are rows of tokens of the result.
                pool.forEachRange(of: lines, workPerItem: 4 * temporal.clamped * spatial.clamped * columns * channels) {
                    range in
                    for line in range {
                        let first = line / result[1] * rate * temporal
                        let count = min(temporal, frames - first)
                        let row = line % result[1] * spatial
                        let height = min(spatial, rows - row)
                        for column in 0..<result[2] {
                            let width = min(spatial, columns - column * spatial)
                            reduce(
                                memory.source + ((first * rows + row) * columns + column * spatial) * channels,
                                (count, rows * columns * channels), (height, columns * channels), width,
                                into: memory.target + (line * result[2] + column) * channels, channels)
                        }
                    }
                }
            }
        }
    }

    /// Reduces the tokens of a video, in a new tensor.
    /// - Throws: `.invalidShape` for another rank than `[frames, rows, columns, channels]`.
    public func callAsFunction(
        _ x: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: shape(of: x.shape))
        try run(x, into: &y, on: pool)
        return y
    }
}

extension Int {
    /// An estimate that does not overflow.
    fileprivate var clamped: Int { Swift.min(self, 1 << 10) }
}

/// The mean over frames of means over rows and columns. Pools are pairs of a count and a distance in elements.
private func reduce(
    _ source: UnsafePointer<Float>, _ frames: (count: Int, stride: Int), _ rows: (count: Int, stride: Int), _ columns: Int,
    into target: UnsafeMutablePointer<Float>, _ channels: Int
) {
    let factor = 1 / Float(frames.count * rows.count * columns)
    var channel = 0
    while channel + 16 <= channels {
        var total = SIMD16<Float>(repeating: 0)
        for frame in 0..<frames.count {
            for row in 0..<rows.count {
                for column in 0..<columns {
                    let token = source + frame * frames.stride + row * rows.stride + column * channels
                    total += UnsafeRawPointer(token + channel).loadUnaligned(as: SIMD16<Float>.self)
                }
            }
        }
        UnsafeMutableRawPointer(target + channel).storeBytes(of: total * factor, as: SIMD16<Float>.self)
        channel += 16
    }
    while channel < channels {
        var total: Float = 0
        for frame in 0..<frames.count {
            for row in 0..<rows.count {
                for column in 0..<columns {
                    total += source[frame * frames.stride + row * rows.stride + column * channels + channel]
                }
            }
        }
        target[channel] = total * factor
        channel += 1
    }
}

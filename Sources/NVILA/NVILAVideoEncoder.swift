public import SparseKernels

/// The tokens of a video as a language model takes them: pooled over frames after the projector, with the embeddings of start and end
/// tokens around each pooled frame.
///
/// With several poolings the video is there once for each, with the separator's tokens after each.
///
/// ```swift
/// let encoder = try NVILAVideoEncoder(frames: 256, grid: GridSize(side: 16), pools: [PoolingWindow(frames: 8)], end: newline)
/// let y = try encoder(x)  // [256, 256, channels] → [32 · 257, channels]
/// ```
///
/// - Exactness: that of ``TemporalPooling``; embeddings are copied.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: each token is read once per pooling. Scratch: none.
/// - Source: NVILA (arXiv 2412.04468); `BasicVideoEncoder` and `TSPVideoEncoder`.
public struct NVILAVideoEncoder: Sendable {
    /// The poolings, in the order of their tokens.
    public let poolings: [TemporalPooling]
    /// Channels of a token.
    public let channels: Int
    /// Tokens of the result.
    public let tokenCount: Int
    /// The separator's tokens.
    private let gap: Int
    /// The rows that start, end and separator tokens are copied from, and where to.
    private let embeddings: Tensor<Float>?
    private let copies: RowMeans?

    /// - Parameters:
    ///   - frames: frames of the video.
    ///   - grid: tokens of a frame, after the projector.
    ///   - channels: channels of a token.
    ///   - pools: the poolings, at least one.
    ///   - tails: what happens with frames that do not fill a pool; released code refuses them.
    ///   - start: `[tokens, channels]`, before each pooled frame.
    ///   - end: `[tokens, channels]`, after each pooled frame: the newline token of released models.
    ///   - separator: `[tokens, channels]`, after the tokens of each pooling.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: the errors of ``TemporalPooling``; `.invalidArgument` for no poolings; `.invalidShape` naming the embedding of other
    ///   channels; `.unsupportedInstructionSet`.
    public init(
        frames: Int, grid: GridSize, channels: Int, pools: [PoolingWindow] = [PoolingWindow(frames: 8)],
        tails: TemporalPooling.Tails = .refused, start: Tensor<Float>? = nil, end: Tensor<Float>? = nil,
        separator: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(!pools.isEmpty, .invalidArgument, "pools", expected: "at least one", actual: "none")
        try require(channels >= 1, .invalidShape, "channels", expected: "at least 1", actual: "\(channels)")
        var (rows, counts): ([Float], [Int]) = ([], [])
        for (name, tensor) in [("start", start), ("end", end), ("separator", separator)] {
            guard let tensor else {
                counts.append(0)
                continue
            }
            try require(
                tensor.shape.count == 2 && tensor.shape[1] == channels, .invalidShape, name,
                expected: "[tokens, \(channels)]", actual: "\(tensor.shape)")
            rows += tensor.elements
            counts.append(tensor.shape[0])
        }
        var (poolings, places, first) = ([TemporalPooling](), EmbeddingPlaces(), 0)
        for pool in pools {
            let pooling = try TemporalPooling(
                frames: frames, grid: grid, pool: pool, tails: tails, tokensBefore: counts[0], tokensAfter: counts[1],
                instructionSet: instructionSet)
            poolings.append(pooling)
            for frame in 0..<pooling.pooledFrames {
                let place = first + frame * (counts[0] + pooling.pooledGrid.count + counts[1])
                places.add(0..<counts[0], at: place)
                places.add(counts[0]..<counts[0] + counts[1], at: place + counts[0] + pooling.pooledGrid.count)
            }
            first += pooling.targetRows
            places.add(counts[0] + counts[1]..<counts.reduce(0, +), at: first)
            first += counts[2]
            try require(
                first < 1 << 31, .invalidShape, "frames", expected: "fewer than 2³¹ tokens",
                actual: "\(frames) frames of \(grid)")
        }
        self.poolings = poolings
        self.channels = channels
        tokenCount = first
        gap = counts[2]
        if rows.isEmpty {
            (embeddings, copies) = (nil, nil)
        } else {
            let height = counts.reduce(0, +)
            embeddings = try Tensor([height, channels], rows)
            copies = try RowMeans(
                of: height, offsets: (0...places.rows.count).map { Int32($0) }, rows: places.rows, targets: places.targets,
                targetRows: first, instructionSet: instructionSet)
        }
    }

    /// Encodes the tokens of a video.
    ///
    /// - Parameters:
    ///   - x: a row of `channels` per token, frame after frame, in raster order.
    ///   - y: `tokenCount` × `channels`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("x", rows: x.rows, columns: x.columns, expected: (poolings[0].sourceRows, channels))
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (tokenCount, channels))
        var first = 0
        for index in 0..<poolings.count {
            let end = first + poolings[index].targetRows
            try poolings[index].run(x, into: y.rows(first..<end), on: pool)
            first = end + gap
        }
        if let embeddings, let copies { try copies.run(embeddings.matrixView(), into: y, on: pool) }
    }

    /// The tokens, `[tokenCount, channels]`, in a new tensor. All axes of x but the last are rows.
    /// - Throws: `.invalidShape` for other extents.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: [tokenCount, channels])
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
        return y
    }
}

/// Which embedding goes to which row.
private struct EmbeddingPlaces {
    var rows: [Int32] = []
    var targets: [Int32] = []

    mutating func add(_ embeddings: Range<Int>, at place: Int) {
        for (index, row) in embeddings.enumerated() {
            rows.append(Int32(row))
            targets.append(Int32(place + index))
        }
    }
}

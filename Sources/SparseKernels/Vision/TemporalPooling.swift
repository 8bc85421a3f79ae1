/// How many frames, rows and columns of tokens become one.
public struct PoolingWindow: Hashable, Sendable {
    public var frames: Int
    public var rows: Int
    public var columns: Int

    public init(frames: Int, rows: Int = 1, columns: Int = 1) {
        self.frames = frames
        self.rows = rows
        self.columns = columns
    }
}

extension PoolingWindow: CustomStringConvertible {
    /// Frames × rows × columns.
    public var description: String { "\(frames) × \(rows) × \(columns)" }
}

/// Means over boxes of frames, rows and columns of a video's tokens.
///
/// Each pooled frame can be given room for tokens before and after it, such as start and newline tokens, so that they need no copy of
/// the pooled tokens later.
///
/// ```swift
/// let pooling = try TemporalPooling(frames: 256, grid: GridSize(side: 16), pool: PoolingWindow(frames: 8))
/// let y = try pooling(x)  // [256, 256, channels] → [32, 16, 16, channels]
/// ```
///
/// - Exactness: one sum over a box, in the order frame, row, column, divided once. Pooling axis after axis, as released code does, is
///   the same mean with other roundings.
/// - Non-finite elements stay in their channel of their box.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: each token is read once. Scratch: none. The plan has 4 bytes per token.
/// - Source: NVILA (arXiv 2412.04468) and LongVILA's video encoders, `pool` of `tsp.py`.
public struct TemporalPooling: Sendable {
    /// What becomes of frames, rows and columns that do not fill a box.
    public enum Tails: Hashable, Sendable {
        /// They are an error, as in released code.
        case refused
        /// Their mean is that of what is there.
        case averaged
    }

    /// Frames before pooling.
    public let frames: Int
    /// Tokens of a frame before pooling.
    public let grid: GridSize
    public let pool: PoolingWindow
    /// Frames after pooling.
    public let pooledFrames: Int
    /// Tokens of a frame after pooling.
    public let pooledGrid: GridSize
    /// Rows of the result before and after each pooled frame that are left as they are.
    public let (tokensBefore, tokensAfter): (Int, Int)
    private let means: RowMeans

    /// - Parameters:
    ///   - frames: frames of the video; may be 0.
    ///   - grid: tokens of a frame.
    ///   - pool: frames, rows and columns of a box, at least 1 each.
    ///   - tails: what happens where boxes do not fit.
    ///   - tokensBefore: rows of the result to leave before each pooled frame.
    ///   - tokensAfter: rows of the result to leave after each pooled frame.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` naming a number that is out of range, or with refused tails the extent that a box does not divide;
    ///   `.invalidShape` for a grid without tokens or a result too large for 32-bit indices; `.unsupportedInstructionSet`.
    public init(
        frames: Int, grid: GridSize, pool: PoolingWindow, tails: Tails = .refused, tokensBefore: Int = 0, tokensAfter: Int = 0,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try grid.validate("grid")
        for (name, value, least) in [
            ("frames", frames, 0), ("pool.frames", pool.frames, 1), ("pool.rows", pool.rows, 1),
            ("pool.columns", pool.columns, 1), ("tokensBefore", tokensBefore, 0), ("tokensAfter", tokensAfter, 0),
        ] {
            try require(
                value >= least && value < 1 << 31, .invalidArgument, name, expected: "from \(least) to 2³¹ − 1",
                actual: "\(value)")
        }
        if tails == .refused {
            for (name, extent, size) in [
                ("frames", frames, pool.frames), ("grid.rows", grid.rows, pool.rows),
                ("grid.columns", grid.columns, pool.columns),
            ] {
                try require(
                    extent % size == 0, .invalidArgument, name, expected: "a multiple of the pool's \(size)",
                    actual: "\(extent)")
            }
        }
        self.frames = frames
        self.grid = grid
        self.pool = pool
        (self.tokensBefore, self.tokensAfter) = (tokensBefore, tokensAfter)
        pooledFrames = (frames + pool.frames - 1) / pool.frames
        pooledGrid = GridSize(
            rows: (grid.rows - 1) / pool.rows + 1, columns: (grid.columns - 1) / pool.columns + 1)
        let (source, overflow) = frames.multipliedReportingOverflow(by: grid.count)
        let (room, overflowed) = (tokensBefore + tokensAfter + pooledGrid.count)
            .multipliedReportingOverflow(by: pooledFrames)
        try require(
            !overflow && !overflowed && source < 1 << 31 && room < 1 << 31, .invalidShape, "frames",
            expected: "fewer than 2³¹ tokens", actual: "\(frames) frames of \(grid)")
        var boxes = TokenBoxes(frames: frames, grid: grid, pool: pool, pooledGrid: pooledGrid)
        for frame in 0..<pooledFrames {
            boxes.add(frame, after: frame * (tokensBefore + pooledGrid.count + tokensAfter) + tokensBefore)
        }
        means = try RowMeans(
            of: source, offsets: boxes.offsets, rows: boxes.rows, targets: boxes.targets, targetRows: room,
            instructionSet: instructionSet)
    }

    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { means.instructionSet }
    /// Rows of x: tokens before pooling.
    public var sourceRows: Int { means.sourceRows }
    /// Rows of y: tokens after pooling, with the room around each frame.
    public var targetRows: Int { means.targetRows }

    /// Pools the tokens of a video.
    ///
    /// - Parameters:
    ///   - x: `sourceRows` × channels, frame after frame, in raster order.
    ///   - y: `targetRows` × channels. Pooled tokens are overwritten; the room around frames stays as it is.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try means.run(x, into: y, on: pool)
    }

    /// Pools the tokens of a video into a tensor that is reused from call to call. All axes but the last are rows.
    /// - Throws: the errors of `run` with views.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try means.run(x, into: &y, on: pool)
    }

    /// The pooled tokens in a new tensor: `[frames, rows, columns, channels]`, or `[targetRows, channels]`, with zeros in the room, if
    /// frames have room around them.
    /// - Parameter x: `[frames, rows, columns, channels]` or `[frames, tokens, channels]`, or any tensor whose axes but the last count
    ///   the tokens.
    /// - Throws: `.invalidShape` for other extents.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let channels = x.shape.last ?? 0
        let hasRoom = tokensBefore + tokensAfter > 0
        var y = try Tensor<Float>(
            zeros: hasRoom ? [targetRows, channels] : [pooledFrames, pooledGrid.rows, pooledGrid.columns, channels])
        try run(x, into: &y, on: pool)
        return y
    }
}

/// The lists of the boxes of frame after frame.
private struct TokenBoxes {
    let frames: Int
    let grid: GridSize
    let pool: PoolingWindow
    let pooledGrid: GridSize
    var offsets: [Int32] = [0]
    var rows: [Int32] = []
    var targets: [Int32] = []

    /// Adds the boxes of a pooled frame, whose first one has this row of the result.
    mutating func add(_ frame: Int, after first: Int) {
        for row in 0..<pooledGrid.rows {
            for column in 0..<pooledGrid.columns {
                for f in frame * pool.frames..<min(frames, (frame + 1) * pool.frames) {
                    for r in row * pool.rows..<min(grid.rows, (row + 1) * pool.rows) {
                        for c in column * pool.columns..<min(grid.columns, (column + 1) * pool.columns) {
                            rows.append(Int32((f * grid.rows + r) * grid.columns + c))
                        }
                    }
                }
                targets.append(Int32(first + row * pooledGrid.columns + column))
                offsets.append(Int32(rows.count))
            }
        }
    }
}

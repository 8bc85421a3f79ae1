internal import KernelInterface

/// Space-to-channel: the tokens of every b × b cell of a grid side by side, as one token with b² times the channels.
///
///     y[cell (i, j), (r·b + c)·channels + k] = x[token (b·i + r, b·j + c), k]        zeros for tokens outside of the grid
///
/// Grids that b does not divide are padded with zeros below and to the right.
///
/// ```swift
/// let reshape = try SpaceToChannel(grid: GridSize(side: 32), factor: 2, channels: 1152)
/// let y = try reshape(x)  // [frames, 1024, 1152] → [frames, 256, 4608]
/// ```
///
/// Where a layer norm follows, ``SpaceToChannelNorm`` reads the cells where they are and writes nothing but its result.
///
/// - Exactness: elements are moved, bit for bit.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: one pass over memory, O(tokens · channels). Scratch: none.
/// - Source: NVILA (arXiv 2412.04468), `flat_square_2x2` and `flat_square_3x3`.
public struct SpaceToChannel: Hashable, Sendable {
    /// Tokens of a frame.
    public let grid: GridSize
    /// Rows and columns of a cell, b.
    public let factor: Int
    /// Channels of a token.
    public let channels: Int

    /// - Parameters:
    ///   - grid: tokens of a frame.
    ///   - factor: rows and columns of a cell, at least 1.
    ///   - channels: of a token, at least 1.
    /// - Throws: `.invalidShape` for a grid or channels below 1, `.invalidArgument` for a factor below 1 or with which a row of the
    ///   result is too large.
    public init(grid: GridSize, factor: Int, channels: Int) throws(SparseKernelsError) {
        try grid.validate("grid")
        try require(channels >= 1, .invalidShape, "channels", expected: "at least 1", actual: "\(channels)")
        try require(factor >= 1, .invalidArgument, "factor", expected: "at least 1", actual: "\(factor)")
        let (square, overflow) = factor.multipliedReportingOverflow(by: factor)
        let (width, overflowed) = square.multipliedReportingOverflow(by: channels)
        try require(
            !overflow && !overflowed && width < 1 << 40, .invalidArgument, "factor",
            expected: "at most 2⁴⁰ channels of a cell", actual: "\(factor)")
        self.grid = grid
        self.factor = factor
        self.channels = channels
    }

    /// Cells of a frame.
    public var cells: GridSize {
        GridSize(rows: (grid.rows - 1) / factor + 1, columns: (grid.columns - 1) / factor + 1)
    }

    /// Channels of a cell, b² times those of a token.
    public var cellChannels: Int { factor * factor * channels }

    /// Reshapes tokens.
    ///
    /// - Parameters:
    ///   - x: a row of `channels` per token, frame after frame, in raster order.
    ///   - y: a row of `cellChannels` per cell, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees; nothing is written then.
    public func run<Element: AttentionElement>(
        _ x: MatrixView<Element>, into y: consuming MutableMatrixView<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let frames = try frames(ofRows: x.rows, columns: x.columns)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (frames * cells.count, cellChannels))
        if frames == 0 { return }
        let size = MemoryLayout<Element>.size
        // Pointers are used only until this call returns, which borrows or owns the views.
        let call = SpaceToChannelCall(
            reshape: self, source: RowOperand(x).base, sourceStride: x.rowStride * size, target: RowTarget(&y).base,
            targetStride: y.rowStride * size, elementBytes: size,
            tasks: RowTasks(rows: frames * cells.count, bytesPerRow: 2 * cellChannels * size))
        pool.run(call, call.tasks)
    }

    /// Throws unless rows are the tokens of whole frames; returns how many frames.
    func frames(ofRows rows: Int, columns: Int) throws(SparseKernelsError) -> Int {
        try requireColumns("x", columns, expected: channels)
        try require(
            rows % grid.count == 0, .invalidShape, "x", expected: "a multiple of the \(grid.count) tokens of \(grid)",
            actual: "\(rows) rows")
        return rows / grid.count
    }

    /// Extents of the result for a tensor of tokens.
    ///
    /// - Parameter shape: `[…, rows, columns, channels]` or `[…, tokens, channels]`.
    /// - Returns: `[…, rows, columns, channels]` of cells, or `[…, cells, channels]`.
    /// - Throws: `.invalidShape` for other extents.
    public func shape(of shape: [Int]) throws(SparseKernelsError) -> [Int] {
        let (rank, size) = (shape.count, cells)
        if rank >= 3, shape[rank - 3] == grid.rows, shape[rank - 2] == grid.columns, shape[rank - 1] == channels {
            return Array(shape[..<(rank - 3)]) + [size.rows, size.columns, cellChannels]
        }
        try require(
            rank >= 2 && shape[rank - 2] == grid.count && shape[rank - 1] == channels, .invalidShape, "x",
            expected: "[…, \(grid.rows), \(grid.columns), \(channels)] or […, \(grid.count), \(channels)]",
            actual: "\(shape)")
        return Array(shape[..<(rank - 2)]) + [size.count, cellChannels]
    }

    /// Reshapes tokens into a tensor that is reused from call to call.
    /// - Throws: `.invalidShape` unless the extents are those of `shape(of:)`; nothing is written then.
    public func run<Element: AttentionElement>(
        _ x: Tensor<Element>, into y: inout Tensor<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireShape("y", y.shape, shape(of: x.shape))
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
    }

    /// Reshapes tokens, in a new tensor with the extents of `shape(of:)`.
    /// - Throws: `.invalidShape` for other tokens.
    public func callAsFunction<Element: AttentionElement>(
        _ x: Tensor<Element>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Element> {
        var y = try Tensor<Element>(zeros: shape(of: x.shape))
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
        return y
    }
}

/// Moves cells. Strides count bytes.
private struct SpaceToChannelCall: PoolCall {
    let reshape: SpaceToChannel
    let source: UnsafeRawPointer
    let sourceStride: Int
    let target: UnsafeMutableRawPointer
    let targetStride: Int
    let elementBytes: Int
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        for cell in first..<first + tasks.count(task) { move(cell) }
    }

    private func move(_ cell: Int) {
        let (size, grid, b) = (reshape.cells, reshape.grid, reshape.factor)
        let (frame, inFrame) = cell.quotientAndRemainder(dividingBy: size.count)
        let (i, j) = inFrame.quotientAndRemainder(dividingBy: size.columns)
        let tokenBytes = reshape.channels * elementBytes
        let filled = min(b, grid.columns - b * j)
        var place = target + cell * targetStride
        for r in 0..<b {
            let row = b * i + r
            let tokens = row < grid.rows ? filled : 0
            let token = source + ((frame * grid.rows + row) * grid.columns + b * j) * sourceStride
            if sourceStride == tokenBytes {
                if tokens > 0 { place.copyMemory(from: token, byteCount: tokens * tokenBytes) }
            } else {
                for c in 0..<tokens {
                    (place + c * tokenBytes).copyMemory(from: token + c * sourceStride, byteCount: tokenBytes)
                }
            }
            if tokens < b {
                (place + tokens * tokenBytes).initializeMemory(as: UInt8.self, repeating: 0, count: (b - tokens) * tokenBytes)
            }
            place += b * tokenBytes
        }
    }
}

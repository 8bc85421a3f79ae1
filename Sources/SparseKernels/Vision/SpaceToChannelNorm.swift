internal import KernelInterface

/// Space-to-channel followed by layer normalisation, in one pass: the tokens of a cell are read where they are, as one row.
///
///     y[cell] = LayerNorm(SpaceToChannel(x)[cell])
///
/// The reshaped tokens are never in memory, which halves what the two operators move one after the other.
///
/// ```swift
/// let reshape = try SpaceToChannel(grid: GridSize(side: 32), factor: 2, channels: 1152)
/// let norm = try SpaceToChannelNorm(reshape, weight: weight, bias: bias)
/// let y = try norm(x)  // [frames, 1024, 1152] → [frames, 256, 4608]
/// ```
///
/// Tokens and results are of any element type; arithmetic is in `Float`, and the result is rounded once. Padding takes part in mean and
/// variance, as the zeros that it stands for.
///
/// - Exactness: that of ``LayerNorm``, whose rule it follows; sums have one more addition per grid row of a cell. A result of 32 MB or
///   more is stored past the caches, which changes no bit.
/// - Non-finite input makes its own cell NaN and affects no other.
/// - Results are bitwise equal for every number of threads, and those of a cell do not depend on the other cells.
/// - Complexity: one pass over memory, O(tokens · channels).
/// - Scratch: none.
/// - Source: NVILA (arXiv 2412.04468), the start of `mlp_downsample_2x2_fix` and `mlp_downsample_3x3_fix`.
public struct SpaceToChannelNorm: Sendable {
    /// The reshape that is folded into the norm.
    public let reshape: SpaceToChannel
    private let rows: RowNormalization

    /// From here on the lines of y are out of the caches before the next operator reads them: last-level caches have about as much.
    static let streamingByteCount = 32 << 20

    /// - Parameters:
    ///   - reshape: grid, cells and channels.
    ///   - weight: `[cellChannels]`; nil means 1.
    ///   - bias: `[cellChannels]`; nil means 0.
    ///   - epsilon: ε, added to the variance.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a tensor of another shape, `.invalidArgument` for a weight or bias that is not finite or an ε that is
    ///   negative or not finite, `.unsupportedInstructionSet`.
    public init(
        _ reshape: SpaceToChannel, weight: Tensor<Float>? = nil, bias: Tensor<Float>? = nil, epsilon: Float = 1e-5,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        self.reshape = reshape
        rows = try RowNormalization(
            channels: reshape.cellChannels, weight: weight, bias: bias, epsilon: epsilon, subtractsMean: true,
            instructionSet: instructionSet)
    }

    public var epsilon: Float { rows.epsilon }
    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { rows.instructionSet }

    /// Normalises the cells of tokens.
    ///
    /// - Parameters:
    ///   - x: a row of `channels` per token, frame after frame, in raster order.
    ///   - y: a row of `cellChannels` per cell, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let frames = try reshape.frames(ofRows: x.rows, columns: x.columns)
        let (cells, channels) = (frames * reshape.cells.count, reshape.cellChannels)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (cells, channels))
        if cells == 0 { return }
        var arguments = NormalizeCellsArguments(
            x: RowOperand(x), y: RowTarget(&y), gridRows: reshape.grid.rows, gridColumns: reshape.grid.columns,
            factor: reshape.factor, channels: reshape.channels, first: 0, count: 0, epsilon: rows.epsilon)
        // The tensors are properties of the plan, which outlives the call.
        arguments.weight = rows.weight.map { UnsafePointer($0.storage.pointer.assumingMemoryBound(to: Float.self)) }
        arguments.bias = rows.bias.map { UnsafePointer($0.storage.pointer.assumingMemoryBound(to: Float.self)) }
        arguments.streams = Y.storageType == .float32 && cells * channels >= Self.streamingByteCount / 4
        let bytes = channels * (X.storageType.byteCount + Y.storageType.byteCount)
        // A quarter of a megabyte: several cells of a released model, so that one is asked for while the one before is written.
        let perTask = max(1, (1 << 18) / bytes)
        let call = NormalizeCellsCall(kernels: rows.kernels, arguments: arguments, cells: cells, cellsPerTask: perTask)
        pool.run(call, tasks: (cells - 1) / perTask + 1, work: cells * bytes)
    }

    /// Normalises the cells of tokens into a tensor that is reused from call to call.
    ///
    /// - Parameters:
    ///   - x: `[…, rows, columns, channels]` or `[…, tokens, channels]`.
    ///   - y: as `reshape.shape(of:)` says, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the tensor of other extents; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireShape("y", y.shape, reshape.shape(of: x.shape))
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
    }

    /// The normalised cells of tokens, in a new tensor with the extents of `reshape.shape(of:)`.
    /// - Throws: `.invalidShape` for other tokens.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: reshape.shape(of: x.shape))
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), on: pool)
        return y
    }
}

private struct NormalizeCellsCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: NormalizeCellsArguments
    let cells: Int
    let cellsPerTask: Int

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * cellsPerTask
        var part = arguments
        part.first = first
        part.count = min(cellsPerTask, cells - first)
        part.y = arguments.y.from(first)
        kernels.normalizeCells(&part)
    }
}

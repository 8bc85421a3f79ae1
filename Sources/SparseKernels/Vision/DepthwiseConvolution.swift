internal import KernelInterface

/// Convolves every channel of a grid with a square of its own: odd side k, stride 1, zeros outside the grid, so that the extent stays.
///
///     y[r][c] = bias + Σ_i Σ_j weight[i][j] · x[r + i − k/2][c + j − k/2]        per channel
///
/// ```swift
/// let convolution = try DepthwiseConvolution(weight: weight, bias: bias)    // [channels, 1, 7, 7], [channels]
/// let y = try convolution(features)                                         // [rows, columns, channels]
/// ```
///
/// - Exactness: products are added to the bias in `Float`, in the order of i and then j.
/// - Non-finite input reaches the cells that see it, of its own channel, and no others.
/// - Results are bitwise equal for every number of threads, and do not depend on other pictures of a call.
/// - Complexity: rows · columns · channels · k² multiply-adds, in registers: one vector of channels, up to twelve cells. Reading cells
///   from the first-level cache allows 92% of what the multiply-adds allow.
/// - Scratch: `scratchByteCount` per thread.
/// - Source: `torch.nn.functional.conv2d` with as many groups as channels; ConvNeXt (Liu et al., 2022) has k = 7.
public struct DepthwiseConvolution: Sendable {
    public let channels: Int
    /// k.
    public let side: Int
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    /// Per vector of channels: `[k][k][lanes]` and the bias `[lanes]`.
    private let weights: Tensor<Float>
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - weight: `[channels, 1, k, k]`, k odd and at most 63, at least one channel.
    ///   - bias: `[channels]`, or nil for 0.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for tensors of other shapes, `.invalidArgument` for numbers that are not finite,
    ///   `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let shape = weight.shape
        try require(
            shape.count == 4 && shape[0] >= 1 && shape[1] == 1 && shape[2] == shape[3] && shape[2] % 2 == 1 && shape[2] <= 63,
            .invalidShape, "weight", expected: "[channels, 1, k, k], with channels and an odd k up to 63", actual: "\(shape)")
        let (channels, side) = (shape[0], shape[2])
        try weight.requireFinite(named: "weight")
        if let bias {
            try require(bias.shape == [channels], .invalidShape, "bias", expected: "\([channels])", actual: "\(bias.shape)")
            try bias.requireFinite(named: "bias")
        }
        self.channels = channels
        self.side = side
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        let lanes = kernels.sizes.laneCount
        let (blocks, taps) = ((channels + lanes - 1) / lanes, side * side)
        weights = try Tensor([blocks, taps + 1, lanes]) { index in
            let (block, tap, lane) = (index / (lanes * (taps + 1)), index / lanes % (taps + 1), index % lanes)
            let channel = block * lanes + lane
            if channel >= channels { return 0 }
            return tap < taps ? weight[flat: channel * taps + tap] : bias?[flat: channel] ?? 0
        }
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        4
            * DepthwiseScratch.floats(
                rows: DepthwiseScratch.rows, columns: DepthwiseScratch.columns, side: side, laneCount: kernels.sizes.laneCount)
    }

    /// Convolves pictures with any number of axes before their own.
    ///
    /// - Parameters:
    ///   - x: `[…, rows, columns, channels]`. May have no cells.
    ///   - y: the same shape, overwritten. Not the memory of x.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the tensor of another shape; nothing is written then.
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let rank = x.shape.count
        try require(
            rank >= 3 && x.shape[max(rank - 1, 0)] == channels, .invalidShape, "x", expected: "[…, rows, columns, \(channels)]",
            actual: "\(x.shape)")
        try require(y.shape == x.shape, .invalidShape, "y", expected: "\(x.shape)", actual: "\(y.shape)")
        if x.count == 0 { return }
        let grid = GridSize(rows: x.shape[rank - 3], columns: x.shape[rank - 2])
        let source = UnsafePointer(x.storage.pointer.assumingMemoryBound(to: Float.self))
        run(
            source, stride: channels, into: y.uniqueAddress(), stride: channels, grid: grid,
            pictures: x.count / channels / grid.count, on: pool)
    }

    /// Convolves grids of tokens, one after the other: cells in raster order × channels. Columns of a wider matrix do as well.
    ///
    /// - Parameters:
    ///   - x: the cells of whole grids.
    ///   - grid: the extent of each.
    ///   - y: as many cells, overwritten. Not the memory of x.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a grid below 1 × 1, rows that are not whole grids, or naming the matrix of other extents; nothing
    ///   is written then.
    public func run(
        tokens x: MatrixView<Float>, grid: GridSize, into y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try grid.validate("grid")
        try requireColumns("x", x.columns, expected: channels)
        try require(
            x.rows % grid.count == 0, .invalidShape, "x", expected: "whole grids of \(grid.count) rows", actual: "\(x.rows)")
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        if x.rows == 0 { return }
        let targetStride = y.rowStride
        // Pointers are used only until this call returns, which borrows or owns the views.
        run(
            x.span.withUnsafeBufferPointer { $0.baseAddress! }, stride: x.rowStride,
            into: y.span.withUnsafeMutableBufferPointer { $0.baseAddress! }, stride: targetStride, grid: grid,
            pictures: x.rows / grid.count, on: pool)
    }

    /// The convolved pictures in a new tensor. See `run`.
    /// - Throws: `.invalidShape` for a tensor of another shape.
    public func callAsFunction(
        _ x: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: x.shape)
        try run(x, into: &y, on: pool)
        return y
    }

    private func run(
        _ x: UnsafePointer<Float>, stride: Int, into y: UnsafeMutablePointer<Float>, stride targetStride: Int, grid: GridSize,
        pictures: Int, on pool: WorkerPool
    ) {
        let rowParts = (grid.rows + DepthwiseScratch.rows - 1) / DepthwiseScratch.rows
        let columnParts = (grid.columns + DepthwiseScratch.columns - 1) / DepthwiseScratch.columns
        let lanes = kernels.sizes.laneCount
        let blocks = (channels + DepthwiseScratch.vectors * lanes - 1) / (DepthwiseScratch.vectors * lanes)
        let arguments = DepthwiseArguments(
            source: x, sourceRowStride: grid.columns * stride, sourceCellStride: stride, target: y,
            targetRowStride: grid.columns * targetStride, targetCellStride: targetStride, rows: grid.rows,
            columns: grid.columns,
            firstRow: 0, endRow: 0, firstColumn: 0, endColumn: 0, channels: DepthwiseScratch.vectors * lanes,
            side: side,
            // The tensor is a property of the plan, which outlives the call. Scratch comes with the task.
            weights: UnsafePointer(weights.storage.pointer.assumingMemoryBound(to: Float.self)), scratch: y)
        let call = Call(
            arguments: arguments, channels: channels, blocks: blocks, rowParts: rowParts, columnParts: columnParts, grid: grid,
            weightStride: DepthwiseScratch.vectors * (side * side + 1) * lanes, kernels: kernels)
        let (work, overflow) = (pictures * grid.count).multipliedReportingOverflow(by: channels * side * side)
        pool.run(
            call, tasks: pictures * rowParts * columnParts * blocks, work: overflow ? .max : work,
            scratchByteCount: scratchByteCount)
    }

    /// One call. A task is a part of a grid, for some vectors of channels.
    private struct Call: PoolCall {
        let arguments: DepthwiseArguments
        let channels: Int
        let blocks: Int
        let rowParts: Int
        let columnParts: Int
        let grid: GridSize
        let weightStride: Int
        let kernels: any KernelTable.Type

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            // Channels change first: a thread finds the lines next to those that it has just read.
            let (place, block) = task.quotientAndRemainder(dividingBy: blocks)
            let (rowPlace, column) = place.quotientAndRemainder(dividingBy: columnParts)
            let (picture, row) = rowPlace.quotientAndRemainder(dividingBy: rowParts)
            var part = arguments
            let channel = block * arguments.channels
            part.source += picture * grid.rows * arguments.sourceRowStride + channel
            part.target += picture * grid.rows * arguments.targetRowStride + channel
            part.channels = min(arguments.channels, channels - channel)
            part.weights += block * weightStride
            // Parts of equal size.
            (part.firstRow, part.endRow) = (row * grid.rows / rowParts, (row + 1) * grid.rows / rowParts)
            (part.firstColumn, part.endColumn) = (
                column * grid.columns / columnParts, (column + 1) * grid.columns / columnParts
            )
            part.scratch = scratch.assumingMemoryBound(to: Float.self)
            kernels.convolveDepthwise(&part)
        }
    }
}

internal import KernelInterface

/// Columns of matrices, between a wide matrix and the compact one of a ``ChannelSubset``.
///
/// ```swift
/// let moves = try ColumnMoves()
/// try moves.gather(x, kept, into: compact)     // compact[:, t] = x[:, kept.indices[t]]
/// try moves.scatter(compact, kept, into: y)    // y[:, kept.indices[t]] = compact[:, t]; other columns are 0
/// ```
///
/// - Complexity: one pass over what is read and what is written.
/// - Source: SparseLoRA (arXiv 2506.16500): sliced outputs of query, key and value become rows of full width again.
public struct ColumnMoves: Sendable {
    /// The instruction set that the moves execute.
    public let instructionSet: InstructionSet

    private let kernels: any KernelTable.Type

    /// - Parameter instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.unsupportedInstructionSet`.
    public init(instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Copies the columns of a subset: y[:, t] = x[:, I_t].
    ///
    /// - Parameters:
    ///   - x: `[rows, width of the subset]`.
    ///   - channels: the columns.
    ///   - y: `[rows, count of the subset]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the subset; nothing is written then.
    public func gather(
        _ x: MatrixView<Float>, _ channels: ChannelSubset, into y: consuming MutableMatrixView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels.width)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels.count))
        let rows = x.rows
        move(RowOperand(x), channels, into: RowTarget(&y), rows: rows, .gather, on: pool)
    }

    /// Copies columns to those of a subset: y[:, I_t] = x[:, t].
    ///
    /// - Parameters:
    ///   - x: `[rows, count of the subset]`.
    ///   - channels: the columns of y.
    ///   - y: `[rows, width of the subset]`. Its other columns become 0, unless `keepsOthers`.
    ///   - keepsOthers: whether the other columns of y stay as they are.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the subset; nothing is written then.
    public func scatter(
        _ x: MatrixView<Float>, _ channels: ChannelSubset, into y: consuming MutableMatrixView<Float>,
        keepsOthers: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels.count)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels.width))
        let rows = x.rows
        move(
            RowOperand(x), channels, into: RowTarget(&y), rows: rows, keepsOthers ? .scatterAmongOthers : .scatter, on: pool)
    }

    private func move(
        _ x: RowOperand, _ channels: ChannelSubset, into y: RowTarget, rows: Int, _ direction: ColumnDirection,
        on pool: WorkerPool
    ) {
        channels.indices.withUnsafeBufferPointer { list in
            let width = direction == .gather ? channels.count : channels.width
            if width == 0 { return }
            let arguments = MoveColumnsArguments(
                source: x.base.assumingMemoryBound(to: Float.self), sourceStride: x.stride,
                target: y.base.assumingMemoryBound(to: Float.self), targetStride: y.stride, rows: rows,
                columns: list.baseAddress ?? UnsafePointer(addressOfNothing().assumingMemoryBound(to: Int32.self)),
                count: channels.count, width: channels.width, direction: direction)
            let call = ColumnMoveCall(
                arguments: arguments, taskRows: max(1, ColumnMoveCall.taskElements / width), kernels: kernels)
            pool.run(call, tasks: (rows + call.taskRows - 1) / call.taskRows, work: rows * width * 4)
        }
    }
}

/// Moves columns of some rows per task.
private struct ColumnMoveCall: PoolCall {
    let arguments: MoveColumnsArguments
    let taskRows: Int
    let kernels: any KernelTable.Type

    /// Elements that a task writes: some ten microseconds.
    static let taskElements = 1 << 14

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * taskRows
        var part = arguments
        part.source += first * part.sourceStride
        part.target += first * part.targetStride
        part.rows = min(taskRows, arguments.rows - first)
        kernels.moveColumns(&part)
    }
}

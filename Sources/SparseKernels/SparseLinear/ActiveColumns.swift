internal import KernelInterface

/// The channels that some rows keep, and products with them: what stands between a gate and the layers of the channels that it leaves.
///
/// ```swift
/// let active = try ActiveColumns()
/// try active.list(activated, into: &kept)          // channels that are not 0 in some row
/// try up.run(x: x, channels: kept, y: compact)
/// try active.gate(compact, by: activated, kept)    // compact[:, t] *= activated[:, kept.indices[t]]
/// ```
///
/// - Exactness: one rounding per product. A gate of 0 gives 0, whatever it meets.
/// - Complexity: one pass over what is read and written, on the caller's thread for the list.
/// - Scratch: 4 bytes per column for the list, kept by the pool.
/// - Source: CATS (arXiv 2404.08763), section 4; Polar Sparsity (arXiv 2505.14884) for the union over a batch.
public struct ActiveColumns: Sendable {
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameter instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.unsupportedInstructionSet`.
    public init(instructionSet: InstructionSet? = nil) throws(SparseKernelsError) {
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Lists the columns that are not 0 in some row. NaN is not 0.
    ///
    /// - Parameters:
    ///   - x: `[rows, channels]`; no rows give no channels.
    ///   - channels: overwritten. Its memory is used again, so that a list that lives from call to call allocates once.
    ///   - pool: the pool whose scratch is used.
    /// - Throws: `.invalidShape` for 2³¹ columns or more.
    public func list(
        _ x: MatrixView<Float>, into channels: inout ChannelSubset, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let (rows, columns) = (x.rows, x.columns)
        try require(
            columns <= Int(Int32.max), .invalidShape, "x", expected: "fewer than 2³¹ columns", actual: "\(columns)")
        let operand = RowOperand(x)
        pool.withWorkspace(byteCount: max(4, columns * 4)) { memory in
            let indices = memory.assumingMemoryBound(to: Int32.self)
            var arguments = ActiveColumnsArguments(
                x: operand.base.assumingMemoryBound(to: Float.self), stride: operand.stride, rows: rows, columns: columns,
                indices: indices)
            let count = kernels.listActiveColumns(&arguments)
            channels.replace(with: UnsafeBufferPointer(start: indices, count: count), of: columns)
        }
    }

    /// Lists the columns of a tensor `[rows, channels]` that are not 0 in some row.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for another rank.
    public func list(
        _ x: Tensor<Float>, into channels: inout ChannelSubset, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) { try list(x.matrixView(named: "x"), into: &channels, on: pool) }

    /// Multiplies compact rows with columns of wide ones: y[:, t] = gate[:, I_t] · y[:, t].
    ///
    /// - Parameters:
    ///   - y: `[rows, count of the subset]`, overwritten.
    ///   - gate: `[rows, width of the subset]`.
    ///   - channels: the columns.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the subset; nothing is written then.
    public func gate(
        _ y: consuming MutableMatrixView<Float>, by gate: MatrixView<Float>, _ channels: ChannelSubset,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("gate", gate.columns, expected: channels.width)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (gate.rows, channels.count))
        let (rows, gate, y) = (gate.rows, RowOperand(gate), RowTarget(&y))
        if rows == 0 || channels.count == 0 { return }
        channels.indices.withUnsafeBufferPointer { list in
            let arguments = GateColumnsArguments(
                gate: gate.base.assumingMemoryBound(to: Float.self), gateStride: gate.stride, columns: list.baseAddress!,
                count: list.count, y: y.base.assumingMemoryBound(to: Float.self), yStride: y.stride, rows: rows)
            let tasks = RowTasks(rows: rows, bytesPerRow: list.count * 16)
            pool.run(GateColumnsCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
        }
    }
}

private struct GateColumnsCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: GateColumnsArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.gate += first * arguments.gateStride
        part.y += first * arguments.yStride
        part.rows = tasks.count(task)
        kernels.gateListedColumns(&part)
    }
}

extension ChannelSubset {
    /// Becomes another subset, in the memory that it has. The list is known to be ascending and in the width.
    mutating func replace(with list: UnsafeBufferPointer<Int32>, of width: Int) {
        indices.removeAll(keepingCapacity: true)
        // Lists change from token to token, and none is longer than this.
        if indices.capacity < width { indices.reserveCapacity(width) }
        indices.append(contentsOf: list)
        self.width = width
    }
}

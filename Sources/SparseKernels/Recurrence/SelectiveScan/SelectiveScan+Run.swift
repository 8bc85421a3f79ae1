internal import KernelInterface

extension SelectiveScan {
    /// Scans the tokens of a packed batch and updates their states.
    ///
    /// - Parameters:
    ///   - x: `[tokens, channels]`, of any row stride, as are all operands. The sequences lie one after the other.
    ///   - delta: `[tokens, channels]`, before bias and softplus.
    ///   - b: `[tokens, groups · stateSize]`.
    ///   - c: `[tokens, groups · stateSize]`.
    ///   - z: the gate, `[tokens, channels]`; nil means that y is not gated.
    ///   - y: `[tokens, channels]`, overwritten.
    ///   - direction: the order of the tokens of each sequence.
    ///   - batch: the lengths of the sequences and the slots of their states.
    ///   - states: one matrix of `stateSize` × `channels` per slot, read and written.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan or the batch, `.invalidArgument` for a slot that is
    ///   not there and for a plan with fixed B and C; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, delta: MatrixView<X>, b: MatrixView<X>, c: MatrixView<X>, gate z: MatrixView<X>? = nil,
        into y: consuming MutableMatrixView<Y>, direction: RecurrenceDirection = .forward, batch: PackedSequences,
        states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            !hasFixedProjections, .invalidArgument, "b", expected: "no operand, because the plan has a fixed B",
            actual: "\(b.rows) × \(b.columns)")
        try check(x: x, delta: delta, gate: z, batch: batch, states: states)
        try requireMatrix("b", rows: b.rows, columns: b.columns, expected: (x.rows, groups * stateSize))
        try requireMatrix("c", rows: c.rows, columns: c.columns, expected: (x.rows, groups * stateSize))
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        if x.rows == 0 { return }
        // Pointers are used only until this call returns, which borrows or owns the views.
        let target = RowTarget(&y)
        var call = ScanCall(
            self, x: RowOperand(x), delta: RowOperand(delta), y: target, direction: direction, batch: batch, states: states)
        call.b = RowOperand(b)
        call.c = RowOperand(c)
        if let z { call.gate = RowOperand(z) }
        call.run(on: pool)
    }

    /// Scans the tokens of a packed batch, with the fixed B and C of the plan, and updates their states.
    ///
    /// - Parameters: those of `run` with B and C.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan or the batch, `.invalidArgument` for a slot that is
    ///   not there and for a plan without fixed B and C; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, delta: MatrixView<X>, gate z: MatrixView<X>? = nil, into y: consuming MutableMatrixView<Y>,
        direction: RecurrenceDirection = .forward, batch: PackedSequences, states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            hasFixedProjections, .invalidArgument, "b", expected: "B and C of every token, because the plan has none",
            actual: "a call without them")
        try check(x: x, delta: delta, gate: z, batch: batch, states: states)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        if x.rows == 0 { return }
        let target = RowTarget(&y)
        var call = ScanCall(
            self, x: RowOperand(x), delta: RowOperand(delta), y: target, direction: direction, batch: batch, states: states)
        if let z { call.gate = RowOperand(z) }
        call.run(on: pool)
    }

    private func check<X: AttentionElement>(
        x: MatrixView<X>, delta: MatrixView<X>, gate: MatrixView<X>?, batch: PackedSequences, states: RecurrentStates
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try requireMatrix("delta", rows: delta.rows, columns: delta.columns, expected: (x.rows, channels))
        if let gate { try requireMatrix("gate", rows: gate.rows, columns: gate.columns, expected: (x.rows, channels)) }
        try requireFit(states)
        try batch.requireFit(tokens: x.rows, named: "x", in: states)
    }
}

/// One call of `SelectiveScan`. A task is a block of channels of a sequence; those of a block follow each other, because they share
/// its parameters.
private struct ScanCall: PoolCall {
    let scan: SelectiveScan
    let x: RowOperand
    let delta: RowOperand
    let y: RowTarget
    let direction: RecurrenceDirection
    let batch: PackedSequences
    let states: UnsafeMutableRawPointer
    let bytesPerSlot: Int
    let stateType: StorageType
    var b: RowOperand
    var c: RowOperand
    var gate: RowOperand?

    init(
        _ scan: SelectiveScan, x: RowOperand, delta: RowOperand, y: RowTarget, direction: RecurrenceDirection,
        batch: PackedSequences, states: RecurrentStates
    ) {
        self.scan = scan
        self.x = x
        self.delta = delta
        self.y = y
        self.direction = direction
        self.batch = batch
        // The caller holds the states until the call returns.
        self.states = states.pointer
        bytesPerSlot = states.bytesPerSlot
        stateType = states.storageType
        b = x
        c = x
    }

    func run(on pool: WorkerPool) {
        let tasks = batch.lengths.count * scan.weights.blockCount
        // An exponential and what follows takes as long as about eight multiply-adds.
        let (perToken, overflow) = (scan.channels * scan.stateSize).multipliedReportingOverflow(by: 8)
        let (work, overflowed) = perToken.multipliedReportingOverflow(by: batch.tokenCount)
        pool.run(
            self, tasks: tasks, work: overflow || overflowed ? .max : work, scratchByteCount: scan.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (block, sequence) = task.quotientAndRemainder(dividingBy: batch.lengths.count)
        let tokens = batch.lengths[sequence]
        if tokens == 0 { return }
        let isForward = direction == .forward
        let first = isForward ? batch.starts[sequence] : batch.starts[sequence + 1] - 1
        let channels = scan.weights.channels(of: block)
        let column = scan.weights.group(of: block) * scan.stateSize
        // The parameters are set below.
        let nothing = UnsafePointer(scratch.assumingMemoryBound(to: Float.self))
        var arguments = ScanArguments(
            x: x.scanned(from: first, column: channels.lowerBound, isForward),
            delta: delta.scanned(from: first, column: channels.lowerBound, isForward),
            b: b.scanned(from: first, column: column, isForward), c: c.scanned(from: first, column: column, isForward),
            y: y.scanned(from: first, column: channels.lowerBound, isForward), tokens: tokens, channels: channels.count,
            stateSize: scan.stateSize, decays: nothing, fastest: nothing,
            states: states + batch.slots[sequence] * bytesPerSlot + channels.lowerBound * stateType.byteCount,
            stateStride: scan.channels, stateType: stateType, scratch: scratch.assumingMemoryBound(to: Float.self))
        scan.weights.fill(&arguments, block: block)
        arguments.appliesSoftplus = scan.appliesSoftplus
        if let gate {
            arguments.hasGate = true
            arguments.gate = gate.scanned(from: first, column: channels.lowerBound, isForward)
        }
        tokens == 1 ? scan.kernels.stepScan(&arguments) : scan.kernels.scanTokens(&arguments)
    }
}

extension RowOperand {
    /// The rows from `row` on, or back from it, and the columns from `column` on.
    fileprivate func scanned(from row: Int, column: Int, _ isForward: Bool) -> RowOperand {
        var rows = from(row)
        rows.base += column * type.byteCount
        if !isForward { rows.stride = -stride }
        return rows
    }
}

extension RowTarget {
    fileprivate func scanned(from row: Int, column: Int, _ isForward: Bool) -> RowTarget {
        var rows = from(row).from(column: column)
        if !isForward { rows.stride = -stride }
        return rows
    }
}

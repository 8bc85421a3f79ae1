internal import KernelInterface

/// What RMSNorm and LayerNorm share: rows divided by their root mean square, or by their deviation after subtracting their mean.
struct RowNormalization: Sendable {
    let channels: Int
    let weight: Tensor<Float>?
    let bias: Tensor<Float>?
    let epsilon: Float
    let subtractsMean: Bool
    let instructionSet: InstructionSet
    let kernels: any KernelTable.Type

    init(
        channels: Int, weight: Tensor<Float>?, bias: Tensor<Float>?, epsilon: Float, subtractsMean: Bool,
        instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        try require(channels >= 1, .invalidShape, "channels", expected: "at least 1", actual: "\(channels)")
        for (name, tensor) in [("weight", weight), ("bias", bias)] {
            guard let tensor else { continue }
            try require(
                tensor.shape == [channels], .invalidShape, name, expected: "\([channels])", actual: "\(tensor.shape)")
            try tensor.requireFinite(named: name)
        }
        try require(
            epsilon >= 0 && epsilon.isFinite, .invalidArgument, "epsilon", expected: "0 or more, and finite",
            actual: "\(epsilon)")
        self.channels = channels
        self.weight = weight
        self.bias = bias
        self.epsilon = epsilon
        self.subtractsMean = subtractsMean
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        if x.rows == 0 { return }
        let target = RowTarget(&y)
        run(arguments(x: RowOperand(x), y: target, rows: x.rows), on: pool)
    }

    func run<X: AttentionElement, Y: AttentionElement>(
        adding x: MatrixView<X>, to residual: consuming MutableMatrixView<Float>, into y: consuming MutableMatrixView<Y>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try requireMatrix("residual", rows: residual.rows, columns: residual.columns, expected: (x.rows, channels))
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        if x.rows == 0 { return }
        let (sums, target) = (RowTarget(&residual), RowTarget(&y))
        var arguments = arguments(x: RowOperand(x), y: target, rows: x.rows)
        arguments.residual = sums.base.assumingMemoryBound(to: Float.self)
        arguments.residualStride = sums.stride
        run(arguments, on: pool)
    }

    func normalize<Element: AttentionElement>(
        _ x: consuming MutableTensorView<Element>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try require(
            x.channels == channels, .invalidShape, "x", expected: "\(channels) channels", actual: "\(x.channels)")
        if x.tokens == 0 { return }
        let operand = MutableAttentionOperand(addressing: &x)
        let lines = RowLines(operand.geometry)
        let call = NormalizeLinesCall(
            kernels: kernels, operand: operand, lines: lines,
            arguments: arguments(
                x: RowOperand(base: UnsafeRawPointer(operand.base), stride: lines.rowStride, type: operand.type),
                y: RowTarget(base: operand.base, stride: lines.rowStride, type: operand.type), rows: 0))
        let bytes = channels * 2 * operand.type.byteCount
        pool.run(call, tasks: lines.taskCount, work: lines.work(bytesPerRow: bytes))
    }

    private func arguments(x: RowOperand, y: RowTarget, rows: Int) -> NormalizeArguments {
        var arguments = NormalizeArguments(x: x, y: y, rows: rows, channels: channels, epsilon: epsilon)
        arguments.subtractsMean = subtractsMean
        // The tensors are properties of the plan, which outlives the call.
        arguments.weight = weight.map { UnsafePointer($0.storage.pointer.assumingMemoryBound(to: Float.self)) }
        arguments.bias = bias.map { UnsafePointer($0.storage.pointer.assumingMemoryBound(to: Float.self)) }
        return arguments
    }

    private func run(_ arguments: NormalizeArguments, on pool: WorkerPool) {
        let bytes = arguments.x.type.byteCount + arguments.y.type.byteCount + (arguments.residual == nil ? 0 : 8)
        let tasks = RowTasks(rows: arguments.rows, bytesPerRow: channels * bytes)
        pool.run(NormalizeCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
    }
}

private struct NormalizeCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: NormalizeArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.x = arguments.x.from(first)
        part.y = arguments.y.from(first)
        if let residual = arguments.residual { part.residual = residual + first * arguments.residualStride }
        part.rows = tasks.count(task)
        kernels.normalizeRows(&part)
    }
}

private struct NormalizeLinesCall: PoolCall {
    let kernels: any KernelTable.Type
    let operand: MutableAttentionOperand
    let lines: RowLines
    let arguments: NormalizeArguments

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let part = lines.part(task)
        var arguments = arguments
        let base = operand.row(head: part.head, token: part.token)
        arguments.x.base = UnsafeRawPointer(base)
        arguments.y.base = base
        arguments.rows = part.rows
        kernels.normalizeRows(&arguments)
    }
}

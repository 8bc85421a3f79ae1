internal import KernelInterface

/// The gradients of ``RMSNorm``: of y = x · r · w with r = 1 / √(mean x² + ε).
///
///     dx = r · (w · dy − x · r² · mean(x · w · dy))        dw = Σ over rows of dy · x · r
///
/// ```swift
/// let gradient = try RMSNormGradient(weight: weight, epsilon: 1e-6)
/// try gradient.run(x: hidden, outputGradient: dy, inputGradient: &dHidden, accumulates: true)
/// ```
///
/// With `accumulates`, the gradient is added to that of the residual stream, which skips the norm.
///
/// - Exactness: sums are those of ``RMSNorm``; dx is within (10 + n/64L)·2⁻²³ of r · (|w · dy| + |x| · r² · mean |x · w · dy|) for n channels
///   and vectors of L lanes.
/// - Non-finite input affects its own row of dx, and the whole of dw.
/// - Results are bitwise equal for every number of threads. Those of dx do not depend on other rows.
/// - Complexity: one pass over memory, O(rows · channels).
/// - Scratch: none; for dw, a workspace of `channels` floats for every 64th part of the rows.
/// - Source: the derivative; Zhang and Sennrich, 2019 (arXiv 1910.07467).
public struct RMSNormGradient: Sendable {
    /// Elements of a row.
    public let channels: Int
    public let epsilon: Float
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let weight: Tensor<Float>
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - weight: `[channels]`, at least one: that of the norm.
    ///   - epsilon: ε of the norm.
    ///   - addsOne: whether the norm multiplies by 1 + weight, as Gemma does.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a weight of another rank or without channels, `.invalidArgument` for a weight that is not finite
    ///   or an ε that is negative or not finite, `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, epsilon: Float, addsOne: Bool = false, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            weight.shape.count == 1 && weight.count >= 1, .invalidShape, "weight", expected: "[channels], at least 1",
            actual: "\(weight.shape)")
        try weight.requireFinite(named: "weight")
        try require(
            epsilon >= 0 && epsilon.isFinite, .invalidArgument, "epsilon", expected: "0 or more, and finite",
            actual: "\(epsilon)")
        channels = weight.count
        self.epsilon = epsilon
        self.weight = addsOne ? try Tensor(weight.shape) { 1 + weight[flat: $0] } : weight
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Computes dx.
    ///
    /// - Parameters:
    ///   - x: rows × channels, the input of the norm.
    ///   - outputGradient: dy, rows × channels.
    ///   - inputGradient: dx, rows × channels, overwritten, or added to.
    ///   - accumulates: whether dx is added to what is there.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run(
        x: MatrixView<Float>, outputGradient: MatrixView<Float>, inputGradient: consuming MutableMatrixView<Float>,
        accumulates: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(x, outputGradient, inputGradient.rows, inputGradient.columns)
        let target = RowTarget(&inputGradient)
        run(arguments(x, outputGradient, target, accumulates), nil, on: pool)
    }

    /// Computes dx, and adds the gradient of the weight to `weightGradient`.
    ///
    /// - Parameters:
    ///   - x: rows × channels, the input of the norm.
    ///   - outputGradient: dy, rows × channels.
    ///   - inputGradient: dx, rows × channels, overwritten, or added to.
    ///   - accumulates: whether dx is added to what is there.
    ///   - weightGradient: `[channels]`. dw is added to it: first over the rows of each of up to 64 parts, then over the parts.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run(
        x: MatrixView<Float>, outputGradient: MatrixView<Float>, inputGradient: consuming MutableMatrixView<Float>,
        accumulates: Bool = false, weightGradient: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(x, outputGradient, inputGradient.rows, inputGradient.columns)
        try require(
            weightGradient.shape.count == 1 && weightGradient.count == channels, .invalidShape, "weightGradient",
            expected: "[\(channels)]", actual: "\(weightGradient.shape)")
        let target = RowTarget(&inputGradient)
        run(arguments(x, outputGradient, target, accumulates), weightGradient.uniqueAddress(), on: pool)
    }

    private func check(
        _ x: MatrixView<Float>, _ dy: MatrixView<Float>, _ rows: Int, _ columns: Int
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try requireMatrix("outputGradient", rows: dy.rows, columns: dy.columns, expected: (x.rows, channels))
        try requireMatrix("inputGradient", rows: rows, columns: columns, expected: (x.rows, channels))
    }

    private func arguments(
        _ x: MatrixView<Float>, _ dy: MatrixView<Float>, _ dx: RowTarget, _ accumulates: Bool
    ) -> NormGradientArguments {
        // The weight is a property of the plan, which outlives the call.
        var arguments = NormGradientArguments(
            x: RowOperand(x), outputGradient: RowOperand(dy), inputGradient: dx, rows: x.rows, channels: channels,
            epsilon: epsilon, weight: weight.address)
        arguments.accumulates = accumulates
        return arguments
    }

    private func run(
        _ arguments: NormGradientArguments, _ weightGradient: UnsafeMutablePointer<Float>?, on pool: WorkerPool
    ) {
        if arguments.rows == 0 { return }
        let bytes = channels * (arguments.accumulates ? 16 : 12)
        guard let weightGradient else {
            let tasks = RowTasks(rows: arguments.rows, bytesPerRow: bytes)
            let call = NormGradientCall(
                kernels: kernels, arguments: arguments, rowsPerTask: tasks.rowsPerTask, partials: nil)
            pool.run(call, tasks)
            return
        }
        // At most 64 parts, so that the workspace is small, and at least 16 rows each, so that it is seldom added up.
        let rowsPerTask = max(16, (arguments.rows + 63) / 64)
        let parts = (arguments.rows + rowsPerTask - 1) / rowsPerTask
        pool.withWorkspace(byteCount: parts * channels * 4) { workspace in
            let partials = workspace.assumingMemoryBound(to: Float.self)
            let call = NormGradientCall(
                kernels: kernels, arguments: arguments, rowsPerTask: rowsPerTask, partials: partials)
            pool.run(call, tasks: parts, work: arguments.rows * bytes)
            for part in 0..<parts {
                var sum = AddRowsArguments(
                    x: partials + part * channels, xStride: channels, y: weightGradient, yStride: channels, rows: 1,
                    columns: channels)
                kernels.addScaledRows(&sum)
            }
        }
    }
}

private struct NormGradientCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: NormGradientArguments
    let rowsPerTask: Int
    /// A row of sums per task.
    let partials: UnsafeMutablePointer<Float>?

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = task * rowsPerTask
        var part = arguments
        part.x = arguments.x.from(first)
        part.outputGradient = arguments.outputGradient.from(first)
        part.inputGradient = arguments.inputGradient.from(first)
        part.rows = min(rowsPerTask, arguments.rows - first)
        if let partials {
            let sums = partials + task * arguments.channels
            clear(sums, arguments.channels)
            part.weightGradient = sums
        }
        kernels.differentiateNorm(&part)
    }
}

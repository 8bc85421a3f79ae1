internal import KernelInterface

/// The gradients of ``GatedActivation``: of h = f(gate) · up, or of h = f(x).
///
///     dgate = dh · up · f′(gate)        dup = dh · f(gate)
///
/// ```swift
/// let gradient = try GatedActivationGradient(.silu)
/// try gradient.run(gate: gate, up: up, outputGradient: dh, gateGradient: &dGate, upGradient: &dUp)
/// ```
///
/// f and f′ come from one exponential. Gate and up may be column slices of one matrix, and so may their gradients.
///
/// - Exactness: of f′, absolutely, with M = x²/2: SiLU 6·10⁻⁷ + 10⁻⁷·|x|·|f′|; GELU 10⁻⁶ (1 + M); GELU by tanh 10⁻⁶ (1 + |x|); ReLU and ReLU²
///   exact. The derivative of ReLU at 0 is 0. The products are rounded after that.
/// - Non-finite input affects the elements that it stands in, and no others. An infinite gate gives NaN where the formula has ∞ · 0, as in
///   torch.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: one pass over memory, O(rows · columns).
/// - Scratch: none.
/// - Source: the derivatives of the functions; Shazeer, 2020 (arXiv 2002.05202) for the product.
public struct GatedActivationGradient: Sendable {
    public let function: GatedActivation.Function
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - function: f.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.unsupportedInstructionSet`.
    public init(
        _ function: GatedActivation.Function, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        self.function = function
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Computes the gradients of h = f(gate) · up.
    ///
    /// - Parameters:
    ///   - gate: rows × columns, as in the forward pass.
    ///   - up: as many rows and columns.
    ///   - outputGradient: dh, as many rows and columns.
    ///   - gateGradient: as many rows and columns, overwritten.
    ///   - upGradient: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents than `gate`; nothing is written then.
    public func run(
        gate: MatrixView<Float>, up: MatrixView<Float>, outputGradient: MatrixView<Float>,
        gateGradient: consuming MutableMatrixView<Float>, upGradient: consuming MutableMatrixView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let extents = (gate.rows, gate.columns)
        try requireMatrix("up", rows: up.rows, columns: up.columns, expected: extents)
        try requireMatrix(
            "outputGradient", rows: outputGradient.rows, columns: outputGradient.columns, expected: extents)
        try requireMatrix("gateGradient", rows: gateGradient.rows, columns: gateGradient.columns, expected: extents)
        try requireMatrix("upGradient", rows: upGradient.rows, columns: upGradient.columns, expected: extents)
        let (gateTarget, upTarget) = (RowTarget(&gateGradient), RowTarget(&upGradient))
        run(
            ActivationGradientArguments(
                gate: RowOperand(gate), up: RowOperand(up), hasUp: true, outputGradient: RowOperand(outputGradient),
                gateGradient: gateTarget, upGradient: upTarget, rows: gate.rows, columns: gate.columns,
                function: function.kernel), on: pool)
    }

    /// Computes the gradient of h = f(x): dx = dh · f′(x).
    ///
    /// - Parameters:
    ///   - x: rows × columns, as in the forward pass.
    ///   - outputGradient: dh, as many rows and columns.
    ///   - inputGradient: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents than `x`; nothing is written then.
    public func run(
        _ x: MatrixView<Float>, outputGradient: MatrixView<Float>, inputGradient: consuming MutableMatrixView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let extents = (x.rows, x.columns)
        try requireMatrix(
            "outputGradient", rows: outputGradient.rows, columns: outputGradient.columns, expected: extents)
        try requireMatrix("inputGradient", rows: inputGradient.rows, columns: inputGradient.columns, expected: extents)
        let target = RowTarget(&inputGradient)
        run(
            ActivationGradientArguments(
                gate: RowOperand(x), up: RowOperand(x), hasUp: false, outputGradient: RowOperand(outputGradient),
                gateGradient: target, upGradient: target, rows: x.rows, columns: x.columns, function: function.kernel),
            on: pool)
    }

    private func run(_ arguments: ActivationGradientArguments, on pool: WorkerPool) {
        if arguments.rows == 0 || arguments.columns == 0 { return }
        // Rows are read and written once; exponentials hide behind that.
        let tasks = RowTasks(rows: arguments.rows, bytesPerRow: arguments.columns * (arguments.hasUp ? 20 : 16))
        pool.run(ActivationGradientCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
    }
}

private struct ActivationGradientCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: ActivationGradientArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.gate = arguments.gate.from(first)
        part.up = arguments.up.from(first)
        part.outputGradient = arguments.outputGradient.from(first)
        part.gateGradient = arguments.gateGradient.from(first)
        part.upGradient = arguments.upGradient.from(first)
        part.rows = tasks.count(task)
        kernels.differentiateActivation(&part)
    }
}

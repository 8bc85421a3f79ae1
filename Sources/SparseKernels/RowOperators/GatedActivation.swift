package import KernelInterface

/// An activation function of rows, alone or times other rows: y = f(gate) · up, as in the feed-forward layers of language models.
///
/// ```swift
/// let gated = try GatedActivation(.silu)
/// try gated.run(gate: gate.matrixView(), up: up.matrixView(), into: y.mutableMatrixView())
/// ```
///
/// Gate and up may be column slices of one matrix, the output of a layer that computes both: `MatrixView` takes a row stride, and
/// the calls with `halvesOf` cut one matrix.
///
/// - Exactness: of f, relative to f(x), with M = x²/2: SiLU 6·10⁻⁷ + 2·10⁻⁸·|x| for x ≥ −87; GELU 8·10⁻⁷ + 10⁻⁷·M (2·10⁻⁷·M on the portable
///   level) for x ≥ −13, and smaller than 10⁻³⁷ below; GELU by tanh 4·10⁻⁷·|x| absolutely; ReLU exact, ReLU² one rounding. The product with
///   `up` and the rounding to the type of y follow.
/// - Non-finite input: NaN gives NaN, and ∞ the limit of f. −∞ gives 0 for ReLU and ReLU², NaN for GELU (−∞ · 0, as in torch), and −∞ for
///   SiLU, whose quotient is capped.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: one pass over memory, O(rows · columns).
/// - Scratch: none.
/// - Source: Shazeer, 2020 (arXiv 2002.05202); `ACT2FN` of Hugging Face transformers, whose names are `silu`, `gelu`, `gelu_pytorch_tanh`,
///   `relu` and `relu2`. The threshold is that of CATS (arXiv 2404.08763).
public struct GatedActivation: Sendable {
    /// A function of one number.
    public enum Function: String, Hashable, Sendable, CaseIterable {
        /// x / (1 + e⁻ˣ), also called swish.
        case silu
        /// x · Φ(x) = ½ x (1 + erf(x / √2)).
        case gelu
        /// ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation that Gemma and GPT-2 have.
        case geluTanh
        /// max(x, 0).
        case relu
        /// max(x, 0)², as in Primer and Nemotron.
        case reluSquared
    }

    public let function: Function
    /// Where |f| is at most this, results are exactly 0, whatever `up` is; nil means that nothing is small. NaN never is.
    public let threshold: Float?
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - function: f.
    ///   - threshold: results are 0 where |f| is at most this, finite and 0 or more; nil means none.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a threshold that is negative or not finite; `.unsupportedInstructionSet`.
    public init(
        _ function: Function, threshold: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        if let threshold {
            try require(
                threshold >= 0 && threshold.isFinite, .invalidArgument, "threshold", expected: "finite, 0 or more",
                actual: "\(threshold)")
        }
        self.function = function
        self.threshold = threshold
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Computes y = f(gate) · up.
    ///
    /// - Parameters:
    ///   - gate: rows × columns.
    ///   - up: as many rows and columns.
    ///   - y: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents than `gate`; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        gate: MatrixView<X>, up: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("up", rows: up.rows, columns: up.columns, expected: (gate.rows, gate.columns))
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (gate.rows, gate.columns))
        run(gate: RowOperand(gate), up: RowOperand(up), y: RowTarget(&y), rows: gate.rows, columns: gate.columns, on: pool)
    }

    /// Computes y = f(x).
    ///
    /// - Parameters:
    ///   - x: rows × columns.
    ///   - y: as many rows and columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other extents of y than of x; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, x.columns))
        run(gate: RowOperand(x), up: nil, y: RowTarget(&y), rows: x.rows, columns: x.columns, on: pool)
    }

    /// Computes y = f(gate) · up, where gate and up are the left and the right half of one matrix.
    ///
    /// - Parameters:
    ///   - x: rows × 2·columns.
    ///   - y: rows × columns, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for a y that does not have half as many columns as x; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        halvesOf x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            x.columns % 2 == 0, .invalidShape, "x", expected: "an even number of columns", actual: "\(x.columns)")
        let columns = x.columns / 2
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, columns))
        let gate = RowOperand(x)
        let up = RowOperand(base: gate.base + columns * gate.type.byteCount, stride: gate.stride, type: gate.type)
        run(gate: gate, up: up, y: RowTarget(&y), rows: x.rows, columns: columns, on: pool)
    }

    private func run(gate: RowOperand, up: RowOperand?, y: RowTarget, rows: Int, columns: Int, on pool: WorkerPool) {
        if rows == 0 || columns == 0 { return }
        let bytes = gate.type.byteCount * (up == nil ? 1 : 2) + y.type.byteCount
        // The exponential and a division take as long as moving about this many bytes.
        let cost = function == .relu || function == .reluSquared ? bytes : max(bytes, 16)
        let tasks = RowTasks(rows: rows, bytesPerRow: columns * cost)
        var arguments = ActivateArguments(
            gate: gate, up: up ?? gate, hasUp: up != nil, y: y, rows: rows, columns: columns, function: function.kernel)
        arguments.threshold = threshold ?? -1
        pool.run(ActivateCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
    }
}

private struct ActivateCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: ActivateArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.gate = arguments.gate.from(first)
        part.up = arguments.up.from(first)
        part.y = arguments.y.from(first)
        part.rows = tasks.count(task)
        kernels.activateRows(&part)
    }
}

extension GatedActivation.Function {
    /// The function as kernels name it.
    package var kernel: RowFunction {
        switch self {
        case .silu: .silu
        case .gelu: .gelu
        case .geluTanh: .geluTanh
        case .relu: .relu
        case .reluSquared: .reluSquared
        }
    }
}

internal import KernelInterface

/// Cosines of rows with one vector: how much each cell of a picture is like a prompt.
///
///     score = x·p / (max(‖x‖, ε) · max(‖p‖, ε))
///
/// ```swift
/// let cosines = try CosineScores(channels: 1152)
/// let scores = try cosines(features, prompt)   // [cells, 1152] and [1152] to [cells]
/// ```
///
/// - Exactness: sums in `Float`; the error of a score is at most about 10⁻⁶, see `ReferenceCosines.errorBound`. Rows whose squares overflow,
///   with elements about 10¹⁹ and more, give 0 or NaN. Results are bitwise equal for every number of threads, and those of a row do not
///   depend on the other rows.
/// - A row or vector of zeros gives 0, as `torch.nn.functional.normalize` has it.
/// - Non-finite input makes its own row's score NaN or 0, and affects no other. Non-finite vectors are refused.
/// - Complexity: one pass over memory, O(rows · channels).
/// - Scratch: none.
/// - Source: `torch.nn.functional.normalize`, whose ε of 10⁻¹² is the default; the score map of PS3 (arXiv 2503.19903).
public struct CosineScores: Sendable {
    /// Elements of a row.
    public let channels: Int
    /// The least norm that is divided by.
    public let epsilon: Float
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - channels: elements of a row, at least 1.
    ///   - epsilon: the least norm that is divided by, positive and normal.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for no channels, `.invalidArgument` for an ε that is not a positive normal number,
    ///   `.unsupportedInstructionSet`.
    public init(
        channels: Int, epsilon: Float = 1e-12, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(channels >= 1, .invalidShape, "channels", expected: "at least 1", actual: "\(channels)")
        try require(
            epsilon > 0 && epsilon.isNormal, .invalidArgument, "epsilon", expected: "a positive normal number",
            actual: "\(epsilon)")
        self.channels = channels
        self.epsilon = epsilon
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Computes the scores of the rows of x.
    ///
    /// - Parameters:
    ///   - x: rows × `channels`, of any element type and row stride.
    ///   - vector: p, `channels` finite numbers.
    ///   - scores: one number per row, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of another extent, `.invalidArgument` for a vector that is not finite; nothing is
    ///   written then.
    public func run<X: AttentionElement>(
        _ x: MatrixView<X>, _ vector: Span<Float>, into scores: consuming MutableSpan<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try require(
            vector.count == channels, .invalidShape, "vector", expected: "\(channels) elements", actual: "\(vector.count)")
        try require(
            scores.count == x.rows, .invalidShape, "scores", expected: "\(x.rows) elements", actual: "\(scores.count)")
        var squares = 0.0
        for channel in 0..<channels { squares += Double(vector[channel]) * Double(vector[channel]) }
        try require(
            squares.isFinite, .invalidArgument, "vector", expected: "finite numbers", actual: "a squared norm of \(squares)")
        if x.rows == 0 { return }
        let norm = max(Float(squares.squareRoot()), epsilon)
        let tasks = RowTasks(rows: x.rows, bytesPerRow: channels * MemoryLayout<X>.size)
        // Pointers are used only until this call returns, which borrows or owns the operands.
        let arguments = CosineArguments(
            x: RowOperand(x), rows: x.rows, channels: channels,
            vector: vector.withUnsafeBufferPointer { $0.baseAddress! }, vectorNorm: norm, epsilon: epsilon,
            scores: scores.withUnsafeMutableBufferPointer { $0.baseAddress! })
        pool.run(CosineCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks)
    }

    /// Computes the scores of the rows of x into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for operands of another rank.
    public func run<X: AttentionElement>(
        _ x: Tensor<X>, _ vector: Tensor<Float>, into scores: inout Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            vector.shape == [channels], .invalidShape, "vector", expected: "\([channels])", actual: "\(vector.shape)")
        try run(x.matrixView(named: "x"), vector.span, into: scores.mutableSpan, on: pool)
    }

    /// Computes the scores of the rows of x, `[rows]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for operands of another rank.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, _ vector: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let rows = try x.matrixView(named: "x").rows
        var scores = try Tensor<Float>(zeros: [rows])
        try run(x, vector, into: &scores, on: pool)
        return scores
    }
}

private struct CosineCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: CosineArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.x = arguments.x.from(first)
        part.scores = arguments.scores + first
        part.rows = tasks.count(task)
        kernels.scoreCosines(&part)
    }
}

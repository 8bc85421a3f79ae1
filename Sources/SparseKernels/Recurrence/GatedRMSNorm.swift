internal import KernelInterface

/// Root-mean-square normalisation of rows within groups of channels, with a gate before or after it.
///
/// ```swift
/// let norm = try GatedRMSNorm(weight: weight, groups: 8, epsilon: 1e-5, gate: .beforeNorm)
/// try norm.run(y.matrixView(), gate: z.matrixView(), into: out.mutableMatrixView())
/// ```
///
/// With silu(z) = z / (1 + e⁻ᶻ) and the mean taken over the channels of a group:
///
/// | gate | y |
/// |---|---|
/// | `.beforeNorm` | u / √(mean u² + ε) ⊙ weight with u = x ⊙ silu(z): Mamba-2 and Nemotron-H |
/// | `.afterNorm` | x / √(mean x² + ε) ⊙ weight ⊙ silu(z): Gated DeltaNet |
///
/// Rows are of any element type; arithmetic is in `Float`, and the result is rounded once.
///
/// - Exactness: squares are summed as ``RMSNorm`` sums them; half of that error, that of silu (see ``GatedActivation``) and seven
///   roundings are the error of y.
/// - Non-finite input affects its own group of its own row only. A group whose squares overflow `Float` becomes 0, and NaN where u is
///   infinite. A group of zeros becomes 0, or NaN if ε is 0.
/// - Results are bitwise equal for every number of threads, and those of a row do not depend on the other rows.
/// - Complexity: one pass over memory, O(rows · channels).
/// - Scratch: the channels of a group as floats, per thread.
/// - Source: `RMSNormGated` of state-spaces/mamba, with its `group_size` and `norm_before_gate`.
public struct GatedRMSNorm: Sendable {
    /// Where the gate multiplies.
    public enum Gate: String, Hashable, Sendable, CaseIterable {
        /// What is normalised is gated; `norm_before_gate = False` of the released code.
        case beforeNorm
        /// The normalised row is gated; `norm_before_gate = True`.
        case afterNorm
    }

    /// Elements of a row.
    public let channels: Int
    /// Groups of adjacent channels, each with a mean of its own.
    public let groups: Int
    public let epsilon: Float
    public let gate: Gate
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    private let weight: Tensor<Float>
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - weight: `[channels]`, at least one.
    ///   - groups: groups of a row; divides the channels.
    ///   - epsilon: ε, added to the mean of the squares.
    ///   - gate: where the gate multiplies.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for a weight of another rank or without channels, or groups that do not divide them;
    ///   `.invalidArgument` for a weight that is not finite or an ε that is negative or not finite; `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, groups: Int = 1, epsilon: Float, gate: Gate, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            weight.shape.count == 1 && weight.count >= 1, .invalidShape, "weight", expected: "[channels], at least 1",
            actual: "\(weight.shape)")
        try require(
            groups >= 1 && weight.count.isMultiple(of: max(1, groups)), .invalidShape, "groups",
            expected: "a divisor of the \(weight.count) channels", actual: "\(groups)")
        try weight.requireFinite(named: "weight")
        try require(
            epsilon >= 0 && epsilon.isFinite, .invalidArgument, "epsilon", expected: "0 or more, and finite",
            actual: "\(epsilon)")
        channels = weight.count
        self.groups = groups
        self.epsilon = epsilon
        self.gate = gate
        self.weight = weight
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread uses.
    public var scratchByteCount: Int {
        GatedNormArguments.scratchFloats(channels: channels / groups) * MemoryLayout<Float>.stride
    }

    /// Normalises the rows of x.
    ///
    /// - Parameters:
    ///   - x: rows × channels.
    ///   - z: the gate, rows × channels.
    ///   - y: rows × channels, overwritten. Through unsafe spans, it may be the memory of x or z, with the same stride and type.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func run<X: AttentionElement, Z: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, gate z: MatrixView<Z>, into y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try requireMatrix("gate", rows: z.rows, columns: z.columns, expected: (x.rows, channels))
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        run(x: RowOperand(x), z: RowOperand(z), y: RowTarget(&y), rows: x.rows, on: pool)
    }

    /// Normalises the rows of x in place.
    ///
    /// - Parameters:
    ///   - x: rows × channels.
    ///   - z: the gate, rows × channels.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents; nothing is written then.
    public func normalize<X: AttentionElement, Z: AttentionElement>(
        _ x: consuming MutableMatrixView<X>, gate z: MatrixView<Z>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try requireMatrix("gate", rows: z.rows, columns: z.columns, expected: (x.rows, channels))
        let rows = x.rows
        let target = RowTarget(&x)
        run(x: target.asOperand, z: RowOperand(z), y: target, rows: rows, on: pool)
    }

    private func run(x: RowOperand, z: RowOperand, y: RowTarget, rows: Int, on pool: WorkerPool) {
        if rows == 0 { return }
        let arguments = GatedNormArguments(
            x: x, z: z, y: y, rows: rows, groups: groups, channels: channels / groups, epsilon: epsilon,
            gatesBefore: gate == .beforeNorm,
            // The tensor is a property of the plan, which outlives the call.
            weight: UnsafePointer(weight.storage.pointer.assumingMemoryBound(to: Float.self)))
        // The exponential and the division take as long as moving about this many bytes.
        let cost = max(x.type.byteCount + z.type.byteCount + y.type.byteCount, 12)
        let tasks = RowTasks(rows: rows, bytesPerRow: channels * cost)
        pool.run(
            GatedNormCall(kernels: kernels, arguments: arguments, tasks: tasks), tasks: tasks.count, work: tasks.work,
            scratchByteCount: scratchByteCount)
    }
}

private struct GatedNormCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: GatedNormArguments
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        var part = arguments
        part.x = arguments.x.from(first)
        part.z = arguments.z.from(first)
        part.y = arguments.y.from(first)
        part.rows = tasks.count(task)
        kernels.normalizeGated(&part, scratch: scratch.assumingMemoryBound(to: Float.self))
    }
}

extension GatedRMSNorm {
    /// The normalised rows of x, `[rows, channels]`, in a new tensor.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func callAsFunction<X: AttentionElement, Z: AttentionElement>(
        _ x: Tensor<X>, gate z: Tensor<Z>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: x.shape)
        try run(x.matrixView(named: "x"), gate: z.matrixView(named: "gate"), into: y.mutableMatrixView(named: "y"), on: pool)
        return y
    }
}

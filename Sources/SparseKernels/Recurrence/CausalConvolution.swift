internal import KernelInterface

/// Causal depthwise convolution of tokens, which state-space models have before their recurrence:
/// y_t[c] = f(b[c] + Σ_j w[c, j] · x_{t − width + 1 + j}[c]).
///
/// ```swift
/// let convolution = try CausalConvolution(weight: weight, bias: bias, activation: .silu)  // [channels, 4]
/// let states = try convolution.makeStates(slots: 2)
/// try convolution.run(x.matrixView(), into: y.mutableMatrixView(), batch: batch, states: states)
/// ```
///
/// The inputs before a sequence are what its slot holds: zeros after ``RecurrentStates/reset(_:)``, or the last width − 1 inputs of
/// the call before. So a prompt in parts, or a token at a time, gives what it gives at once. The rows may be columns of a wider
/// matrix, the output of a projection: `MatrixView` takes a row stride.
///
/// - Exactness: products are added to the bias in the order of j, each with one rounding, before f, whose error is that of
///   ``GatedActivation``; the result is rounded once. Arithmetic is in `Float`. Calls in parts give the same bits as one call, unless
///   the state rounds: a state of `bfloat16` keeps inputs of `Float` and `Float16` to 8 bits.
/// - Non-finite input reaches the outputs of its own channel that see it, and no others. SiLU of −∞ is −∞.
/// - Results are bitwise equal for every number of threads.
/// - Complexity: one pass over memory, O(tokens · channels · width).
/// - Scratch: none.
/// - Source: `causal_conv1d_fn` and `causal_conv1d_update` of Dao-AILab/causal-conv1d, which Mamba (Gu and Dao, 2023,
///   arXiv 2312.00752) runs.
public struct CausalConvolution: Sendable {
    /// What happens to the sums.
    public enum Activation: String, Hashable, Sendable, CaseIterable {
        /// The sum as it is.
        case none
        /// v / (1 + e⁻ᵛ).
        case silu
    }

    /// Channels of a token, each with weights of its own.
    public let channels: Int
    /// Inputs that an output sees, its own token's among them.
    public let width: Int
    public let activation: Activation
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    /// `[width, channels]`.
    private let weight: Tensor<Float>
    private let bias: Tensor<Float>?
    private let kernels: any KernelTable.Type

    /// - Parameters:
    ///   - weight: `[channels, width]`, both at least 1; the last column meets the token itself.
    ///   - bias: `[channels]`, or nil for 0.
    ///   - activation: f.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for tensors of other shapes, `.invalidArgument` for weights or a bias that are not finite,
    ///   `.unsupportedInstructionSet`.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, activation: Activation = .none,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            weight.shape.count == 2 && weight.count >= 1, .invalidShape, "weight",
            expected: "[channels, width], both at least 1", actual: "\(weight.shape)")
        let (channels, width) = (weight.shape[0], weight.shape[1])
        try weight.requireFinite(named: "weight")
        if let bias {
            try require(
                bias.shape == [channels], .invalidShape, "bias", expected: "\([channels])", actual: "\(bias.shape)")
            try bias.requireFinite(named: "bias")
        }
        self.channels = channels
        self.width = width
        self.activation = activation
        self.weight = try Tensor([width, channels]) { weight[flat: $0 % channels * width + $0 / channels] }
        self.bias = bias
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// States for this convolution, which are zero: one head of width − 1 rows, oldest first, and `channels` columns.
    /// - Throws: the errors of ``RecurrentStates``.
    public func makeStates(
        slots: Int, format: RecurrentStates.Format = .float32
    ) throws(SparseKernelsError) -> RecurrentStates {
        try RecurrentStates(slots: slots, heads: 1, rows: width - 1, columns: channels, format: format)
    }

    /// Convolves the tokens of some sequences, and leaves the last width − 1 inputs of each in its slot.
    ///
    /// - Parameters:
    ///   - x: tokens × channels, the sequences of `batch` one after the other.
    ///   - y: tokens × channels, overwritten. Not the memory of x.
    ///   - direction: `.backward` reverses each sequence in time: an output sees its own token and those after it.
    ///   - batch: the sequences and their slots. A sequence of fewer tokens than width − 1 keeps later rows of its state.
    ///   - states: 1 × (width − 1) × channels in a slot.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there; nothing is
    ///   written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, direction: RecurrenceDirection = .forward,
        batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireColumns("x", x.columns, expected: channels)
        try batch.requireFit(tokens: x.rows, named: "x", in: states)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, channels))
        try states.requireShape(heads: 1, rows: width - 1, columns: channels, named: "states")
        if x.rows == 0 { return }
        let arguments = ConvolveArguments(
            x: RowOperand(x), y: RowTarget(&y), tokens: 0, channels: channels, width: width,
            // The tensors are properties of the plan, which outlives the call.
            weight: UnsafePointer(weight.storage.pointer.assumingMemoryBound(to: Float.self)),
            bias: bias.map { UnsafePointer($0.storage.pointer.assumingMemoryBound(to: Float.self)) },
            appliesSiLU: activation == .silu, state: states.pointer, stateType: states.storageType)
        // The exponential and the division of SiLU take as long as moving about eight bytes.
        let bytes = channels * (max(arguments.x.type.byteCount + arguments.y.type.byteCount, 8) + width - 1)
        // At least 32 tokens, so that the rows that a task reads a second time, before its first, are few.
        let chunks = SequenceChunks(batch, chunk: max(max(32, width), (1 << 18) / bytes))
        var call = ConvolveCall(
            kernels: kernels, arguments: arguments, chunks: chunks, slots: batch.slots,
            bytesPerSlot: states.bytesPerSlot, isBackward: direction == .backward, storesLongSequences: false)
        let (work, overflow) = (x.rows + batch.lengths.count).multipliedReportingOverflow(by: bytes)
        pool.run(call, tasks: chunks.count, work: overflow ? .max : work)
        // A sequence of several tasks stores its inputs when its first task has read the state.
        call.storesLongSequences = true
        pool.run(call, tasks: batch.lengths.count, work: 0)
    }
}

private struct ConvolveCall: PoolCall {
    let kernels: any KernelTable.Type
    let arguments: ConvolveArguments
    let chunks: SequenceChunks
    let slots: [Int]
    let bytesPerSlot: Int
    let isBackward: Bool
    var storesLongSequences: Bool

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (sequence, tokens) = storesLongSequences ? (task, 0..<0) : chunks.part(task)
        let (start, end) = (chunks.starts[sequence], chunks.starts[sequence + 1])
        let isLong = end - start > chunks.chunk
        if storesLongSequences ? !isLong : tokens.isEmpty { return }
        var part = arguments
        part.x = arguments.x.from(isBackward ? end - 1 : start)
        part.y = arguments.y.from(isBackward ? end - 1 : start)
        if isBackward { (part.x.stride, part.y.stride) = (-part.x.stride, -part.y.stride) }
        part.tokens = end - start
        (part.first, part.end) = (tokens.lowerBound, tokens.upperBound)
        part.state = arguments.state + slots[sequence] * bytesPerSlot
        part.storesState = !isLong || storesLongSequences
        kernels.convolveRows(&part)
    }
}

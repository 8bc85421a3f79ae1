public import SparseKernels

/// Everything of a Mamba-2 layer between its two projections.
///
///     x, B, C ← silu(convolution(x, B, C) + bias)
///     Δ       ← clamp(softplus(Δ + bias))
///     S       ← exp(−Δ·eᴬ) · S + Δ · B xᵀ        y ← Cᵀ S + D · x        per head; heads of a group share B and C
///     output  ← norm(y ⊙ silu(z)) · weight        over the channels of each group
///
/// ```swift
/// let mixer = try Mamba2Mixer(file: file, prefix: "backbone.layers.0.mixer", configuration)
/// let states = try Mamba2States(slots: 1, configuration)
/// var workspace = Mamba2Workspace()
/// try mixer.run(
///     projected: projected, into: &output, batch: PackedSequences(lengths: [tokens]), states: states, workspace: &workspace)
/// ```
///
/// Prompts go through the chunked form, and a token of each of several sequences through one step; both continue the states of
/// the sequences' slots, so that a prompt in parts is the prompt as a whole up to rounding.
///
/// - Exactness: that of `CausalConvolution`, `StateSpaceDuality` and `GatedRMSNorm`, one after the other. Bits do not depend on the
///   number of threads.
/// - Complexity: per token and head about 4·N·P multiply-adds and, in prompts, Q·(P + N / heads per group) more for chunks of Q
///   tokens. A step reads and writes the state once.
/// - Scratch: that of the operators, kept by the pool; between them rows of x, B, C and y, kept by the workspace.
/// - Source: Dao and Gu, "Transformers are SSMs" (2024, arXiv 2405.21060), sections 6 and 7; `Mamba2` of `state-spaces/mamba`
///   with `norm_before_gate = False`.
public struct Mamba2Mixer: Sendable {
    public let configuration: Mamba2Configuration
    private let convolution: CausalConvolution
    private let duality: StateSpaceDuality
    private let norm: GatedRMSNorm

    /// - Throws: `.invalidShape` naming the tensor that does not fit the configuration, `.invalidArgument` for weights that are not
    ///   finite, `.unsupportedInstructionSet`.
    public init(
        _ tensors: Mamba2Tensors, _ configuration: Mamba2Configuration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let c = configuration
        for (name, tensor, shape) in [
            ("convolutionWeight", tensors.convolutionWeight, [c.convolvedWidth, c.convolutionWidth]),
            (
                "convolutionBias", tensors.convolutionBias ?? tensors.skip,
                [tensors.convolutionBias == nil ? c.heads : c.convolvedWidth]
            ),
            ("timeStepBias", tensors.timeStepBias, [c.heads]), ("aLog", tensors.aLog, [c.heads]),
            ("skip", tensors.skip, [c.heads]), ("normWeight", tensors.normWeight, [c.innerWidth]),
        ] {
            try require(tensor.shape == shape, .invalidShape, name, expected: "\(shape)", actual: "\(tensor.shape)")
        }
        self.configuration = c
        convolution = try CausalConvolution(
            weight: tensors.convolutionWeight, bias: tensors.convolutionBias, activation: .silu, instructionSet: instructionSet)
        duality = try StateSpaceDuality(
            heads: c.heads, headDim: c.headDim, stateSize: c.stateSize, groups: c.groups, aLog: tensors.aLog,
            dtBias: tensors.timeStepBias, skip: tensors.skip, dtLimits: c.timeStepLimits, instructionSet: instructionSet)
        norm = try GatedRMSNorm(
            weight: tensors.normWeight, groups: c.groups, epsilon: c.epsilon, gate: .beforeNorm, instructionSet: instructionSet)
    }

    /// Reads a layer of a checkpoint. See `Mamba2Tensors`.
    /// - Throws: the errors of `Mamba2Tensors` and of the initialiser with tensors.
    public init(
        file: SafetensorsFile, prefix: String, _ configuration: Mamba2Configuration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            Mamba2Tensors(file: file, prefix: prefix, configuration: configuration), configuration,
            instructionSet: instructionSet)
    }

    /// Bytes of the weights.
    public var byteCount: Int {
        let c = configuration
        return 4 * (c.convolvedWidth * (c.convolutionWidth + 1) + 3 * c.heads + c.innerWidth)
    }

    // MARK: - Run

    /// Mixes the tokens of a packed batch.
    ///
    /// - Parameters:
    ///   - projected: `[tokens, projectedWidth]`, the output of the first projection: z, then x, B and C, then the time steps.
    ///   - output: `[tokens, innerWidth]`, the input of the last projection; overwritten.
    ///   - batch: the tokens of each sequence, and its slot.
    ///   - states: of the layer; those of the batch's slots go on.
    ///   - workspace: grows to the largest batch, and is allocated then only.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other extents, or states of other sizes; `.invalidArgument` for a slot that is not there. Nothing
    ///   is written then.
    public func run(
        projected: MatrixView<Float>, into output: consuming MutableMatrixView<Float>, batch: PackedSequences,
        states: Mamba2States, workspace: inout Mamba2Workspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let c = configuration
        try check(projected, rows: output.rows, columns: output.columns, batch, states)
        let tokens = projected.rows
        if tokens == 0 { return }
        try workspace.reserve(tokens: tokens, c)
        try convolution.run(
            projected.columns(c.convolvedColumns),
            into: MutableMatrixView(
                workspace.convolved.mutableSpan, rows: tokens, columns: c.convolvedWidth, named: "convolved"), batch: batch,
            states: states.convolution, on: pool)
        try recur(
            workspace.convolved, tokens: tokens, dt: projected.columns(c.timeStepColumns), into: &workspace.mixed, batch: batch,
            states: states.recurrence, on: pool)
        try norm.run(
            MatrixView(workspace.mixed.span, rows: tokens, columns: c.innerWidth, named: "y"),
            gate: projected.columns(c.gateColumns), into: output, on: pool)
    }

    /// The recurrence over convolved rows of x, B and C.
    private func recur(
        _ rows: Tensor<Float>, tokens: Int, dt: MatrixView<Float>, into y: inout Tensor<Float>, batch: PackedSequences,
        states: RecurrentStates, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let c = configuration
        let convolved = rows.span
        let shared = c.groups * c.stateSize
        let wide = try TensorGeometry(
            heads: c.heads, tokens: tokens, channels: c.headDim, headStride: c.headDim, tokenStride: c.convolvedWidth,
            named: "x")
        let narrow = try TensorGeometry(
            heads: c.groups, tokens: tokens, channels: c.stateSize, headStride: c.stateSize, tokenStride: c.convolvedWidth,
            named: "b")
        try duality.run(
            x: TensorView(convolved, geometry: wide, named: "x"),
            b: TensorView(convolved.extracting(c.innerWidth...), geometry: narrow, named: "b"),
            c: TensorView(convolved.extracting((c.innerWidth + shared)...), geometry: narrow, named: "c"),
            dt: dt,
            into: MutableTensorView(
                y.mutableSpan,
                geometry: TensorGeometry(heads: c.heads, tokens: tokens, channels: c.headDim, layout: .nhd, named: "y"),
                named: "y"), batch: batch, states: states, on: pool)
    }

    /// Throws for everything that a later step would refuse, before the first one changes a state.
    private func check(
        _ projected: borrowing MatrixView<Float>, rows: Int, columns: Int, _ batch: PackedSequences, _ states: Mamba2States
    ) throws(SparseKernelsError) {
        let c = configuration
        try require(
            projected.rows == batch.tokenCount && projected.columns == c.projectedWidth, .invalidShape, "projected",
            expected: "[\(batch.tokenCount), \(c.projectedWidth)]", actual: "[\(projected.rows), \(projected.columns)]")
        try require(
            rows == projected.rows && columns == c.innerWidth, .invalidShape, "output",
            expected: "[\(projected.rows), \(c.innerWidth)]", actual: "[\(rows), \(columns)]")
        try states.requireFit(c)
        try batch.requireSlots(in: states.recurrence)
    }
}

/// Rows between the steps of a Mamba-2 mixer, for layers that run one after the other. It grows to the largest batch that it has seen.
public struct Mamba2Workspace: Sendable {
    /// `[tokens, convolvedWidth]`.
    var convolved: Tensor<Float>
    /// `[tokens, innerWidth]`.
    var mixed: Tensor<Float>
    /// Elements of both.
    private var (convolvedCount, mixedCount) = (0, 0)

    public init() {
        // An empty tensor fits any size.
        convolved = try! Tensor(zeros: [0])
        mixed = convolved
    }

    /// Makes room for `tokens` tokens of a layer, so that no later call with as many allocates.
    /// - Throws: `.invalidShape` for a size that overflows.
    public mutating func reserve(tokens: Int, _ c: Mamba2Configuration) throws(SparseKernelsError) {
        if convolvedCount < tokens * c.convolvedWidth {
            convolved = try Tensor(zeros: [tokens, c.convolvedWidth])
            convolvedCount = tokens * c.convolvedWidth
        }
        if mixedCount < tokens * c.innerWidth {
            mixed = try Tensor(zeros: [tokens, c.innerWidth])
            mixedCount = tokens * c.innerWidth
        }
    }

    public var byteCount: Int { 4 * (convolvedCount + mixedCount) }
}

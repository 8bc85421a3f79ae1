internal import KernelInterface

/// The gated delta rule: a state per head that forgets, and in which a key is given a new value in place of the one it had.
///
///     S ← diag(α)·S        S ← S + β·k·(v − Sᵀk)ᵀ        y = scale · Sᵀq
///
/// ```swift
/// let shape = try RecurrenceShape(keyHeads: 16, valueHeads: 32, keyDim: 128, valueDim: 128)
/// let rule = try GatedDeltaRule(shape, decay: .perToken, normalizesQueriesAndKeys: true)
/// let states = try RecurrentStates(slots: 1, shape: shape)
/// try rule.run(
///     query: q, key: k, value: v, logDecay: g, beta: beta, into: &y, batch: PackedSequences(lengths: [4096]), states: states)
/// ```
///
/// It is the layer of Gated DeltaNet (a decay per token and head), of Kimi Delta Attention (a decay per token, head and channel of the
/// key), and of DeltaNet (none). Decays are given as natural logarithms; those above 0 count as 0, and −∞ is a decay of 0, which
/// forgets everything. Value head *h* reads key head *h* / (`valueHeads` / `keyHeads`).
///
/// Chunks of a sequence are computed by products of matrices and a triangular system, and a sequence of one token is one step over
/// the state. A batch may have both.
///
/// - Exactness: with keys of length 1 or less and β from 0 to 1, what a token adds to the error of a column of the state, in the
///   2-norm, is at most (6·√(keyDim + chunk)·2⁻²⁴ + ε)·m with m = Σ α…α·abs(k)·abs(β(v − Sᵀk)) the magnitude of what the state is a sum
///   of, and ε = 10⁻⁶ for decays and norms; nothing amplifies the errors of earlier tokens. States of 16 bits are rounded when a
///   call ends, or after every token where tokens are taken one by one. Other β and longer keys may grow without bound, as the rule itself does.
/// - What is not finite reaches no earlier token, no other sequence, and no head that does not read it.
/// - Results are bitwise equal for every number of threads, and those of a sequence do not depend on the others.
/// - Complexity: per token and value head 3·`keyDim`·`valueDim` multiply-adds with the state and chunk·`valueDim` in the chunk, and
///   chunk·`keyDim` for the value heads of a key head, or for each value head with decays per channel. A step is bound by reading and
///   writing the state.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Yang et al., 2024 (DeltaNet, arXiv 2406.06484); Yang, Kautz and Hatamizadeh, 2024 (Gated DeltaNet, arXiv 2412.06464); Kimi Team,
///   2025 (Kimi Linear, arXiv 2510.26692); `modeling_qwen3_next.py` of Hugging Face transformers.
public struct GatedDeltaRule: Sendable {
    /// What the state is multiplied by before a token is written.
    public enum Decay: String, Hashable, Sendable, CaseIterable {
        /// An operand `[tokens, valueHeads]`.
        case perToken
        /// An operand `[valueHeads, tokens, keyDim]`.
        case perChannel
        /// Nothing.
        case none
    }

    public let shape: RecurrenceShape
    public let decay: Decay
    /// Multiplies the outputs.
    public let scale: Float
    /// Whether queries and keys are divided by √(Σx² + `normEpsilon`) first.
    public let normalizesQueriesAndKeys: Bool
    public let form: RecurrenceForm
    /// The instruction set that calls execute.
    public let instructionSet: InstructionSet
    let kernels: any KernelTable.Type

    /// Added to the sum of squares of queries and keys that are normalised.
    public static let normEpsilon: Float = 1e-6

    /// Chunks of 32 tokens: a chunk of *q* costs *q* multiply-adds per token and channel of values beside those with the state, so
    /// that short chunks cost least; in those of 16, the tiles end too soon.
    public static let defaultForm = RecurrenceForm.chunked(32)

    /// - Parameters:
    ///   - shape: the heads and channels.
    ///   - decay: where decays come from.
    ///   - scale: the factor of the outputs; nil means 1/√`keyDim`.
    ///   - normalizesQueriesAndKeys: divides queries and keys by their lengths, as Qwen3-Next and Kimi Linear do.
    ///   - form: how tokens are computed.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a scale that is not finite or chunks that are not from 1 to 256;
    ///   `.unsupportedInstructionSet`.
    public init(
        _ shape: RecurrenceShape, decay: Decay, scale: Float? = nil, normalizesQueriesAndKeys: Bool,
        form: RecurrenceForm = defaultForm, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let scale = scale ?? 1 / Float(shape.keyDim).squareRoot()
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        try form.validate()
        self.shape = shape
        self.decay = decay
        self.scale = scale
        self.normalizesQueriesAndKeys = normalizesQueriesAndKeys
        self.form = form
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Bytes of scratch that each thread of the pool needs: states, a few rows and matrices per chunk.
    public var scratchByteCount: Int {
        let (heads, columns) = (GatedDeltaRuleTasks.fittingHeads(shape, decay), shape.valueDim)
        var bytes = DeltaRuleScratch(
            keyDim: shape.keyDim, columns: columns, heads: 1, chunk: DeltaRuleScratch.stepTokens, decay: .perChannel
        ).byteCount
        if case .chunked(let chunk) = form {
            bytes = max(
                bytes,
                DeltaRuleScratch(
                    keyDim: shape.keyDim, columns: columns, heads: heads, chunk: chunk, decay: decay.kind
                ).byteCount)
        }
        return bytes
    }

    // MARK: - Running

    /// Takes states over the tokens of a batch, with decays per token.
    ///
    /// - Parameters:
    ///   - query: `keyHeads` × tokens × `keyDim`, in any layout.
    ///   - key: the same extents.
    ///   - value: `valueHeads` × tokens × `valueDim`.
    ///   - logDecay: tokens × `valueHeads`: ln α; more than 0 counts as 0.
    ///   - beta: tokens × `valueHeads`.
    ///   - output: `valueHeads` × tokens × `valueDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `valueHeads` heads of `keyDim` × `valueDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there or a plan with
    ///   other decays, `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, D: AttentionElement, B: AttentionElement, Y: AttentionElement>(
        query: TensorView<X>, key: TensorView<X>, value: TensorView<X>, logDecay: MatrixView<D>, beta: MatrixView<B>,
        into output: consuming MutableTensorView<Y>, batch: PackedSequences, states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if decay != .perToken { throw decay.mismatch("a matrix [tokens, valueHeads]") }
        try requireMatrix(
            "logDecay", rows: logDecay.rows, columns: logDecay.columns, expected: (batch.tokenCount, shape.valueHeads))
        try check(query, key, value, beta, output.geometry, batch, states)
        let decays = RowOperand(logDecay)
        run(
            query, key, value, decays, logDecayHeadStride: 1, beta, MutableAttentionOperand(output), batch, states, on: pool)
    }

    /// Takes states over the tokens of a batch, with decays per token and channel.
    ///
    /// - Parameters:
    ///   - query: `keyHeads` × tokens × `keyDim`, in any layout.
    ///   - key: the same extents.
    ///   - value: `valueHeads` × tokens × `valueDim`.
    ///   - logDecay: `valueHeads` × tokens × `keyDim`: ln α; more than 0 counts as 0.
    ///   - beta: tokens × `valueHeads`.
    ///   - output: `valueHeads` × tokens × `valueDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `valueHeads` heads of `keyDim` × `valueDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there or a plan with
    ///   other decays, `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, D: AttentionElement, B: AttentionElement, Y: AttentionElement>(
        query: TensorView<X>, key: TensorView<X>, value: TensorView<X>, logDecay: TensorView<D>, beta: MatrixView<B>,
        into output: consuming MutableTensorView<Y>, batch: PackedSequences, states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if decay != .perChannel { throw decay.mismatch("a tensor [valueHeads, tokens, keyDim]") }
        try logDecay.requireMemory(named: "logDecay")
        try logDecay.geometry.requireExtents(
            "logDecay", heads: shape.valueHeads, tokens: batch.tokenCount, channels: shape.keyDim)
        try check(query, key, value, beta, output.geometry, batch, states)
        let decays = AttentionOperand(logDecay)
        run(
            query, key, value, decays.rows(head: 0), logDecayHeadStride: decays.geometry.headStride, beta,
            MutableAttentionOperand(output), batch, states, on: pool)
    }

    /// Takes states over the tokens of a batch, without decays.
    ///
    /// - Parameters:
    ///   - query: `keyHeads` × tokens × `keyDim`, in any layout.
    ///   - key: the same extents.
    ///   - value: `valueHeads` × tokens × `valueDim`.
    ///   - beta: tokens × `valueHeads`.
    ///   - output: `valueHeads` × tokens × `valueDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `valueHeads` heads of `keyDim` × `valueDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there or a plan with
    ///   decays, `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, B: AttentionElement, Y: AttentionElement>(
        query: TensorView<X>, key: TensorView<X>, value: TensorView<X>, beta: MatrixView<B>,
        into output: consuming MutableTensorView<Y>, batch: PackedSequences, states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if decay != .none { throw decay.mismatch("no operand") }
        try check(query, key, value, beta, output.geometry, batch, states)
        run(
            query, key, value, RowOperand(beta), logDecayHeadStride: 0, beta, MutableAttentionOperand(output), batch, states,
            on: pool)
    }

    private func check<X: AttentionElement, B: AttentionElement>(
        _ query: TensorView<X>, _ key: TensorView<X>, _ value: TensorView<X>, _ beta: MatrixView<B>, _ output: TensorGeometry,
        _ batch: PackedSequences, _ states: RecurrentStates
    ) throws(SparseKernelsError) {
        try query.requireMemory(named: "query")
        try batch.requireFit(tokens: query.tokens, named: "query", in: states)
        let tokens = batch.tokenCount
        try query.geometry.requireExtents("query", heads: shape.keyHeads, tokens: tokens, channels: shape.keyDim)
        try key.geometry.requireExtents("key", heads: shape.keyHeads, tokens: tokens, channels: shape.keyDim)
        try value.geometry.requireExtents("value", heads: shape.valueHeads, tokens: tokens, channels: shape.valueDim)
        try output.requireExtents("output", heads: shape.valueHeads, tokens: tokens, channels: shape.valueDim)
        try requireMatrix("beta", rows: beta.rows, columns: beta.columns, expected: (tokens, shape.valueHeads))
        try states.requireShape(heads: shape.valueHeads, rows: shape.keyDim, columns: shape.valueDim, named: "states")
    }

    private func run<X: AttentionElement, B: AttentionElement>(
        _ query: TensorView<X>, _ key: TensorView<X>, _ value: TensorView<X>, _ logDecay: RowOperand, logDecayHeadStride: Int,
        _ beta: MatrixView<B>, _ output: MutableAttentionOperand, _ batch: PackedSequences, _ states: RecurrentStates,
        on pool: WorkerPool
    ) {
        if batch.tokenCount == 0 { return }
        let tasks = GatedDeltaRuleTasks(self, batch, stateBytes: states.format.byteCount)
        let call = GatedDeltaRuleCall(
            plan: self, tasks: tasks, query: AttentionOperand(query), key: AttentionOperand(key),
            value: AttentionOperand(value), logDecay: logDecay, logDecayHeadStride: logDecayHeadStride,
            beta: RowOperand(beta), output: output, batch: batch, states: states.pointer, bytesPerSlot: states.bytesPerSlot,
            stateType: states.storageType)
        let (perToken, overflow) = (3 * shape.keyDim * shape.valueDim).multipliedReportingOverflow(by: shape.valueHeads)
        let (work, overflowed) = perToken.multipliedReportingOverflow(by: batch.tokenCount)
        pool.run(
            call, tasks: tasks.count, work: overflow || overflowed ? .max : work, scratchByteCount: scratchByteCount)
    }
}

extension GatedDeltaRule.Decay {
    var kind: DeltaRuleDecay {
        switch self {
        case .perToken: .perToken
        case .perChannel: .perChannel
        case .none: .none
        }
    }

    fileprivate func mismatch(_ actual: String) -> SparseKernelsError {
        let expected =
            switch self {
            case .perToken: "a matrix [tokens, valueHeads], which the plan was made for"
            case .perChannel: "a tensor [valueHeads, tokens, keyDim], which the plan was made for"
            case .none: "none, as the plan has no decays"
            }
        return SparseKernelsError(.invalidArgument, "logDecay", expected: expected, actual: actual)
    }
}

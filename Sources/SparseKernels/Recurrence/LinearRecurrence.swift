internal import KernelInterface

/// Linear attention with decay: a state per head that forgets, and is read by queries.
///
///     S ← decay ∘ S + k vᵀ        y = scale · Sᵀ q
///
/// ```swift
/// let shape = try RecurrenceShape(keyHeads: 8, valueHeads: 8, keyDim: 128, valueDim: 128)
/// let lightning = try LinearRecurrence(shape, decay: .perHead(LinearRecurrence.lightningDecays(heads: 8, layer: 3, layers: 12)))
/// let states = try RecurrentStates(slots: 1, shape: shape)
/// try lightning.run(query: q, key: k, value: v, into: &y, batch: PackedSequences(lengths: [4096]), states: states)
/// ```
///
/// Decays are given as natural logarithms of 0 or less: a number per head (Lightning attention), one per token and head, or one per
/// token, head and channel of the keys (gated linear attention). Logarithms of tokens that are above 0 count as 0, and −∞ is a decay
/// of 0, which forgets everything. An output contains the token itself. Value head *h* reads key head *h* / (`valueHeads` /
/// `keyHeads`).
///
/// Chunks of a sequence are computed by products of matrices, and a sequence of one token is one step over the state. A batch may
/// have both.
///
/// - Exactness: outputs agree with the recurrence in exact arithmetic to the error of its decays and of its sums. With M the state of
///   the magnitudes, which the same recurrence makes of |k| and |v|: 6·√(keyDim + tokens)·2⁻²⁴·Mᵀ|q| for the sums, and for every
///   decay on the way 3·10⁻⁷ + 2·10⁻⁸·|log| (10⁻⁷·|log| on the portable level), relative. States of 16 bits are rounded when a
///   call ends.
/// - What is not finite reaches no earlier token, no other sequence, and no head that does not read it.
/// - Results are bitwise equal for every number of threads, and those of a sequence do not depend on the others.
/// - Complexity: per token and value head 2·`keyDim`·`valueDim` multiply-adds with the state and (chunk / 2)·`valueDim` in the chunk,
///   and (chunk / 2)·`keyDim` for the heads that share a key head. A step is bound by reading and writing the state.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Qin et al., 2024 (Lightning attention-2, arXiv 2401.04658); Yang et al., 2024 (gated linear attention, arXiv 2312.06635);
///   Dao and Gu, 2024 (arXiv 2405.21060), section 6.
public struct LinearRecurrence: Sendable {
    /// Where the logarithms of the decays come from.
    public enum Decay: Hashable, Sendable {
        /// A number per value head for all tokens: 0 or less, or −∞.
        case perHead([Float])
        /// An operand `[tokens, valueHeads]`.
        case perToken
        /// An operand of `keyHeads` or `valueHeads` heads × tokens × `keyDim`.
        case perChannel
    }

    public let shape: RecurrenceShape
    public let decay: Decay
    let plan: RecurrencePlan

    /// - Parameters:
    ///   - shape: the heads and channels.
    ///   - decay: where decays come from.
    ///   - scale: the factor of the outputs, such as 1/√`keyDim`.
    ///   - form: how tokens are computed.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for another number of decays than value heads; `.invalidArgument` for a decay above 0 or NaN, a
    ///   scale that is not finite, or chunks that are not from 1 to 256; `.unsupportedInstructionSet`.
    public init(
        _ shape: RecurrenceShape, decay: Decay, scale: Float = 1, form: RecurrenceForm = .automatic,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        var rates = [Float](repeating: 0, count: shape.valueHeads)
        if case .perHead(let logarithms) = decay {
            try require(
                logarithms.count == shape.valueHeads, .invalidShape, "decay",
                expected: "\(shape.valueHeads), one per value head", actual: "\(logarithms.count)")
            for (head, logarithm) in logarithms.enumerated() {
                try require(
                    logarithm <= 0, .invalidArgument, "decay[\(head)]", expected: "a logarithm of 0 or less",
                    actual: "\(logarithm)")
            }
            rates = logarithms
        }
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        let zeros = [Float](repeating: 0, count: shape.valueHeads)
        plan = try RecurrencePlan(
            shape, decay: decay.kind, form: form, scale: scale, rates: rates, biases: zeros, skips: zeros,
            instructionSet: instructionSet)
        self.shape = shape
        self.decay = decay
    }

    public var scale: Float { plan.scale }
    public var form: RecurrenceForm { plan.form }
    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { plan.instructionSet }
    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { plan.scratchByteCount }

    /// The logarithms of the decays of a layer of Lightning attention: −(8 / heads) · h · (1 − layer / layers) for head h. Head 0 never
    /// forgets.
    ///
    /// - Parameters:
    ///   - heads: of the layer, at least 1.
    ///   - layer: from 0 to `layers` − 1.
    ///   - layers: of the model.
    /// - Throws: `.invalidArgument` for no heads, or a layer that is not there.
    public static func lightningDecays(heads: Int, layer: Int, layers: Int) throws(SparseKernelsError) -> [Float] {
        try require(heads >= 1, .invalidArgument, "heads", expected: "at least 1", actual: "\(heads)")
        try require(
            layer >= 0 && layer < layers, .invalidArgument, "layer", expected: "from 0 to \(layers - 1)", actual: "\(layer)")
        let slope = 8 / Double(heads) * (1 - Double(layer) / Double(layers))
        return (0..<heads).map { Float(-slope * Double($0)) }
    }

    /// Takes states over the tokens of a batch, with decays per head.
    ///
    /// - Parameters:
    ///   - query: `keyHeads` × tokens × `keyDim`, in any layout.
    ///   - key: the same extents.
    ///   - value: `valueHeads` × tokens × `valueDim`.
    ///   - output: `valueHeads` × tokens × `valueDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `valueHeads` heads of `keyDim` × `valueDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there or a plan with
    ///   decays per token, `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        query: TensorView<X>, key: TensorView<X>, value: TensorView<X>, into output: consuming MutableTensorView<Y>,
        batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if decay.kind != .perHead { throw decay.mismatch("no operand") }
        try check(query, key, value, output.geometry, batch, states)
        run(query, key, value, .none, MutableAttentionOperand(output), batch, states, on: pool)
    }

    /// Takes states over the tokens of a batch, with decays per token.
    ///
    /// - Parameters:
    ///   - query: `keyHeads` × tokens × `keyDim`, in any layout.
    ///   - key: the same extents.
    ///   - value: `valueHeads` × tokens × `valueDim`.
    ///   - logDecay: tokens × `valueHeads`; more than 0 counts as 0.
    ///   - output: `valueHeads` × tokens × `valueDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `valueHeads` heads of `keyDim` × `valueDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there or a plan with
    ///   other decays, `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, D: AttentionElement, Y: AttentionElement>(
        query: TensorView<X>, key: TensorView<X>, value: TensorView<X>, logDecay: MatrixView<D>,
        into output: consuming MutableTensorView<Y>, batch: PackedSequences, states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if decay.kind != .perToken { throw decay.mismatch("a matrix [tokens, valueHeads]") }
        try check(query, key, value, output.geometry, batch, states)
        try requireMatrix(
            "logDecay", rows: logDecay.rows, columns: logDecay.columns, expected: (batch.tokenCount, shape.valueHeads))
        run(query, key, value, .rows(RowOperand(logDecay)), MutableAttentionOperand(output), batch, states, on: pool)
    }

    /// Takes states over the tokens of a batch, with decays per token and channel.
    ///
    /// - Parameters:
    ///   - query: `keyHeads` × tokens × `keyDim`, in any layout.
    ///   - key: the same extents.
    ///   - value: `valueHeads` × tokens × `valueDim`.
    ///   - logDecay: `keyHeads` or `valueHeads` heads × tokens × `keyDim`; more than 0 counts as 0.
    ///   - output: `valueHeads` × tokens × `valueDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `valueHeads` heads of `keyDim` × `valueDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there or a plan with
    ///   other decays, `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, D: AttentionElement, Y: AttentionElement>(
        query: TensorView<X>, key: TensorView<X>, value: TensorView<X>, logDecay: TensorView<D>,
        into output: consuming MutableTensorView<Y>, batch: PackedSequences, states: RecurrentStates,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if decay.kind != .perChannel { throw decay.mismatch("a tensor [heads, tokens, keyDim]") }
        try check(query, key, value, output.geometry, batch, states)
        try logDecay.requireMemory(named: "logDecay")
        let heads = logDecay.heads == shape.valueHeads ? shape.valueHeads : shape.keyHeads
        try logDecay.geometry.requireExtents(
            "logDecay", heads: heads, tokens: batch.tokenCount, channels: shape.keyDim)
        run(
            query, key, value, .channels(AttentionOperand(logDecay)), MutableAttentionOperand(output), batch, states, on: pool)
    }

    private func check<X: AttentionElement>(
        _ query: TensorView<X>, _ key: TensorView<X>, _ value: TensorView<X>, _ output: TensorGeometry,
        _ batch: PackedSequences, _ states: RecurrentStates
    ) throws(SparseKernelsError) {
        try query.requireMemory(named: "query")
        try plan.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output,
            names: RecurrenceNames(query: "query", key: "key", value: "value", output: "output"), batch: batch, states: states)
    }

    private func run<X: AttentionElement>(
        _ query: TensorView<X>, _ key: TensorView<X>, _ value: TensorView<X>, _ steps: RecurrenceSteps,
        _ output: MutableAttentionOperand, _ batch: PackedSequences, _ states: RecurrentStates, on pool: WorkerPool
    ) {
        plan.run(
            RecurrenceCall(
                plan: plan, query: AttentionOperand(query), key: AttentionOperand(key), value: AttentionOperand(value),
                steps: steps, output: output, batch: batch, states: states.pointer, bytesPerSlot: states.bytesPerSlot,
                stateType: states.storageType), on: pool)
    }
}

extension LinearRecurrence.Decay {
    var kind: DecayKind {
        switch self {
        case .perHead: .perHead
        case .perToken: .perToken
        case .perChannel: .perChannel
        }
    }

    /// The error of a call that brings other decays than those of the plan.
    fileprivate func mismatch(_ actual: String) -> SparseKernelsError {
        let expected =
            switch self {
            case .perHead: "no operand, as decays are per head"
            case .perToken: "a matrix [tokens, valueHeads]"
            case .perChannel: "a tensor [heads, tokens, keyDim]"
            }
        return SparseKernelsError(.invalidArgument, "logDecay", expected: expected, actual: actual)
    }
}

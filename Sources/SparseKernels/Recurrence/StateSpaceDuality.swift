internal import Foundation
internal import KernelInterface

/// The recurrence of Mamba-2: a state-space model with a scalar decay per token and head, computed in chunks (SSD).
///
///     Δ = softplus(dt + dtBias), cut to `dtLimits`        A = −exp(aLog)
///     S ← e^(Δ·A) · S + B (Δ·x)ᵀ        y = Sᵀ C + D · x
///
/// ```swift
/// let ssd = try StateSpaceDuality(heads: 128, headDim: 64, stateSize: 128, groups: 8, aLog: aLog, dtBias: dtBias, skip: d)
/// let states = try RecurrentStates(slots: 1, shape: ssd.shape)
/// try ssd.run(x: x, b: b, c: c, dt: dt, into: y, batch: PackedSequences(lengths: [8192]), states: states)
/// ```
///
/// Head *h* has the B and C of group *h* / (`heads` / `groups`). Views take any strides, so that x, B, C and dt may be slices of the rows
/// of one projection. A state is `stateSize` × `headDim`, the transpose of the published code's.
///
/// - Padding: a token of Δ = 0, whose raw dt is −∞ or far below 0, leaves the state as it is, bit for bit. Raw dt of 0 does not:
///   softplus(dtBias) is above 0, and the state decays.
/// - Exactness, non-finite input, bits, complexity and scratch are those of ``LinearRecurrence``. Δ has a relative error of
///   8·10⁻⁷ + 2·10⁻⁸·|dt + dtBias| (10⁻⁷·|dt + dtBias| on the portable level), and is 0 where dt + dtBias is below −87.7.
/// - Source: Dao and Gu, 2024 (arXiv 2405.21060); `ssd_minimal_discrete` and `mamba_chunk_scan_combined` of state-spaces/mamba.
public struct StateSpaceDuality: Sendable {
    /// `groups` key heads of `stateSize` channels, and `heads` value heads of `headDim` channels.
    public let shape: RecurrenceShape
    /// The range to which Δ is cut.
    public let dtLimits: ClosedRange<Float>
    let plan: RecurrencePlan

    /// - Parameters:
    ///   - heads: of x and the states, a multiple of `groups`.
    ///   - headDim: channels of x per head, 1…256.
    ///   - stateSize: channels of B and C, 1…256.
    ///   - groups: heads of B and C.
    ///   - aLog: `[heads]`, finite.
    ///   - dtBias: `[heads]`, finite; nil for 0.
    ///   - skip: D, `[heads]`, finite; nil for 0.
    ///   - dtLimits: the range of Δ, at least 0.
    ///   - form: how tokens are computed.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for extents that ``RecurrenceShape`` refuses or tensors of other shapes; `.invalidArgument` for a
    ///   parameter that is not finite, limits below 0, or chunks that are not from 1 to 256; `.unsupportedInstructionSet`.
    public init(
        heads: Int, headDim: Int, stateSize: Int, groups: Int, aLog: Tensor<Float>, dtBias: Tensor<Float>? = nil,
        skip: Tensor<Float>? = nil, dtLimits: ClosedRange<Float> = 0...Float.infinity, form: RecurrenceForm = .automatic,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, extent) in [("heads", heads), ("headDim", headDim), ("stateSize", stateSize), ("groups", groups)] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        try require(
            heads % groups == 0, .invalidShape, "heads", expected: "a multiple of groups (\(groups))", actual: "\(heads)")
        for (name, extent) in [("headDim", headDim), ("stateSize", stateSize)] {
            try require(
                extent <= RecurrenceShape.maximumDim, .invalidShape, name, expected: "at most \(RecurrenceShape.maximumDim)",
                actual: "\(extent)")
        }
        let shape = try RecurrenceShape(keyHeads: groups, valueHeads: heads, keyDim: stateSize, valueDim: headDim)
        for (name, tensor) in [("aLog", aLog), ("dtBias", dtBias), ("skip", skip)] {
            guard let tensor else { continue }
            try require(tensor.shape == [heads], .invalidShape, name, expected: "\([heads])", actual: "\(tensor.shape)")
            try tensor.requireFinite(named: name)
        }
        try require(
            dtLimits.lowerBound >= 0, .invalidArgument, "dtLimits", expected: "a range from 0 or more", actual: "\(dtLimits)")
        let zeros = [Float](repeating: 0, count: heads)
        // A rate that overflows is cut, so that a Δ of 0 still gives a decay of 1.
        let rates = aLog.elements.map { -Float(min(exp(Double($0)), Double(Float.greatestFiniteMagnitude))) }
        var plan = try RecurrencePlan(
            shape, decay: .discretized, form: form, scale: 1, rates: rates, biases: dtBias?.elements ?? zeros,
            skips: skip?.elements ?? zeros, instructionSet: instructionSet)
        plan.stepLimits = dtLimits
        self.plan = plan
        self.shape = shape
        self.dtLimits = dtLimits
    }

    public var heads: Int { shape.valueHeads }
    public var headDim: Int { shape.valueDim }
    public var stateSize: Int { shape.keyDim }
    public var groups: Int { shape.keyHeads }
    public var form: RecurrenceForm { plan.form }
    /// The instruction set that calls execute.
    public var instructionSet: InstructionSet { plan.instructionSet }
    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { plan.scratchByteCount }

    /// Takes states over the tokens of a batch.
    ///
    /// - Parameters:
    ///   - x: `heads` × tokens × `headDim`, in any layout.
    ///   - b: `groups` × tokens × `stateSize`.
    ///   - c: the same extents.
    ///   - dt: tokens × `heads`, before bias and softplus.
    ///   - y: `heads` × tokens × `headDim`, overwritten.
    ///   - batch: the sequences of the tokens, and their slots.
    ///   - states: of `heads` heads of `stateSize` × `headDim`; those of the batch's slots are read and replaced.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand of other extents, `.invalidArgument` for a slot that is not there,
    ///   `.invalidElementType` for cached rows; nothing is written then.
    public func run<X: AttentionElement, D: AttentionElement, Y: AttentionElement>(
        x: TensorView<X>, b: TensorView<X>, c: TensorView<X>, dt: MatrixView<D>, into y: consuming MutableTensorView<Y>,
        batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try x.requireMemory(named: "x")
        try plan.check(
            query: c.geometry, key: b.geometry, value: x.geometry, output: y.geometry,
            names: RecurrenceNames(query: "c", key: "b", value: "x", output: "y"), batch: batch, states: states)
        try requireMatrix("dt", rows: dt.rows, columns: dt.columns, expected: (batch.tokenCount, heads))
        plan.run(
            RecurrenceCall(
                plan: plan, query: AttentionOperand(c), key: AttentionOperand(b), value: AttentionOperand(x),
                steps: .rows(RowOperand(dt)), output: MutableAttentionOperand(y), batch: batch, states: states.pointer,
                bytesPerSlot: states.bytesPerSlot, stateType: states.storageType), on: pool)
    }
}

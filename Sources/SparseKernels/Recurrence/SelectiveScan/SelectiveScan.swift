internal import Foundation
internal import KernelInterface

/// The selective scan of Mamba-1: a diagonal state-space recurrence whose step size, input and output depend on the token.
///
///     Δ = softplus(delta + bias)
///     h[c, n] ← exp(Δ[c]·A[c, n]) · h[c, n] + Δ[c]·x[c]·B[n]
///     y[c] = (Σ C[n]·h[c, n] + D[c]·x[c]) · silu(z[c])
///
/// for every channel c and state n, token by token. B and C are those of the channel's group, which is c / (channels / groups).
///
/// ```swift
/// let scan = try SelectiveScan(aLog: aLog, skip: d, deltaBias: deltaBias)
/// let states = try RecurrentStates(slots: 1, heads: 1, rows: scan.stateSize, columns: scan.channels)
/// let batch = try PackedSequences(lengths: [tokens])
/// try scan.run(
///     x: x.matrixView(), delta: delta.matrixView(), b: b.matrixView(), c: c.matrixView(), into: y.mutableMatrixView(),
///     batch: batch, states: states)
/// ```
///
/// A call continues from the states, so a prompt may come in parts of any length, and a step of decoding is a call with one token per
/// sequence. With states in single precision, the parts give the bits of one call.
///
/// **Directions.** `.backward` scans the tokens of every sequence from the last to the first; y of a token is in the row of the token.
///
/// **Padding.** A token whose Δ is exactly 0 leaves the state as it is. After the softplus this takes delta + bias below −87.7, −∞
/// included, and finite x and B.
///
/// **Aliases.** The memory of y may be that of x, delta or z, with the same row stride and size of elements: a block of channels of a
/// token is read before it is written. It must not overlap b or c.
///
/// - Exactness: arithmetic is in single precision, and states are rounded to their format at the end of a call. A decay has a relative
///   error of 2·10⁻⁷ and 1.2·10⁻⁷·Δ|A| (2·10⁻⁷·Δ|A| on the portable level), Δ one of 4·10⁻⁷ and 2·10⁻⁸·|delta + bias| (10⁻⁷ on
///   the portable level). `ReferenceSelectiveScan` follows these through the recurrence. Decays below 2⁻¹²⁶ are 0.
/// - Non-finite x, delta and z affect their channel only, from their token on; B and C all channels of their group.
/// - Results are bitwise equal for every number of threads, and those of a sequence do not depend on the batch.
/// - Complexity: tokens · channels · stateSize exponentials and multiply-adds. A step is bound by reading and writing the states.
/// - Scratch: `scratchByteCount` per thread, kept by the pool.
/// - Source: Gu and Dao, 2023 (arXiv 2312.00752), section 3; `selective_scan_ref` of state-spaces/mamba. The input term is Δ·B, as there.
public struct SelectiveScan: Sendable {
    public let channels: Int
    /// States of a channel.
    public let stateSize: Int
    /// Groups of channels, each with B and C of its own.
    public let groups: Int
    /// Whether Δ is the softplus of delta; otherwise it is delta and the bias.
    public let appliesSoftplus: Bool
    /// Whether B and C are part of the plan, and no operands of a run.
    public let hasFixedProjections: Bool
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    let weights: ScanWeights

    /// A scan whose tokens bring B and C.
    ///
    /// - Parameters:
    ///   - a: A, `[channels, stateSize]`, 0 or less: −exp(A_log) of a checkpoint.
    ///   - skip: D, `[channels]`; nil means 0.
    ///   - deltaBias: `[channels]`, added to delta before the softplus; nil means 0.
    ///   - appliesSoftplus: whether Δ is the softplus of delta and bias.
    ///   - groups: of channels, a divisor of their number.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` for tensors of other shapes or without elements, and for groups that do not divide the channels;
    ///   `.invalidArgument` for numbers that are not finite or an A above 0; `.unsupportedInstructionSet`.
    public init(
        a: Tensor<Float>, skip: Tensor<Float>? = nil, deltaBias: Tensor<Float>? = nil, appliesSoftplus: Bool = true,
        groups: Int = 1, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            a: a, b: nil, c: nil, skip: skip, deltaBias: deltaBias, appliesSoftplus: appliesSoftplus, groups: groups,
            instructionSet: instructionSet)
    }

    /// A scan whose tokens bring B and C, from the logarithm that checkpoints have: A = −exp(A_log).
    /// - Parameters: those of `init(a:…)`; `aLog` is `[channels, stateSize]`.
    /// - Throws: the errors of `init(a:…)`, which name `aLog`.
    public init(
        aLog: Tensor<Float>, skip: Tensor<Float>? = nil, deltaBias: Tensor<Float>? = nil, appliesSoftplus: Bool = true,
        groups: Int = 1, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let a = try Tensor<Float>(aLog.shape) { Float(-exp(Double(aLog[flat: $0]))) }
        try self.init(
            a: a, named: "aLog", b: nil, c: nil, skip: skip, deltaBias: deltaBias, appliesSoftplus: appliesSoftplus,
            groups: groups, instructionSet: instructionSet)
    }

    /// A scan with B and C of every channel that are the same for all tokens, as in S4D. Only Δ depends on the token.
    ///
    /// - Parameters:
    ///   - a: A, `[channels, stateSize]`, 0 or less.
    ///   - b: B, `[channels, stateSize]`.
    ///   - c: C, `[channels, stateSize]`.
    ///   - skip, deltaBias, appliesSoftplus, instructionSet: those of `init(a:…)`.
    /// - Throws: the errors of `init(a:…)`.
    public init(
        a: Tensor<Float>, fixedB b: Tensor<Float>, fixedC c: Tensor<Float>, skip: Tensor<Float>? = nil,
        deltaBias: Tensor<Float>? = nil, appliesSoftplus: Bool = true, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            a: a, b: b, c: c, skip: skip, deltaBias: deltaBias, appliesSoftplus: appliesSoftplus, groups: 1,
            instructionSet: instructionSet)
    }

    private init(
        a: Tensor<Float>, named name: String = "a", b: Tensor<Float>?, c: Tensor<Float>?, skip: Tensor<Float>?,
        deltaBias: Tensor<Float>?, appliesSoftplus: Bool, groups: Int, instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        try require(
            a.shape.count == 2 && a.shape[0] >= 1 && a.shape[1] >= 1, .invalidShape, name,
            expected: "[channels, stateSize], at least 1 each", actual: "\(a.shape)")
        let (channels, stateSize) = (a.shape[0], a.shape[1])
        try a.requireFinite(named: name)
        for index in 0..<a.count where a[flat: index] > 0 {
            throw SparseKernelsError(
                .invalidArgument, "\(name)[\(index / stateSize), \(index % stateSize)]",
                expected: "0 or less, so that states decay",
                actual: "\(a[flat: index])")
        }
        for (name, tensor, shape) in [
            ("fixedB", b, [channels, stateSize]), ("fixedC", c, [channels, stateSize]), ("skip", skip, [channels]),
            ("deltaBias", deltaBias, [channels]),
        ] {
            guard let tensor else { continue }
            try require(tensor.shape == shape, .invalidShape, name, expected: "\(shape)", actual: "\(tensor.shape)")
            try tensor.requireFinite(named: name)
        }
        try require(
            groups >= 1 && channels % groups == 0, .invalidShape, "groups", expected: "a divisor of \(channels) channels",
            actual: "\(groups)")
        self.channels = channels
        self.stateSize = stateSize
        self.groups = groups
        self.appliesSoftplus = appliesSoftplus
        hasFixedProjections = b != nil
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        weights = try ScanWeights(a: a, b: b, c: c, skip: skip, deltaBias: deltaBias, groups: groups)
    }

    /// Bytes of A, D and the bias as the kernels read them, with channels filled up to whole blocks.
    public var byteCount: Int { weights.storage.byteCount }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { ScanScratch(stateSize: stateSize).byteCount }

    /// Throws unless a pool of states is one of this layer.
    func requireFit(_ states: RecurrentStates) throws(SparseKernelsError) {
        try states.requireShape(heads: 1, rows: stateSize, columns: channels, named: "states")
    }
}

internal import KernelInterface
public import SparseKernels

/// The backward pass of softmax attention: the gradients of queries, keys and values for a gradient of the output.
///
/// Probabilities are computed again, tile by tile, from queries, keys and the LSE that ``DenseAttention`` has written, so that nothing
/// of the size of `queryLength` · `keyLength` is stored between the passes. With P = e^(scale·Q·Kᵀ − LSE) and D = rowsum(dO∘O):
///
///     dV = Pᵀ·dO      dS = P∘(dO·Vᵀ − D)      dQ = scale · dS·K      dK = scale · dSᵀ·Q
///
/// ```swift
/// let shape = try AttentionShape(queryLength: 512, keyLength: 512, queryHeads: 8, kvHeads: 2, headDim: 64)
/// let state = try DenseAttention(shape, mask: .causal)(query: q, key: k, value: v)
/// let backward = try AttentionGradient(shape, mask: .causal)
/// let gradients = try backward(query: q, key: k, value: v, state: state, outputGradient: dO)   // .query, .key, .value
/// ```
///
/// - The gradients of keys and values are summed over the query heads of a group.
/// - A query that sees no key has the gradient 0 and adds to no other. So has a key that no query sees.
/// - Non-finite input propagates, as in IEEE arithmetic, along the pairs of a query and a key that it sees, and to no other gradient.
/// - Results are bitwise equal for every number of threads.
/// - Source: FlashAttention-2 (Dao, 2023, algorithm 2), with queries along the vector lanes.
/// - Complexity: `queryHeads` · visible pairs · (3 · `headDim` + 2 · `valueDim`) multiply-adds. The forward pass has `headDim` +
///   `valueDim`.
/// - Scratch: `scratchByteCount` per thread and `workspaceByteCount` per call, kept by the pool; later calls allocate nothing.
public struct AttentionGradient: Sendable {
    public let shape: AttentionShape
    public let mask: AttentionMask
    /// Factor on q·k.
    public let softmaxScale: Float
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    let tiling: AttentionGradientTiling

    /// Makes the plan.
    ///
    /// - Parameters:
    ///   - shape: the sizes of the operands, as those of the forward pass.
    ///   - mask: the keys of each query, as in the forward pass.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidArgument` for a scale that is not finite, and for a window below 1 or with a side below 0;
    ///   `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, mask: AttentionMask = .full, softmaxScale: Float? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try mask.validate()
        try ScoreModifiers(softmaxScale: softmaxScale).validate(queryHeads: shape.queryHeads)
        self.shape = shape
        self.mask = mask
        self.softmaxScale = softmaxScale ?? 1 / Float(shape.headDim).squareRoot()
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        tiling = AttentionGradientTiling(shape, limits: mask.limits(shape))
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        AttentionGradientScratch(headDim: shape.headDim, valueDim: shape.valueDim).byteCount
    }

    /// Bytes of partial gradients, which a call holds where several tasks add to the same rows: few heads are cut along the keys, and
    /// groups of query heads into single ones.
    public var workspaceByteCount: Int { tiling.workspaceFloats(shape) * 4 }

    /// Score entries that the mask leaves, over all query heads.
    public var visiblePairs: Int { tiling.visiblePairs * shape.queryHeads }

    /// Computes the gradients into the caller's memory, which they overwrite.
    ///
    /// All operands may have any strides with adjacent channels.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - output: what ``DenseAttention`` computed from them, `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: its natural-log LSE, `[queryHeads, queryLength]`. Rows with −∞ have no gradient.
    ///   - outputGradient: the gradient of the output, of the output's size.
    ///   - queryGradient: of the size of `query`.
    ///   - keyGradient: of the size of `key`.
    ///   - valueGradient: of the size of `value`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run(
        query: TensorView<Float>, key: TensorView<Float>, value: TensorView<Float>, output: TensorView<Float>,
        logSumExp: Span<Float>, outputGradient: TensorView<Float>, queryGradient: consuming MutableTensorView<Float>,
        keyGradient: consuming MutableTensorView<Float>, valueGradient: consuming MutableTensorView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp.count)
        try outputGradient.geometry.requireExtents(
            "outputGradient", heads: shape.queryHeads, tokens: shape.queryLength, channels: shape.valueDim)
        try queryGradient.geometry.requireExtents(
            "queryGradient", heads: shape.queryHeads, tokens: shape.queryLength, channels: shape.headDim)
        try keyGradient.geometry.requireExtents(
            "keyGradient", heads: shape.kvHeads, tokens: shape.keyLength, channels: shape.headDim)
        try valueGradient.geometry.requireExtents(
            "valueGradient", heads: shape.kvHeads, tokens: shape.keyLength, channels: shape.valueDim)
        // Rows without queries have no LSE, and nobody reads the address.
        let statistics = logSumExp.withUnsafeBufferPointer { $0.baseAddress }
        AttentionGradientCall(
            plan: self, query: OperandRows(query, instructionSet: instructionSet),
            key: OperandRows(key, instructionSet: instructionSet), value: OperandRows(value, instructionSet: instructionSet),
            output: OperandRows(output, instructionSet: instructionSet),
            outputGradient: OperandRows(outputGradient, instructionSet: instructionSet),
            logSumExp: statistics ?? UnsafePointer(bitPattern: 64)!, queryGradient: OutputRows(&queryGradient),
            keyGradient: OutputRows(&keyGradient), valueGradient: OutputRows(&valueGradient)
        ).run(on: pool)
    }
}

internal import KernelInterface

/// Attention of queries over two spans of keys: a prefix, which many calls share and none changes, and keys of their own.
///
///     o = softmax(scale·q·[K_prefix ; K]ᵀ)·[V_prefix ; V]
///
/// Every query sees every key. The spans stay where they are, in layouts and element types of their own, so that no call copies the
/// prefix. It is the attention of selected high-resolution tokens over the keys and values of the low-resolution pass.
///
/// ```swift
/// let shape = try AttentionShape(queryLength: 2560, keyLength: 2560, queryHeads: 16, kvHeads: 16, headDim: 72)
/// let attention = try PrefixAttention(shape, prefixLength: 729)
/// let state = try attention(query: q, prefixKey: lowKeys, prefixValue: lowValues, key: k, value: v)
/// ```
///
/// - Exactness: a task attends both spans and merges the two states, as ``AttentionState/merge(_:)`` does, in single precision. Results
///   are bitwise equal for every number of threads.
/// - Non-finite input propagates into the rows that see it: NaN in a query into its row, in keys and values into all rows of their head.
/// - A query without any key gives output 0 and LSE −∞.
/// - Complexity: `queryHeads · queryLength · (prefixLength + keyLength) · (headDim + valueDim)` multiply-adds.
/// - Scratch: `scratchByteCount` per thread, kept by the pool; later calls allocate nothing.
/// - Source: PS3 (arXiv 2503.19903), section 3.3; merging as in FlashInfer's recursive attention.
public struct PrefixAttention: Sendable {
    /// The sizes of queries, of their own keys and values, and of the output. `keyLength` counts own keys only.
    public let shape: AttentionShape
    /// Keys of the prefix.
    public let prefixLength: Int
    /// The factor on q·k.
    public let softmaxScale: Float
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet

    let kernels: any KernelTable.Type
    /// Query rows of a task.
    let queryBlock: Int
    /// Bytes of scratch before the records of a task.
    let recordOffset: Int

    /// Makes the plan. A nil instruction set means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///
    /// - Parameters:
    ///   - shape: the sizes of the operands; `keyLength` counts the keys that are not in the prefix.
    ///   - prefixLength: keys of the prefix, 0 or more.
    ///   - softmaxScale: the factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level that runs.
    /// - Throws: `.invalidArgument` for a negative prefix or a scale that is not finite; `.invalidShape` when both spans together are more
    ///   than ``AttentionShape`` allows; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, prefixLength: Int, softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            prefixLength >= 0, .invalidArgument, "prefixLength", expected: "at least 0", actual: "\(prefixLength)")
        let (keys, overflow) = prefixLength.addingReportingOverflow(shape.keyLength)
        try require(
            !overflow, .invalidShape, "prefixLength", expected: "such that prefixLength + keyLength fits 63 bits",
            actual: "\(prefixLength) + \(shape.keyLength)")
        let whole = try AttentionShape(
            queryLength: shape.queryLength, keyLength: keys, queryHeads: shape.queryHeads, kvHeads: shape.kvHeads,
            headDim: shape.headDim, valueDim: shape.valueDim)
        let scale = softmaxScale ?? 1 / Float(shape.headDim).squareRoot()
        try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        self.shape = shape
        self.prefixLength = prefixLength
        self.softmaxScale = scale
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
        queryBlock = min(DenseAttention.queryBlock(whole, kernels), max(1, shape.queryLength))
        recordOffset =
            AttentionScratch(
                headDim: shape.headDim, valueDim: shape.valueDim, queryRows: queryBlock, stagesKeys: true, stagesValues: true
            ).byteCount
    }

    /// Floats of the state of a row over one span: its sums, padded, then their maximum and total.
    var recordStride: Int { TokenLayout.padded(shape.valueDim) + TokenLayout.channelUnit }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        recordOffset + 4 * (2 * queryBlock * recordStride + TokenLayout.padded(shape.valueDim) + TokenLayout.channelUnit)
    }

    // MARK: - Run

    /// Computes attention into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. All operands may have any strides with adjacent channels.
    ///   - prefixKey: `kvHeads` × `prefixLength` × `headDim`.
    ///   - prefixValue: `kvHeads` × `prefixLength` × `valueDim`.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - output: `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials of each row over both spans, `[queryHeads, queryLength]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    public func run<Q: AttentionElement, P: AttentionElement, K: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, prefixKey: TensorView<P>, prefixValue: TensorView<P>, key: TensorView<K>, value: TensorView<K>,
        output: consuming MutableTensorView<O>, logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try shape.check(
            "prefixKey", prefixKey.geometry, heads: shape.kvHeads, tokens: prefixLength, channels: shape.headDim)
        try shape.check(
            "prefixValue", prefixValue.geometry, heads: shape.kvHeads, tokens: prefixLength, channels: shape.valueDim)
        let buffers = try AttentionBuffers(
            shape, query: query, key: key, value: value, output: output, logSumExp: logSumExp)
        PrefixAttentionCall(
            plan: self, buffers: buffers, prefixKey: AttentionOperand(prefixKey), prefixValue: AttentionOperand(prefixValue)
        ).run(on: pool)
    }

    /// Computes attention of tensors `[heads, tokens, channels]` into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views.
    public func run<Q: AttentionElement, P: AttentionElement, K: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, prefixKey: Tensor<P>, prefixValue: Tensor<P>, key: Tensor<K>, value: Tensor<K>,
        into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), prefixKey: prefixKey.view(named: "prefixKey"),
            prefixValue: prefixValue.view(named: "prefixValue"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), logSumExp: nil, on: pool)
    }

    /// Computes attention of tensors `[heads, tokens, channels]` into new memory.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction<Q: AttentionElement, P: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, prefixKey: Tensor<P>, prefixValue: Tensor<P>, key: Tensor<K>, value: Tensor<K>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try run(
                query: query.view(named: "query"), prefixKey: prefixKey.view(named: "prefixKey"),
                prefixValue: prefixValue.view(named: "prefixValue"), key: key.view(named: "key"),
                value: value.view(named: "value"), output: output, logSumExp: logSumExp, on: pool)
        }.state
    }
}

/// One `run`. A task is a block of queries of a head: its states over both spans, and their merge.
private struct PrefixAttentionCall: PoolCall {
    let plan: PrefixAttention
    let buffers: AttentionBuffers
    let prefixKey: AttentionOperand
    let prefixValue: AttentionOperand

    private var blocks: Int { (plan.shape.queryLength + plan.queryBlock - 1) / plan.queryBlock }

    func run(on pool: WorkerPool) {
        let shape = plan.shape
        if shape.queryLength == 0 { return }
        let keys = plan.prefixLength + shape.keyLength
        pool.run(
            self, tasks: shape.queryHeads * blocks,
            work: shape.queryHeads * shape.queryLength * keys * (shape.headDim + shape.valueDim),
            scratchByteCount: plan.scratchByteCount)
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let shape = plan.shape
        let (head, block) = (task / blocks, task % blocks)
        let first = block * plan.queryBlock
        let rows = min(plan.queryBlock, shape.queryLength - first)
        let kvHead = head / shape.queryHeadsPerKVHead
        let stride = plan.recordStride
        let records = (scratch + plan.recordOffset).assumingMemoryBound(to: Float.self)
        var arguments = buffers.arguments(shape, head: head, firstQuery: first, rows: rows, scratch: scratch)
        arguments.softmaxScale = plan.softmaxScale
        arguments.writesRecords = true
        arguments.outputType = .float32
        arguments.outputStride = stride
        arguments.logSumExp = nil
        arguments.output = UnsafeMutableRawPointer(records + rows * stride)
        attend(&arguments, keys: shape.keyLength)
        arguments.key = prefixKey.rows(head: kvHead)
        arguments.value = prefixValue.rows(head: kvHead)
        arguments.output = UnsafeMutableRawPointer(records)
        attend(&arguments, keys: plan.prefixLength)

        let sums = records + 2 * plan.queryBlock * stride
        let indices = UnsafeMutableRawPointer(sums + TokenLayout.padded(shape.valueDim)).assumingMemoryBound(to: Int32.self)
        for row in 0..<rows {
            indices[0] = Int32(truncatingIfNeeded: row)
            indices[1] = Int32(truncatingIfNeeded: rows + row)
            let output = buffers.output
            var merging = MergeTokensArguments(
                records: records, recordStride: stride, indices: indices, count: 2, valueDim: shape.valueDim,
                output: output.row(head: head, token: first + row), outputType: output.type,
                logSumExp: buffers.logSumExp.map { $0 + head * shape.queryLength + first + row }, scratch: sums)
            plan.kernels.mergeTokens(&merging)
        }
    }

    private func attend(_ arguments: inout AttentionArguments, keys: Int) {
        var range = KeyRange(begin: 0, end: keys)
        withUnsafePointer(to: &range) { ranges in
            arguments.keyRanges = ranges
            arguments.keyRangeCount = 1
            plan.kernels.attendBlock(&arguments)
        }
    }
}

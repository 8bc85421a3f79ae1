/// A plan that computes attention of one shape, such as ``DenseAttention`` and ``BlockSparseAttention``.
public protocol AttentionOperator: Sendable {
    /// The sizes that operands of `run` must have.
    var shape: AttentionShape { get }

    /// Computes attention into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. All operands may have any strides with adjacent channels.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - output: `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials of each row, `[queryHeads, queryLength]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is written then.
    func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>?, on pool: WorkerPool
    ) throws(SparseKernelsError)
}

extension AttentionOperator {
    /// Computes attention of tensors `[heads, tokens, channels]` into new memory.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                output: output, logSumExp: logSumExp, on: pool)
        }.state
    }

    /// Computes attention of tensors `[heads, tokens, channels]` into a tensor that is reused from call to call.
    /// - Throws: the errors of `run` with views.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), logSumExp: nil, on: pool)
    }
}

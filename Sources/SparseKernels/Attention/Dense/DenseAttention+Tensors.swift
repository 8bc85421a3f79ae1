extension DenseAttention {
    /// Computes attention of tensors `[heads, tokens, channels]` with a bias into new memory.
    ///
    /// - Parameters: those of `run` with views; `bias` is `[1 or queryHeads, queryLength, keyLength]`.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, bias: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                bias: bias.view(named: "bias"), output: output, logSumExp: logSumExp, on: pool)
        }.state
    }

    /// Computes attention of tensors `[heads, tokens, channels]` with a bias into a tensor that is reused from call to call.
    ///
    /// - Parameters: those of `run` with views; `bias` is `[1 or queryHeads, queryLength, keyLength]`.
    /// - Throws: the errors of `run` with views.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, bias: Tensor<Float>, into output: inout Tensor<O>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            bias: bias.view(named: "bias"), output: output.mutableView(named: "output"), logSumExp: nil, on: pool)
    }
}

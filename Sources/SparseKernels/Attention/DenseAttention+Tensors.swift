extension DenseAttention {
    /// Computes attention of tensors `[heads, tokens, channels]` into new memory.
    ///
    /// - Parameters: as `run`; `bias` is `[1 or queryHeads, queryLength, keyLength]`.
    /// - Throws: as `run`.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, bias: Tensor<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        var output = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength, shape.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength])
        if let bias {
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                bias: bias.view(named: "bias"), output: output.mutableView(), logSumExp: logSumExp.mutableSpan, on: pool)
        } else {
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                output: output.mutableView(), logSumExp: logSumExp.mutableSpan, on: pool)
        }
        return try AttentionState(output: output, logSumExp: logSumExp)
    }

    /// Computes attention of tensors `[heads, tokens, channels]` into a tensor that is reused from call to call.
    ///
    /// - Throws: as `run`.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), on: pool)
    }
}

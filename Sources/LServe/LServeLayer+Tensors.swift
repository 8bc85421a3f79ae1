public import SparseKernels

extension LServeLayer {
    /// Computes the attention of a prompt and stores its keys and values, from tensors `[heads, tokens, channels]`.
    /// - Throws: as `prefill` with views, and `.invalidShape` for another rank.
    public func prefill<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, sequence: SequenceID, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        try prefill(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            sequence: sequence, on: pool)
    }

    /// Performs one step of decoding with tensors `[heads, sequences, channels]`. See `decode` with views.
    /// - Throws: as `decode` with views, and `.invalidShape` for another rank.
    public func decode<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, sequences: [SequenceID], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        try decode(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            sequences: sequences, on: pool)
    }

    /// Appends tokens `[kvHeads, tokens, channels]` without attention. See `append` with views.
    /// - Throws: as `append` with views, and `.invalidShape` for another rank.
    public func append<K: AttentionElement, V: AttentionElement>(
        key: Tensor<K>, value: Tensor<V>, to sequence: SequenceID, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(key: key.view(named: "key"), value: value.view(named: "value"), to: sequence, on: pool)
    }
}

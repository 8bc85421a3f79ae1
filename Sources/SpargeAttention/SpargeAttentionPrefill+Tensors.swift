public import SparseKernels

extension SpargeAttentionPrefill {
    /// Block means and self-similarities of queries `[heads, tokens, headDim]`.
    /// - Throws: `.invalidShape` when the tensor disagrees with the shape.
    public func querySummary<Q: AttentionElement>(
        _ query: Tensor<Q>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try querySummary(query.view(named: "query"), on: pool)
    }

    /// Block means and self-similarities of keys `[heads, tokens, headDim]`, after subtracting their mean token.
    /// - Throws: `.invalidShape` when the tensor disagrees with the shape.
    public func keySummary<K: AttentionElement>(
        _ key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockSummary {
        try keySummary(key.view(named: "key"), on: pool)
    }
}

extension AntidiagonalScoring {
    /// Scores tensors `[heads, tokens, headDim]`: `callAsFunction` under the name of the call with views.
    /// - Throws: as `run` with views.
    public func run<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try run(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }
}

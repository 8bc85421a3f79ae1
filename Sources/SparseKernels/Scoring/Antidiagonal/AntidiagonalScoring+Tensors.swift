extension AntidiagonalScoring {
    /// Scores tensors `[heads, tokens, headDim]`, like `callAsFunction`, under the name of the call with views.
    /// - Throws: the errors of `run` with views.
    public func run<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try run(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }
}

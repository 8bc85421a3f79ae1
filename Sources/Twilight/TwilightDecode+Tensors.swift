public import SparseKernels

extension TwilightDecode {
    /// Runs the first step alone, for queries `[queryHeads, sequences, headDim]`. See `select` with a view.
    /// - Throws: as `decode`.
    public func select<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection? {
        try select(query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, on: pool)
    }

    /// Runs both steps without the attention, for queries `[queryHeads, sequences, headDim]`. See `prune` with a view.
    /// - Throws: as `decode`.
    public func prune<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenPruning {
        try prune(query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, on: pool)
    }
}

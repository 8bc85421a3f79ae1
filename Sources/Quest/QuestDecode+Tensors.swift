public import SparseKernels

extension QuestDecode {
    /// The pages of a step for queries `[queryHeads, sequences, headDim]`; nil in dense layers. See `select` with a view.
    /// - Throws: as `PageSelector.select`.
    public func select<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection? {
        try select(query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, on: pool)
    }
}

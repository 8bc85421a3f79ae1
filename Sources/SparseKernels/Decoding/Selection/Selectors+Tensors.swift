// Selectors and the pruner with queries as tensors `[queryHeads, sequences, headDim]` instead of views.

extension PageSelector {
    /// Selects for one query token of every sequence. See `select` with a view.
    /// - Throws: as `select` with a view, and `.invalidShape` for another rank.
    public func select<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection {
        try select(query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, on: pool)
    }

    /// Scores the pages for one query token, `[queryHeads, 1, headDim]`. See `pageScores` with a view.
    /// - Throws: as `pageScores` with a view, and `.invalidShape` for another rank.
    public func pageScores<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequence: PagedKVCache.SequenceID, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PageScores {
        try pageScores(query: query.view(named: "query"), cache: cache, sequence: sequence, layer: layer, on: pool)
    }
}

extension ReusableSelection {
    /// Selects, or returns the previous selection. See `select` with a view.
    /// - Throws: as `select` with a view, and `.invalidShape` for another rank.
    public mutating func select<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> KVSelection {
        try select(query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, on: pool)
    }
}

extension TokenPruner {
    /// Prunes for one query token of every sequence. See `prune` with a view.
    /// - Throws: as `prune` with a view, and `.invalidShape` for another rank.
    public func prune<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        within candidates: KVSelection? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> TokenPruning {
        try prune(
            query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer, within: candidates, on: pool)
    }
}

extension PagedAttention {
    /// Attends into a tensor that is reused from call to call. See `run` with views.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, Σ queryLengths, headDim]`, the sequences one after the other.
    ///   - cache: has the keys and values of all queries already.
    ///   - sequences: whose queries these are.
    ///   - queryLengths: queries of each sequence; 1 each unless given.
    ///   - layer: of the cache.
    ///   - selection: the tokens to attend; all unless given.
    ///   - output: `[queryHeads, Σ queryLengths, valueDim]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: as `run` with views, and `.invalidShape` for another rank.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selection: KVSelection? = nil, into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), cache: cache, sequences: sequences, queryLengths: queryLengths, layer: layer,
            selection: selection, output: output.mutableView(named: "output"), on: pool)
    }
}

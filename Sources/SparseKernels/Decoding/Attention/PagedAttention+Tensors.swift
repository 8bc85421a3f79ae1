extension PagedAttention {
    /// Attends into a tensor that is reused from call to call. See
    /// ``run(query:cache:sequences:queryLengths:layer:selection:heads:output:logSumExp:on:)``.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, Σ queryLengths, headDim]`, one sequence after the other.
    ///   - cache: the cache, which already has the keys and values of all queries.
    ///   - sequences: the sequences of the queries.
    ///   - queryLengths: queries of each sequence; 1 each unless given.
    ///   - layer: the layer of the cache.
    ///   - selection: the tokens to attend; all unless given.
    ///   - heads: the heads that attend for each sequence; all unless given.
    ///   - output: `[queryHeads, Σ queryLengths, valueDim]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selection: KVSelection? = nil, heads: HeadSelection? = nil, into output: inout Tensor<O>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), cache: cache, sequences: sequences, queryLengths: queryLengths, layer: layer,
            selection: selection, heads: heads, output: output.mutableView(named: "output"), on: pool)
    }
}

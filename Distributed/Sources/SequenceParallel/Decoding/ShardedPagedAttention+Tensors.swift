// Overloads for tensors, and forms that allocate their results.

extension ShardedPagedAttention {
    /// Attends queries that are the same on all ranks into a tensor that is reused from call to call. See
    /// ``run(query:cache:sequences:queryLengths:layer:selector:root:output:logSumExp:on:)``.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, Σ queryLengths, headDim]`, one sequence after the other.
    ///   - cache: the cache, which already has the keys and values of all queries.
    ///   - sequences: the sequences of the queries.
    ///   - queryLengths: queries of each sequence; 1 each unless given.
    ///   - layer: the layer of the cache.
    ///   - selector: chooses the pages to attend; nil attends all.
    ///   - root: the rank whose queries all use; nil when all have them.
    ///   - output: `[queryHeads, Σ queryLengths, valueDim]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank of a tensor.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, cache: ShardedKVCache, sequences: [ShardedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selector: ShardedPageSelector? = nil, root: Int? = nil, into output: inout Tensor<O>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), cache: cache, sequences: sequences, queryLengths: queryLengths, layer: layer,
            selector: selector, root: root, output: output.mutableView(named: "output"), on: pool)
    }

    /// Attends queries that are the same on all ranks into new memory. See
    /// ``run(query:cache:sequences:queryLengths:layer:selector:root:output:logSumExp:on:)``.
    public func callAsFunction<Q: AttentionElement>(
        query: Tensor<Q>, cache: ShardedKVCache, sequences: [ShardedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selector: ShardedPageSelector? = nil, root: Int? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let tokens = try query.view(named: "query").tokens
        var output = try Tensor<Float>(zeros: [queryHeads, tokens, configuration.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [queryHeads, tokens])
        try run(
            query: query.view(named: "query"), cache: cache, sequences: sequences, queryLengths: queryLengths, layer: layer,
            selector: selector, root: root, output: output.mutableView(named: "output"), logSumExp: logSumExp.mutableSpan,
            on: pool)
        return try AttentionState(output: output, logSumExp: logSumExp)
    }

    /// Attends queries of which every rank has its own into new memory. See
    /// ``run(query:shards:cache:sequence:layer:output:logSumExp:on:)``.
    public func callAsFunction<Q: AttentionElement>(
        query: Tensor<Q>, shards: TokenShards, cache: ShardedKVCache, sequence: ShardedKVCache.SequenceID, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let tokens = try query.view(named: "query").tokens
        var output = try Tensor<Float>(zeros: [queryHeads, tokens, configuration.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [queryHeads, tokens])
        try run(
            query: query.view(named: "query"), shards: shards, cache: cache, sequence: sequence, layer: layer,
            output: output.mutableView(named: "output"), logSumExp: logSumExp.mutableSpan, on: pool)
        return try AttentionState(output: output, logSumExp: logSumExp)
    }
}

public import SparseKernels

extension LServeLayer {
    /// Computes the attention of a prompt and stores its keys and values in the caches.
    ///
    /// Retrieval heads attend to the whole prompt, streaming heads to `prefillSinkTokens` and `prefillLocalTokens`. Attention
    /// uses the given keys and values; the stored ones are rounded to the format.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, tokens, headDim]`.
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: a sequence without tokens.
    ///   - pool: the threads to use.
    /// - Returns: output and LSE of all heads, in the model's order.
    /// - Throws: `.invalidArgument` for a sequence that has tokens; otherwise as `append`. The layer is unchanged then.
    public func prefill<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, sequence: SequenceID, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let length = try entry(of: sequence).length
        try require(
            length == 0, .invalidArgument, "sequence", expected: "without tokens before a prompt", actual: "\(length) tokens")
        let streaming = HeadPattern.streaming(
            sink: configuration.prefillSinkTokens, local: configuration.prefillLocalTokens)
        let shape = try AttentionShape(
            queryLength: key.tokens, keyLength: key.tokens, queryHeads: queryHeads, kvHeads: isRetrieval.count,
            headDim: headDim, valueDim: valueDim)
        let attention = try BlockSparseAttention(
            shape, heads: isRetrieval.map { $0 ? .dense : streaming }, isCausal: true, modifiers: modifiers,
            instructionSet: instructionSet)
        let state = try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try attention.run(
                query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
        }.state
        try append(key: key, value: value, to: sequence, on: pool)
        return state
    }

    /// Performs one step of decoding for one token of every sequence.
    ///
    /// Pages are selected from the caches as they were before the step. Then the tokens are appended, and each query attends to
    /// the selected pages and to the page of its own token.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`: token i is the next one of `sequences[i]`.
    ///   - key: `[kvHeads, sequences, headDim]`.
    ///   - value: `[kvHeads, sequences, valueDim]`.
    ///   - sequences: distinct sequences of any lengths.
    ///   - pool: the threads to use.
    /// - Returns: output `[queryHeads, sequences, valueDim]` and LSE, with the heads in the model's order.
    /// - Throws: `.invalidArgument` for a repeated sequence; otherwise as `append`. The layer is unchanged then.
    public func decode<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, sequences: [SequenceID],
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let count = sequences.count
        try query.geometry.requireExtents("query", heads: queryHeads, tokens: count, channels: headDim)
        try key.geometry.requireExtents("key", heads: isRetrieval.count, tokens: count, channels: headDim)
        try value.geometry.requireExtents("value", heads: isRetrieval.count, tokens: count, channels: valueDim)
        try require(
            Set(sequences).count == count, .invalidArgument, "sequences", expected: "different sequences",
            actual: "one of them twice")
        var before: [Entry] = []
        for sequence in sequences { before.append(try entry(of: sequence)) }

        let retrievalQuery = try Tensor(query, heads: retrievalHeads.query, tokens: 0..<count)
        // A copy, because the selection of a step whose tokens cannot be stored must not be kept.
        var reusable = selection
        var pages: KVSelection?
        if let cache = retrievalCache {
            pages = try reusable?.select(
                query: retrievalQuery.view(named: "query"), cache: cache, sequences: before.compactMap(\.retrieval), on: pool)
        }
        try appendStep(key: key, value: value, to: sequences, on: pool)
        selection = reusable

        var parts: [(heads: [Int], state: AttentionState)] = []
        if let cache = retrievalCache, let attention = retrievalAttention {
            let state = try attention(
                query: retrievalQuery, cache: cache, sequences: before.compactMap(\.retrieval),
                selection: pages?.covering(before.map { $0.length..<$0.length + 1 }), on: pool)
            parts.append((retrievalHeads.query, state))
        }
        if let cache = streamingCache, let attention = streamingAttention {
            let names = before.compactMap(\.streaming)
            let streamingQuery = try Tensor(query, heads: streamingHeads.query, tokens: 0..<count)
            parts.append(
                (streamingHeads.query, try attention(query: streamingQuery, cache: cache, sequences: names, on: pool)))
            for (name, entry) in zip(names, before) { try discardHidden(cache, name, length: entry.length + 1) }
        }
        return try AttentionState(heads: queryHeads, joining: parts)
    }
}

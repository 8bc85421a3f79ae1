public import SparseKernels

extension LServeLayer {
    /// Attention of a prompt, and its keys and values into the caches.
    ///
    /// Retrieval heads attend to all of the prompt, streaming heads to `prefillSinkTokens` and `prefillLocalTokens`, from the
    /// keys and values as they are given; what is stored is rounded to the format.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, tokens, headDim]`.
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: without tokens so far.
    ///   - pool: the threads to use.
    /// - Returns: output and LSE of all heads, in the order of the model.
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

    /// One step of decoding for one token of every sequence.
    ///
    /// Pages are selected from what the caches hold before the step, then the tokens are appended, and each query attends to
    /// the chosen pages and to the page of its own token.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`: token i is the next one of `sequences[i]`.
    ///   - key: `[kvHeads, sequences, headDim]`.
    ///   - value: `[kvHeads, sequences, valueDim]`.
    ///   - sequences: each once, of any lengths.
    ///   - pool: the threads to use.
    /// - Returns: output `[queryHeads, sequences, valueDim]` and LSE, in the order of the model's heads.
    /// - Throws: `.invalidArgument` for a sequence that is named twice; otherwise as `append`. The layer is unchanged then.
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
        // A copy, so that a step whose tokens cannot be stored is not remembered.
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

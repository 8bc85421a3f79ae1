public import SparseKernels

extension LServeLayer {
    /// Computes the attention of a prompt, or of the next piece of one, and stores its keys and values in the caches.
    ///
    /// Retrieval heads attend to everything up to the query, streaming heads to `prefillSinkTokens` and `prefillLocalTokens`. A
    /// sequence without tokens attends to the given keys and values; what is stored is rounded to the format. A later piece is
    /// stored first and attends to the caches, which are read page by page: to its own tokens as stored, and to those before.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, tokens, headDim]`.
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: a sequence without tokens; or any, for up to `promptChunkTokens` tokens. After a token was decoded,
    ///     streaming heads have only the window of decoding before the piece.
    ///   - pool: the threads to use.
    /// - Returns: output and LSE of all heads, in the model's order.
    /// - Throws: `.invalidArgument` for a sequence that has tokens, without `promptChunkTokens` or with a longer piece; otherwise
    ///   as `append`. The layer is unchanged then.
    public func prefill<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, sequence: SequenceID, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let length = try entry(of: sequence).length
        if length > 0 {
            return try prefillNext(query: query, key: key, value: value, sequence: sequence, on: pool)
        }
        let shape = try AttentionShape(
            queryLength: key.tokens, keyLength: key.tokens, queryHeads: queryHeads, kvHeads: isRetrieval.count,
            headDim: headDim, valueDim: valueDim)
        let attention = try BlockSparseAttention(
            shape, heads: isRetrieval.map { $0 ? .dense : prefillPattern }, isCausal: true, modifiers: modifiers,
            instructionSet: instructionSet)
        let state = try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try attention.run(
                query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
        }.state
        try append(key: key, value: value, to: sequence, keeping: keptFromPrompt(ofLength: key.tokens), on: pool)
        return state
    }

    private var prefillPattern: HeadPattern {
        .streaming(sink: configuration.prefillSinkTokens, local: configuration.prefillLocalTokens)
    }

    /// The first token of the window that streaming heads must keep after a prompt, if its next piece is to see it.
    private func keptFromPrompt(ofLength length: Int) -> Int {
        let local =
            configuration.promptChunkTokens == nil
            ? configuration.decodeLocalTokens : max(configuration.decodeLocalTokens, configuration.prefillLocalTokens)
        return length - local + 1
    }

    /// A piece of a prompt after the tokens that a sequence has.
    private func prefillNext<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, sequence: SequenceID, on pool: WorkerPool
    ) throws(SparseKernelsError) -> AttentionState {
        let (length, count) = (try entry(of: sequence).length, key.tokens)
        guard let largest = configuration.promptChunkTokens else {
            throw SparseKernelsError(
                .invalidArgument, "sequence", expected: "without tokens before a prompt, unless promptChunkTokens is set",
                actual: "\(length) tokens")
        }
        try require(
            count <= largest, .invalidArgument, "key.tokens", expected: "at most promptChunkTokens (\(largest))",
            actual: "\(count)")
        try query.geometry.requireExtents("query", heads: queryHeads, tokens: count, channels: headDim)
        // The first query of the piece sees the farthest back.
        try append(
            key: key, value: value, to: sequence, keeping: min(keptFromPrompt(ofLength: length), length), on: pool)
        let entry = try entry(of: sequence)
        var parts: [(heads: [Int], state: AttentionState)] = []
        if let cache = retrievalCache, let name = entry.retrieval {
            let rows = try cache.rows(of: name)
            parts.append((retrievalHeads.query, try attend(.dense, query, retrievalHeads, to: rows, on: pool)))
        }
        if let cache = streamingCache, let name = entry.streaming {
            // Exactly the sink lies before the gap: what else its last page holds may be outside of a query's window, whose
            // distances are right only after the gap.
            let gap = entry.hidden.isEmpty ? entry.hidden : configuration.prefillSinkTokens..<entry.hidden.upperBound
            let rows = try cache.rows(of: name, omitting: gap)
            parts.append((streamingHeads.query, try attend(prefillPattern, query, streamingHeads, to: rows, on: pool)))
            try discardHidden(of: sequence, keeping: keptFromPrompt(ofLength: entry.length))
        }
        return try AttentionState(heads: queryHeads, joining: parts)
    }

    /// The attention of the query heads of one kind to cached rows.
    private func attend<Q: AttentionElement>(
        _ pattern: HeadPattern, _ query: TensorView<Q>, _ heads: HeadGroup, to rows: CachedRows, on pool: WorkerPool
    ) throws(SparseKernelsError) -> AttentionState {
        let shape = try AttentionShape(
            queryLength: query.tokens, keyLength: rows.tokens, queryHeads: heads.query.count, kvHeads: heads.kv.count,
            headDim: headDim, valueDim: valueDim)
        let attention = try BlockSparseAttention(
            shape, heads: Array(repeating: pattern, count: heads.query.count), isCausal: true, modifiers: modifiers,
            instructionSet: instructionSet)
        let queries = try Tensor(query, heads: heads.query, tokens: 0..<query.tokens)
        return try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try attention.run(
                query: queries.view(named: "query"), key: rows.key, value: rows.value, output: output, logSumExp: logSumExp,
                on: pool)
        }.state
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
            for (sequence, entry) in zip(sequences, before) {
                try discardHidden(of: sequence, keeping: entry.length + 2 - configuration.decodeLocalTokens)
            }
        }
        return try AttentionState(heads: queryHeads, joining: parts)
    }
}

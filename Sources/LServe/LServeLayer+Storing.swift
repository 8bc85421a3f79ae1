public import SparseKernels

extension LServeLayer {
    /// Number of pages that an `append` adds to the streaming cache before it frees those that no later query attends to.
    static let slicePages = 16

    /// Appends tokens without attention, for a prompt whose attention was computed elsewhere.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`, with all heads in the model's order.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence that gets the tokens. Its next step selects pages anew.
    ///   - pool: the threads to use.
    /// - Throws: `.unknownSequence`; `.invalidShape` for other extents; `.capacityExceeded`; `.invalidArgument` for elements
    ///   that the formats cannot hold. The layer is unchanged then.
    /// - Complexity: O(elements). Scratch: copies of up to `slicePages` pages.
    public func append<K: AttentionElement, V: AttentionElement>(
        key: TensorView<K>, value: TensorView<V>, to sequence: SequenceID, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let end = try entry(of: sequence).length + key.tokens
        try append(
            key: key, value: value, to: sequence, keeping: end - configuration.decodeLocalTokens + 1, on: pool)
    }

    /// Appends tokens. Streaming heads keep their sink and the tokens from `kept` on.
    func append<K: AttentionElement, V: AttentionElement>(
        key: TensorView<K>, value: TensorView<V>, to sequence: SequenceID, keeping kept: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var entry = try entry(of: sequence)
        try key.geometry.requireExtents("key", heads: isRetrieval.count, tokens: key.tokens, channels: headDim)
        try value.geometry.requireExtents("value", heads: isRetrieval.count, tokens: key.tokens, channels: valueDim)
        if let cache = retrievalCache, let name = entry.retrieval {
            do throws(SparseKernelsError) {
                for tokens in slices(key.tokens) {
                    try store(key, value, tokens, of: retrievalHeads, in: cache, name, on: pool)
                }
            } catch {
                try cache.truncate(name, to: entry.length)
                throw error
            }
        }
        if let cache = streamingCache, let name = entry.streaming {
            // Freeing slices cannot be undone. So this works on a copy, which then replaces the sequence.
            do throws(SparseKernelsError) {
                // A piece of a prompt sees farther back than a step, which may have given back more already.
                let kept = max(kept, entry.hidden.upperBound)
                var hidden = entry.hidden
                entry.streaming = try replacing(name, in: cache) { copy throws(SparseKernelsError) in
                    for tokens in slices(key.tokens) {
                        try store(key, value, tokens, of: streamingHeads, in: cache, copy, on: pool)
                        // No more than the slice has stored.
                        let start = min(kept, entry.length + tokens.upperBound)
                        hidden = try discardHidden(cache, copy, keeping: start) ?? hidden
                    }
                }
                entry.hidden = hidden
            } catch {
                if let retrieval = retrievalCache, let name = entry.retrieval {
                    try retrieval.truncate(name, to: entry.length)
                }
                throw error
            }
        }
        entry.length += key.tokens
        entries[sequence] = entry
        if let name = entry.retrieval { selection?.forget(name) }
    }

    /// Appends token i to `sequences[i]` for a decoding step.
    /// - Throws: as `append`; the layer is unchanged then.
    func appendStep<K: AttentionElement, V: AttentionElement>(
        key: TensorView<K>, value: TensorView<V>, to sequences: [SequenceID], on pool: WorkerPool
    ) throws(SparseKernelsError) {
        var (retrieval, streaming): ([PagedKVCache.SequenceID], [PagedKVCache.SequenceID]) = ([], [])
        for sequence in sequences {
            let entry = try entry(of: sequence)
            if let name = entry.retrieval { retrieval.append(name) }
            if let name = entry.streaming { streaming.append(name) }
        }
        do throws(SparseKernelsError) {
            if let cache = retrievalCache {
                try storeStep(key, value, of: retrievalHeads, in: cache, retrieval, on: pool)
            }
            if let cache = streamingCache {
                try storeStep(key, value, of: streamingHeads, in: cache, streaming, on: pool)
            }
        } catch {
            for sequence in sequences {
                let entry = try entry(of: sequence)
                if let cache = retrievalCache, let name = entry.retrieval { try cache.truncate(name, to: entry.length) }
                if let cache = streamingCache, let name = entry.streaming { try cache.truncate(name, to: entry.length) }
            }
            throw error
        }
        for sequence in sequences { entries[sequence]?.length += 1 }
    }

    /// Frees the pages of a sequence's streaming heads that lie between the sink and `kept`.
    func discardHidden(of sequence: SequenceID, keeping kept: Int) throws(SparseKernelsError) {
        let entry = try entry(of: sequence)
        guard let cache = streamingCache, let name = entry.streaming else { return }
        if let hidden = try discardHidden(cache, name, keeping: max(kept, entry.hidden.upperBound)) {
            entries[sequence]?.hidden = hidden
        }
    }

    /// Frees the pages that lie between the sink and `kept`. Returns the tokens of these pages; nil when there are none.
    private func discardHidden(
        _ cache: PagedKVCache, _ name: PagedKVCache.SequenceID, keeping kept: Int
    ) throws(SparseKernelsError) -> Range<Int>? {
        let (size, sink) = (configuration.pageSize, configuration.keptSinkTokens)
        let first = LServeConfiguration.pages(sink, size) * size
        let end = max(0, kept) / size * size
        if end <= first { return nil }
        try cache.discard(name, tokens: first..<end)
        return first..<end
    }

    /// Replaces a sequence by a copy that `change` has changed, and keeps the sequence when `change` throws.
    private func replacing(
        _ name: PagedKVCache.SequenceID, in cache: PagedKVCache,
        _ change: (PagedKVCache.SequenceID) throws(SparseKernelsError) -> Void
    ) throws(SparseKernelsError) -> PagedKVCache.SequenceID {
        let copy = try cache.fork(name)
        do throws(SparseKernelsError) {
            try change(copy)
        } catch {
            try cache.free(copy)
            throw error
        }
        try cache.free(name)
        return copy
    }

    /// Stores some tokens of the heads of one kind in their cache.
    private func store<K: AttentionElement, V: AttentionElement>(
        _ key: TensorView<K>, _ value: TensorView<V>, _ tokens: Range<Int>, of heads: HeadGroup, in cache: PagedKVCache,
        _ name: PagedKVCache.SequenceID, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let keys = try Tensor(key, heads: heads.kv, tokens: tokens)
        let values = try Tensor(value, heads: heads.kv, tokens: tokens)
        try cache.append(
            key: keys.view(named: "key"), value: values.view(named: "value"), to: name, on: pool)
    }

    /// Stores one token of every sequence for the heads of one kind.
    private func storeStep<K: AttentionElement, V: AttentionElement>(
        _ key: TensorView<K>, _ value: TensorView<V>, of heads: HeadGroup, in cache: PagedKVCache,
        _ names: [PagedKVCache.SequenceID], on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if heads.kv.count == isRetrieval.count {
            return try cache.append(key: key, value: value, toEach: names, on: pool)
        }
        let keys = try Tensor(key, heads: heads.kv, tokens: 0..<key.tokens)
        let values = try Tensor(value, heads: heads.kv, tokens: 0..<key.tokens)
        try cache.append(key: keys, value: values, toEach: names, on: pool)
    }

    private func slices(_ tokens: Int) -> [Range<Int>] {
        let size = Self.slicePages * configuration.pageSize
        return stride(from: 0, to: tokens, by: size).map { $0..<min(tokens, $0 + size) }
    }
}

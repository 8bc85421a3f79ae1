extension TokenCompaction {
    /// Makes a sequence with the kept tokens of another one, in all layers.
    ///
    /// Rows are read as attention reads them, and stored again: exactly in float formats, while codes of quantised formats are made
    /// anew from their values. The new sequence has pages of its own, and the old one stays until it is freed.
    ///
    /// - Parameters:
    ///   - sequence: a sequence with ``tokenCount`` tokens in every layer that has any. Layers without tokens stay empty.
    ///   - cache: the cache of the sequence.
    ///   - pool: the threads to use.
    /// - Returns: the new sequence.
    /// - Throws: `.invalidShape` for a compaction of several sequences or a layer of another length; `.unknownSequence`;
    ///   `.invalidArgument` for discarded tokens; `.capacityExceeded` when there are not enough free pages. On errors the cache has the
    ///   sequences that it had.
    public func copy(
        _ sequence: PagedKVCache.SequenceID, in cache: PagedKVCache, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PagedKVCache.SequenceID {
        try require(sequences == 1, .invalidShape, "compaction", expected: "of 1 sequence", actual: "\(sequences)")
        for layer in 0..<cache.configuration.layers {
            let length = try cache.length(of: sequence, layer: layer)
            try require(
                length == 0 || length == tokenCount, .invalidShape, "layer \(layer)",
                expected: "0 or \(tokenCount) tokens", actual: "\(length)")
        }
        let copy = cache.makeSequence()
        do throws(SparseKernelsError) {
            for layer in 0..<cache.configuration.layers {
                if try cache.length(of: sequence, layer: layer) == 0 { continue }
                let keys = try self(cache.keys(of: sequence, layer: layer), on: pool)
                let values = try self(cache.values(of: sequence, layer: layer), on: pool)
                try cache.append(key: keys, value: values, to: copy, layer: layer, on: pool)
            }
        } catch {
            try cache.free(copy)
            throw error
        }
        return copy
    }
}

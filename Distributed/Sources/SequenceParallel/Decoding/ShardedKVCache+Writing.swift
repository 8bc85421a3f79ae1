// Appending: prompts, of which every rank has some rows or all, and steps.

extension ShardedKVCache {
    /// Appends tokens to one layer of a sequence, of which every rank has its own rows.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, shards.count(of: rank), headDim]`: the keys of the tokens that this rank owns, ascending. Of any
    ///     attention element type and strides. A rank that owns none may pass any view without tokens.
    ///   - value: `[kvHeads, shards.count(of: rank), valueDim]`.
    ///   - sequence: the sequence.
    ///   - shards: who owns the new tokens; the same on every rank. Layers that follow give their tokens the same owners.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `PagedKVCache.append`, and `.invalidArgument` for shards of another number of ranks, or that
    ///   have other owners than an earlier layer. When a rank has one, all ranks throw it, and nothing changes on any rank.
    /// - Complexity: O(own tokens + pieces), and one small message per rank.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, to sequence: SequenceID, shards: TokenShards, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let entry = try requireShards(shards, of: sequence, layer: layer)
        let own = shards.count(of: rank)
        let failure = catching { () throws(SparseKernelsError) in
            if own == 0, key.tokens == 0, value.tokens == 0 { return }
            try requireOperands(key: key, value: value, tokens: own)
            try requireHalfRange(key: key, value: value)
            try requireFreePages(pagesNeeded(for: own, of: entry, layer: layer))
        }
        var call = CallFingerprint("append", sequence.number, layer)
        call.add(shards)
        try agreement.settle(failure, call, "append")
        if own > 0 { try local.append(key: key, value: value, to: entry.name, layer: layer, on: pool) }
        extend(sequence, by: shards, layer: layer)
    }

    /// Appends tokens to one layer of a sequence, whose rows are on every rank. Each rank stores those that it owns.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`, the same on every rank.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `PagedKVCache.append`. When a rank has one, all ranks throw it, and nothing changes on any rank.
    /// - Complexity: O(own tokens + pages), and one small message per rank.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, to sequence: SequenceID, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let count = key.tokens
        let shards = try placement(of: count, in: sequence, layer: layer)
        let entry = try entry(of: sequence)
        let own = shards.ranges[rank]
        let failure = catching { () throws(SparseKernelsError) in
            try requireOperands(key: key, value: value, tokens: count)
            for range in own { try requireHalfRange(key: key.tokens(range), value: value.tokens(range)) }
            try requireFreePages(pagesNeeded(for: shards.count(of: rank), of: entry, layer: layer))
        }
        var call = CallFingerprint("append", sequence.number, layer)
        call.add(shards)
        try agreement.settle(failure, call, "append")
        for range in own {
            try local.append(key: key.tokens(range), value: value.tokens(range), to: entry.name, layer: layer, on: pool)
        }
        extend(sequence, by: shards, layer: layer)
    }

    /// Writes down who owns the new tokens of a layer.
    private func extend(_ sequence: SequenceID, by shards: TokenShards, layer: Int) {
        let start = entries[sequence.number]!.lengths[layer]
        let end = start + shards.length
        // Another layer may have some of them.
        let known = entries[sequence.number]!.tokens.length - start
        for piece in shards.pieces where piece.tokens.upperBound > known {
            let count = piece.tokens.upperBound - max(known, piece.tokens.lowerBound)
            entries[sequence.number]!.tokens.append(count, to: piece.rank)
            totals[piece.rank] += count
        }
        advance(sequence.number, layer: layer, to: end)
    }

    /// Writes down that a layer has tokens up to `end`, whose pages are those of the sequence alone.
    func advance(_ number: Int, layer: Int, to end: Int) {
        let start = entries[number]!.lengths[layer]
        entries[number]!.lengths[layer] = end
        let claimed = entries[number]!.claimed
        let touches = !claimed.isEmpty && claimed.lowerBound <= start && start <= claimed.upperBound
        entries[number]!.claimed = touches ? claimed.lowerBound..<max(claimed.upperBound, end) : start..<end
    }

    // MARK: - Before anything is written

    /// Throws, on every rank alike, unless tokens of a layer can have these owners.
    private func requireShards(
        _ shards: TokenShards, of sequence: SequenceID, layer: Int
    ) throws(SparseKernelsError) -> Entry {
        let entry = try entry(of: sequence)
        try requireLayer(layer)
        guard shards.ranks == ranks else {
            throw SparseKernelsError(
                .invalidArgument, "shards", expected: "of the \(ranks) ranks of the cache", actual: "of \(shards.ranks)")
        }
        let start = entry.lengths[layer]
        let known = min(entry.tokens.length - start, shards.length)
        if known == 0 { return entry }
        for rank in 0..<ranks {
            let placed = entry.tokens.ranges(of: rank, in: start..<start + known)
            let given = shards.ranges[rank].map { $0.clamped(to: 0..<known) }.filter { !$0.isEmpty }
            guard placed.map({ $0.lowerBound - start..<$0.upperBound - start }) == given else {
                throw SparseKernelsError(
                    .invalidArgument, "shards", expected: "with the owners that an earlier layer gave the tokens",
                    actual: "other ranges of rank \(rank)")
            }
        }
        return entry
    }

    func requireOperands<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, tokens: Int
    ) throws(SparseKernelsError) {
        try requireOperand(key, "key", tokens: tokens, channels: configuration.headDim)
        try requireOperand(value, "value", tokens: tokens, channels: configuration.valueDim)
    }

    private func requireOperand<Element: AttentionElement>(
        _ view: TensorView<Element>, _ name: String, tokens: Int, channels: Int
    ) throws(SparseKernelsError) {
        guard Element.self != CachedElement.self else {
            throw SparseKernelsError(
                .invalidElementType, name, expected: "elements in memory", actual: "cached rows")
        }
        guard view.heads == configuration.kvHeads, view.tokens == tokens, view.channels == channels else {
            throw SparseKernelsError(
                .invalidShape, name, expected: "[\(configuration.kvHeads), \(tokens), \(channels)]",
                actual: "[\(view.heads), \(view.tokens), \(view.channels)]")
        }
    }

    /// Throws for elements that the formats cannot represent. The local cache would, too, but when other ranks have written.
    func requireHalfRange<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>
    ) throws(SparseKernelsError) {
        let c = configuration
        if c.keyFormat.isQuantized || c.metadata != nil || c.keepsKeyEstimates { try requireHalfRange(key, "key") }
        if c.valueFormat.isQuantized { try requireHalfRange(value, "value") }
    }

    private func requireHalfRange<Element: AttentionElement>(
        _ view: TensorView<Element>, _ name: String
    ) throws(SparseKernelsError) {
        for head in 0..<view.heads {
            for token in 0..<view.tokens {
                let row = view.row(head: head, token: token)
                for channel in 0..<view.channels {
                    let element = row[channel].floatValue
                    guard abs(element) <= 65504 else {
                        throw SparseKernelsError(
                            .invalidArgument, name, expected: "finite elements of magnitude up to 65504, as half precision has",
                            actual: "\(element) at (\(head), \(token), \(channel))")
                    }
                }
            }
        }
    }

    /// The free pages that it takes to append rows to a layer of a sequence: new ones, and copies of shared ones.
    private func pagesNeeded(for rows: Int, of entry: Entry, layer: Int) throws(SparseKernelsError) -> Int {
        if rows == 0 { return 0 }
        let owners = try local.pageOwners(of: entry.name)
        let start = entry.tokens.count(of: rank, below: entry.lengths[layer])
        let positions = start / configuration.pageSize..<pageCount(start + rows)
        let existing = positions.lowerBound..<max(positions.lowerBound, min(positions.upperBound, owners.count))
        return positions.count - existing.count + owners[existing].count { $0 > 1 }
    }
}

extension ShardedPagedAttention {
    /// Attends queries of which every rank has its own: a prompt, or a chunk of one, that was appended with the same shards.
    ///
    /// The queries go to all ranks, which attend the tokens that they own; the states go back to the rank of the query, which
    /// merges them in the order of the ranks. That moves queries and outputs of the chunk, while the tokens before it stay
    /// where they are: the way to go where a chunk is short beside what it attends. For a whole prompt see
    /// ``SequenceParallelAttention``.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `shards.count(of: rank)` × `headDim`: the queries of the tokens that this rank has, ascending.
    ///     A rank without any passes a view without tokens.
    ///   - shards: who has which of the last `shards.length` tokens of the sequence.
    ///   - cache: the cache, which already has the keys and values of all queries.
    ///   - sequence: the sequence of the queries.
    ///   - layer: the layer of the cache.
    ///   - output: `queryHeads` × `shards.count(of: rank)` × `valueDim`.
    ///   - logSumExp: `[queryHeads, shards.count(of: rank)]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run(query:cache:sequences:…)`. When one rank has one, all throw it, and nothing is written.
    /// - Complexity: sends the own queries to each other rank, and their states back: per token `queryHeads` · (`headDim` ·
    ///   element size + (`valueDim` + 1) · 4) bytes.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, shards: TokenShards, cache: ShardedKVCache, sequence: ShardedKVCache.SequenceID,
        layer: Int = 0, output: consuming MutableTensorView<O>, logSumExp: consuming MutableSpan<Float>? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let entry = try check(cache, [sequence], layer: layer)[0]
        guard shards.ranks == ranks else {
            throw SparseKernelsError(
                .invalidArgument, "shards", expected: "of the \(ranks) ranks of the operator", actual: "of \(shards.ranks)")
        }
        let (own, logCount) = (shards.count(of: rank), logSumExp?.count)
        let outputGeometry = output.geometry
        let failure = catching { () throws(SparseKernelsError) in
            guard query.tokens == own else {
                throw SparseKernelsError(
                    .invalidShape, "query", expected: "the \(own) tokens that rank \(rank) has", actual: "\(query.tokens)")
            }
            if own > 0 {
                try check(query: query.geometry)
                try check(output: outputGeometry, logSumExp: logCount, count: own)
            }
        }
        if ranks == 1 {
            if let failure { throw failure }
            try attendAlone(query, entry, cache, layer, output, logSumExp, on: pool)
            return
        }
        var call = CallFingerprint("prompt", sequence.number, layer)
        call.add(entry.lengths[layer])
        call.add(MemoryLayout<Q>.stride)
        call.add(shards)
        try agreement.settle(failure, call, "attention")

        let start = WaitClock.now
        let queries = try gather(query, shards)
        let gathered = WaitClock.now
        let states = try attend(queries, of: Q.self, shards, cache, entry, layer, on: pool)
        let attended = WaitClock.now
        let received = try exchange(states, shards)
        statistics.calls += 1
        statistics.attentionSeconds += attended - gathered
        statistics.exchangeSeconds += gathered - start + WaitClock.now - attended
        statistics.sentBytes +=
            (ranks - 1) * own * queryHeads * configuration.headDim * MemoryLayout<Q>.stride
            + (shards.length - own) * records.bytesPerToken
        merge(
            received, firstByte: 0, stride: own * records.bytesPerToken, count: own, into: output, logSumExp: logSumExp,
            on: pool)
    }

    /// Gives every rank the queries of all, rank by rank and token by token.
    private func gather<Q: AttentionElement>(
        _ query: TensorView<Q>, _ shards: TokenShards
    ) throws(SparseKernelsError) -> MessageBuffer {
        let bytesPerToken = queryHeads * configuration.headDim * MemoryLayout<Q>.stride
        let buffer = try buffer(.queries, byteCount: shards.length * bytesPerToken)
        var (counts, first) = ([Int](), 0)
        for rank in 0..<ranks {
            if rank < self.rank { first += shards.count(of: rank) * bytesPerToken }
            counts.append(shards.count(of: rank) * bytesPerToken)
        }
        var target = buffer.address + first
        for token in 0..<query.tokens {
            for head in 0..<queryHeads {
                query.row(head: head, token: token).withUnsafeBytes {
                    target.copyMemory(from: $0.baseAddress!, byteCount: $0.count)
                    target += $0.count
                }
            }
        }
        try communicator.allGather(buffer, counts: counts)
        return buffer
    }

    /// Attends this rank's tokens for all queries. Then all ranks have, or throw.
    private func attend<Q: AttentionElement>(
        _ queries: MessageBuffer, of type: Q.Type, _ shards: TokenShards, _ cache: ShardedKVCache,
        _ entry: ShardedKVCache.Entry, _ layer: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> MessageBuffer {
        let (count, channels) = (shards.length, configuration.headDim)
        try reserveLogSumExp(count)
        let states = try buffer(.sent, byteCount: count * records.bytesPerToken)
        let start = entry.lengths[layer] - count
        var positions: [Int] = []
        positions.reserveCapacity(count)
        for rank in 0..<ranks { for range in shards.ranges[rank] { for token in range { positions.append(start + token) } } }
        let attention = LocalAttention(causal: causal, full: full, records: records, logSumExp: logSumExp)
        let failure = catching { () throws(SparseKernelsError) in
            let geometry = try TensorGeometry(
                heads: queryHeads, tokens: count, channels: channels, headStride: channels, tokenStride: queryHeads * channels)
            try attention.attend(
                queries.view(Q.self, geometry: geometry, named: "query"), positions: positions, cache, entry, mask: mask,
                layer: layer, into: states, atByte: 0, on: pool)
        }
        try agreement.settle(failure, CallFingerprint("prompt", layer), "attention")
        return states
    }

    /// Sends states to the ranks of their queries.
    private func exchange(_ states: MessageBuffer, _ shards: TokenShards) throws(SparseKernelsError) -> MessageBuffer {
        let own = shards.count(of: rank) * records.bytesPerToken
        let received = try buffer(.received, byteCount: ranks * own)
        try communicator.allToAll(
            from: states, counts: (0..<ranks).map { shards.count(of: $0) * records.bytesPerToken }, into: received,
            counts: Array(repeating: own, count: ranks))
        return received
    }

    /// Attends on one rank: with the bits of paged attention, and of dense attention over the pages where queries are many.
    private func attendAlone<Q: AttentionElement, O: AttentionElement>(
        _ query: TensorView<Q>, _ entry: ShardedKVCache.Entry, _ cache: ShardedKVCache, _ layer: Int,
        _ output: consuming MutableTensorView<O>, _ logSumExp: consuming MutableSpan<Float>?, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let dense: AttentionMask? =
            switch mask {
            case .causal: .causal
            case .full: .full
            case .window(let left, let right): .window(left: left, right: right)
            case .streaming: nil
            }
        guard let dense, query.tokens > LocalAttention.fewQueries else {
            try whole.run(
                query: query, cache: cache.local, sequences: [entry.name], queryLengths: [query.tokens], layer: layer,
                output: output, logSumExp: logSumExp, on: pool)
            return
        }
        let cached = try cache.local.rows(of: entry.name, layer: layer)
        let shape = try AttentionShape(
            queryLength: query.tokens, keyLength: cached.tokens, queryHeads: queryHeads, kvHeads: configuration.kvHeads,
            headDim: configuration.headDim, valueDim: configuration.valueDim)
        try DenseAttention(shape, mask: dense, modifiers: modifiers, instructionSet: whole.instructionSet).run(
            query: query, key: cached.key, value: cached.value, output: output, logSumExp: logSumExp, on: pool)
    }
}

// Steps of decoding: a token for each of some sequences.

extension ShardedKVCache {
    /// Appends one token to one layer of each of several sequences: what a step of decoding does on every rank. Each rank
    /// stores the tokens that it owns.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, sequences, headDim]`, the same on every rank: token i goes to `sequences[i]`.
    ///   - value: `[kvHeads, sequences, valueDim]`.
    ///   - sequences: different sequences.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and sequences in parallel.
    /// - Throws: the errors of `PagedKVCache.append(key:value:toEach:layer:on:)`, on every rank. Nothing changes then.
    /// - Complexity: O(sequences · ranks). One small message per rank where a token begins a page of its owner, or its page may
    ///   be shared; otherwise none.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, toEach sequences: [SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try requireLayer(layer)
        for sequence in sequences { _ = try entry(of: sequence) }
        try requireOperands(key: key, value: value, tokens: sequences.count)
        if sequences.count > 1, Set(sequences).count != sequences.count {
            throw SparseKernelsError(
                .invalidArgument, "sequences", expected: "different sequences", actual: "one of them twice")
        }
        // Every rank has the rows of all, so that all find the same.
        try requireHalfRange(key: key, value: value)

        let step = try planStep(sequences, layer: layer)
        if step.claims {
            let failure = catching { () throws(SparseKernelsError) in try requireFreePages(pagesNeeded(step, layer: layer)) }
            var call = CallFingerprint("step", layer, sequences.count)
            for sequence in sequences { call.add(sequence.number) }
            try agreement.settle(failure, call, "append")
        }
        var first = 0
        while first < sequences.count {
            var end = first
            while end < sequences.count, step.owners[end] == rank { end += 1 }
            if end > first {
                try local.append(
                    key: key.tokens(first..<end), value: value.tokens(first..<end), toEach: Array(step.names[first..<end]),
                    layer: layer, on: pool)
            }
            first = end + 1
        }
        for (index, sequence) in sequences.enumerated() {
            let position = entries[sequence.number]!.lengths[layer]
            if entries[sequence.number]!.tokens.length == position {
                entries[sequence.number]!.tokens.append(1, to: step.owners[index])
                totals[step.owners[index]] += 1
            }
            advance(sequence.number, layer: layer, to: position + 1)
        }
    }

    /// What a step is about to do.
    private struct Step {
        var owners: [Int] = []
        var names: [PagedKVCache.SequenceID] = []
        /// The rows that the tokens become in the caches of their owners.
        var rows: [Int] = []
        /// Whether a page may have to be taken, on any rank.
        var claims = false
    }

    private func planStep(_ sequences: [SequenceID], layer: Int) throws(SparseKernelsError) -> Step {
        var step = Step()
        step.owners.reserveCapacity(sequences.count)
        step.names.reserveCapacity(sequences.count)
        step.rows.reserveCapacity(sequences.count)
        var totals = totals
        for sequence in sequences {
            let entry = entries[sequence.number]!
            let position = entry.lengths[layer]
            let owner: Int
            if position < entry.tokens.length {
                owner = entry.tokens.owner(of: position)
            } else {
                owner = nextOwner(of: entry.tokens, totals)
                totals[owner] += 1
            }
            let row = entry.tokens.count(of: owner, below: position)
            step.owners.append(owner)
            step.names.append(entry.name)
            step.rows.append(row)
            if entry.claimed.contains(position) { continue }
            // A page that the owner has begun for a claimed token has room for this one.
            let continues =
                row % configuration.pageSize != 0
                && entry.claimed.contains(entry.tokens.token(ofRow: row - 1, of: owner))
            if !continues { step.claims = true }
        }
        return step
    }

    /// The free pages that this rank needs for a step. The last of several sequences that share a page writes in place.
    private func pagesNeeded(_ step: Step, layer: Int) throws(SparseKernelsError) -> Int {
        var needed = 0
        var writers: [Int32: (count: Int, owners: Int)] = [:]
        for index in step.owners.indices where step.owners[index] == rank {
            let position = step.rows[index] / configuration.pageSize
            let owners = try local.pageOwners(of: step.names[index])
            if position >= owners.count {
                needed += 1
            } else if owners[position] > 1 {
                let page = try local.pageTable(of: step.names[index])[position]
                writers[page, default: (0, owners[position])].count += 1
            }
        }
        for writer in writers.values { needed += min(writer.count, writer.owners - 1) }
        return needed
    }
}

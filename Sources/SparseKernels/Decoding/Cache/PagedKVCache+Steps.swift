internal import KernelInterface

extension PagedKVCache {
    /// Appends one token to one layer of each of several sequences: what a step of decoding does.
    ///
    /// It does what `append` does for every sequence, in one call of the pool.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, sequences, headDim]`: token i goes to `sequences[i]`. Any attention element type and strides.
    ///   - value: `[kvHeads, sequences, valueDim]`.
    ///   - sequences: different sequences. They get new pages where they need them, and copies of shared pages.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and sequences in parallel.
    /// - Throws: the errors of `append(key:value:to:layer:on:)`; `.invalidShape` when there are not as many tokens as sequences;
    ///   `.invalidArgument` for a sequence that is named twice. On errors nothing changes.
    /// - Complexity: O(sequences).
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, toEach sequences: [SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        var indices: [Int] = []
        indices.reserveCapacity(sequences.count)
        for name in sequences { indices.append(try table.index(of: name)) }
        try requireLayer(layer)
        try requireOperands(key: key, value: value)
        try require(
            key.tokens == sequences.count, .invalidShape, "key.tokens", expected: "\(sequences.count), one per sequence",
            actual: "\(key.tokens)")
        try require(
            sequences.count < 2 || Set(sequences).count == sequences.count, .invalidArgument, "sequences",
            expected: "different sequences", actual: "one of them twice")
        if sequences.isEmpty { return }
        try requireRange(key: key, value: value, on: pool)
        try claimLastPages(of: indices, layer: layer)

        var places: [StepWrite.Place] = []
        places.reserveCapacity(indices.count)
        for index in indices {
            let length = table.entries[index].lengths[layer]
            places.append(
                StepWrite.Place(
                    page: table.entries[index].pages[length / configuration.pageSize],
                    offset: Int32(truncatingIfNeeded: length % configuration.pageSize)))
            table.entries[index].lengths[layer] = length + 1
        }
        places.withUnsafeBufferPointer { places in
            StepWrite(
                storage: storage, layer: layer, key: AttentionOperand(key), value: AttentionOperand(value),
                places: places.baseAddress!, count: indices.count
            ).run(on: pool)
        }
    }

    /// Gives every sequence a page of its own for its next token. When too few are free, it throws and nothing changes.
    private func claimLastPages(of indices: [Int], layer: Int) throws(SparseKernelsError) {
        var needed = 0
        // Sequences of the step per shared page: the last owner of a page writes in place.
        var writers: [Int32: Int] = [:]
        for index in indices {
            let position = table.entries[index].lengths[layer] / configuration.pageSize
            if position >= table.entries[index].pages.count {
                needed += 1
            } else if pages.isShared(table.entries[index].pages[position]) {
                writers[table.entries[index].pages[position], default: 0] += 1
            }
        }
        for (page, count) in writers { needed += min(count, Int(pages.referenceCounts[Int(page)]) - 1) }
        try requireFreePages(needed)
        for index in indices {
            let position = table.entries[index].lengths[layer] / configuration.pageSize
            if position >= table.entries[index].pages.count {
                table.entries[index].pages.append(pages.take())
            } else if pages.isShared(table.entries[index].pages[position]) {
                separatePage(at: position, of: index)
            }
        }
    }
}

/// A write of one token of every sequence. A task is one head of one token; no two tasks touch the same memory.
private struct StepWrite: PoolCall {
    struct Place {
        let page: Int32
        let offset: Int32
    }

    let storage: KVStorage
    let layer: Int
    let key: AttentionOperand
    let value: AttentionOperand
    let places: UnsafePointer<Place>
    let count: Int

    func run(on pool: WorkerPool) {
        let configuration = storage.configuration
        let bytes = (configuration.headDim + configuration.valueDim) * 4
        pool.run(
            self, tasks: configuration.kvHeads * count, work: count * configuration.kvHeads * bytes,
            scratchByteCount: KVStorage.scratchByteCount(configuration))
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (head, token) = (task / count, task % count)
        let (page, offset) = (Int(places[token].page), Int(places[token].offset))
        storage.write(
            layer: layer, head: head, slot: page * storage.configuration.pageSize + offset, count: 1,
            key: key.rows(head: head), firstKey: token, value: value.rows(head: head), firstValue: token, scratch: scratch)
        storage.summarise(
            layer: layer, head: head, page: page, tokens: offset..<offset + 1, filled: offset + 1, appends: true,
            scratch: scratch)
    }
}

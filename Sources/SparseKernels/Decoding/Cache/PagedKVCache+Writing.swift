internal import KernelInterface

extension PagedKVCache {
    /// Appends tokens to one layer of a sequence.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`, of any attention element type and strides. Rotary embeddings are applied already.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence. It gets new pages where it needs them, and copies of shared pages that it writes to.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: `.unknownSequence`; `.invalidShape` for other extents; `.invalidArgument` for a layer that the cache does not
    ///   have, and for elements that the format cannot represent (see ``PagedKVCache``); `.capacityExceeded` when the call
    ///   needs more pages than are free, copies included. On errors nothing changes.
    /// - Complexity: O(tokens). One token is O(1), with no allocation except when the table grows.
    /// - Scratch: `KVStorage.scratchByteCount` per thread, from the pool.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, to sequence: SequenceID, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let index = try table.index(of: sequence)
        try requireLayer(layer)
        try requireOperands(key: key, value: value)
        let position = table.entries[index].lengths[layer]
        try write(key: key, value: value, tokens: position..<position + key.tokens, of: index, layer: layer, on: pool)
    }

    /// Replaces existing tokens of one layer of a sequence.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence. It gets copies of shared pages that it writes to.
    ///   - position: the first of the replaced tokens. All of them must be below the length of the layer, and none discarded.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `append(key:value:to:layer:on:)`; `.invalidArgument` for positions without a token.
    /// - Complexity: O(tokens). One token is O(1).
    public func overwrite<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, in sequence: SequenceID, from position: Int, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let index = try table.index(of: sequence)
        try requireLayer(layer)
        try requireOperands(key: key, value: value)
        let last = table.entries[index].lengths[layer] - key.tokens
        try require(
            position >= 0 && position <= last, .invalidArgument, "position",
            expected: last >= 0
                ? "from 0 to \(last), so that \(key.tokens) tokens fit" : "of a layer with \(key.tokens) tokens or more",
            actual: "\(position)")
        let tokens = position..<position + key.tokens
        try requireTokens(tokens, of: index, argument: "position")
        try write(key: key, value: value, tokens: tokens, of: index, layer: layer, on: pool)
    }

    // MARK: - Before anything is written

    func requireOperands<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>
    ) throws(SparseKernelsError) {
        try key.requireMemory(named: "key")
        try value.requireMemory(named: "value")
        try requireOperand(key.geometry, channels: configuration.headDim, named: "key")
        try requireOperand(value.geometry, channels: configuration.valueDim, named: "value")
        try require(
            value.tokens == key.tokens, .invalidShape, "value.tokens", expected: "\(key.tokens), as the keys",
            actual: "\(value.tokens)")
    }

    /// Throws for elements that the formats cannot represent.
    func requireRange<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if configuration.boundsKeys { try key.requireHalfRange(named: "key", on: pool) }
        if configuration.boundsValues { try value.requireHalfRange(named: "value", on: pool) }
    }

    private func requireOperand(
        _ geometry: TensorGeometry, channels: Int, named name: String
    ) throws(SparseKernelsError) {
        try require(
            geometry.heads == configuration.kvHeads && geometry.channels == channels, .invalidShape, name,
            expected: "[\(configuration.kvHeads), tokens, \(channels)]",
            actual: "[\(geometry.heads), \(geometry.tokens), \(geometry.channels)]")
    }

    /// Throws when the pages of some tokens were discarded.
    func requireTokens(_ tokens: Range<Int>, of index: Int, argument: String) throws(SparseKernelsError) {
        let positions = tokens.lowerBound / configuration.pageSize..<pageCount(tokens.upperBound)
        for position in positions where table.entries[index].pages[position] == CachedSequence.hole {
            let start = position * configuration.pageSize
            throw SparseKernelsError(
                .invalidArgument, argument, expected: "outside of discarded pages",
                actual: "\(tokens), with \(start)..<\(start + configuration.pageSize) discarded")
        }
    }

    /// Gives a sequence pages of its own at some positions of its table: new ones, and copies of shared ones. When too few are
    /// free, it throws and nothing changes.
    private func claimPages(at positions: Range<Int>, of index: Int) throws(SparseKernelsError) {
        let existing = positions.lowerBound..<min(positions.upperBound, table.entries[index].pages.count)
        var needed = positions.count - existing.count
        for position in existing where pages.isShared(table.entries[index].pages[position]) { needed += 1 }
        try requireFreePages(needed)

        for position in existing where pages.isShared(table.entries[index].pages[position]) {
            separatePage(at: position, of: index)
        }
        for _ in existing.upperBound..<positions.upperBound { table.entries[index].pages.append(pages.take()) }
    }

    // MARK: - Writing

    private func write<Key: AttentionElement, Value: AttentionElement>(
        key: TensorView<Key>, value: TensorView<Value>, tokens: Range<Int>, of index: Int, layer: Int,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if tokens.isEmpty { return }
        try requireRange(key: key, value: value, on: pool)
        let positions = tokens.lowerBound / configuration.pageSize..<pageCount(tokens.upperBound)
        try claimPages(at: positions, of: index)

        let before = table.entries[index].lengths[layer]
        let length = max(before, tokens.upperBound)
        table.entries[index].lengths[layer] = length
        table.entries[index].pages.withUnsafeBufferPointer { pages in
            let call = PageWrite(
                storage: storage, layer: layer, key: AttentionOperand(key), value: AttentionOperand(value),
                tokens: tokens, length: length, appends: tokens.lowerBound == before, positions: positions,
                pages: pages.baseAddress!)
            call.run(on: pool)
        }
    }
}

/// A write of tokens into the pages of one layer. A task is one head of one page; no two tasks touch the same memory.
private struct PageWrite: PoolCall {
    let storage: KVStorage
    let layer: Int
    let key: AttentionOperand
    let value: AttentionOperand
    /// The tokens of the sequence that the rows of the operands become.
    let tokens: Range<Int>
    /// The length of the layer after the write.
    let length: Int
    /// Whether all tokens are new.
    let appends: Bool
    /// The positions of `tokens` in the page table.
    let positions: Range<Int>
    /// The whole page table.
    let pages: UnsafePointer<Int32>

    func run(on pool: WorkerPool) {
        let configuration = storage.configuration
        let bytes = (configuration.headDim + configuration.valueDim) * 4
        pool.run(
            self, tasks: configuration.kvHeads * positions.count, work: tokens.count * configuration.kvHeads * bytes,
            scratchByteCount: KVStorage.scratchByteCount(configuration))
    }

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let pageSize = storage.configuration.pageSize
        let (head, position) = (task / positions.count, positions.lowerBound + task % positions.count)
        let start = position * pageSize
        let written = max(tokens.lowerBound, start)..<min(tokens.upperBound, start + pageSize)
        let page = Int(pages[position])
        let first = written.lowerBound - tokens.lowerBound
        storage.write(
            layer: layer, head: head, slot: page * pageSize + written.lowerBound - start, count: written.count,
            key: key.rows(head: head), firstKey: first, value: value.rows(head: head), firstValue: first, scratch: scratch)
        storage.summarise(
            layer: layer, head: head, page: page, tokens: written.lowerBound - start..<written.upperBound - start,
            filled: min(pageSize, length - start), appends: appends, scratch: scratch)
    }
}

/// Attention of new queries over the tokens of a ``ShardedKVCache``: decoding over several ranks, and prompts in chunks.
///
/// Every rank attends the tokens that it owns, for all queries. It sends the states, outputs and LSE, to the other ranks in one
/// message, and merges what it gets in the order of the ranks. So all ranks have the same result, whatever the timing, and the
/// bandwidth of their memories adds up.
///
/// ```swift
/// let attention = try ShardedPagedAttention(queryHeads: 32, configuration: cache.configuration, on: ranks)
/// try cache.append(key: key, value: value, toEach: [sequence])
/// let state = try attention(query: query, cache: cache, sequences: [sequence])    // the same on every rank
/// ```
///
/// - Every rank makes the same calls with the same arguments and, unless one sends them, the same queries. When one rank cannot
///   do a call, all throw its error.
/// - Results are bitwise equal on all ranks, for every number of threads of each, and in every run. They are those of
///   ``PagedAttention`` over all tokens up to rounding, and on one rank its bits.
/// - A query that attends no token gives output 0 and LSE −∞. Input that is not finite affects only the queries that see it.
/// - Linear biases (ALiBi) need positions that the ranks' caches do not have, and are refused on more than one rank.
/// - Complexity: each rank does the work of ``PagedAttention`` for its own tokens, and merges `ranks` states per query and
///   head. Sends ``messageByteCount(queries:)`` to each other rank.
/// - Memory: messages of `ranks` states per query, grown when a call has more queries than any before; otherwise as
///   ``PagedAttention``.
/// - Source: FlashDecoding (Dao et al., 2023) over ranks instead of threads; states and their merge as in Ye et al., FlashInfer
///   (arXiv 2501.01005).
public final class ShardedPagedAttention {
    public let queryHeads: Int
    public let configuration: KVCacheConfiguration
    public let mask: KVMask
    public let modifiers: ScoreModifiers
    public let communicator: any Communicator
    /// Seconds and bytes of the calls so far.
    public internal(set) var statistics = ShardedAttentionStatistics()

    /// The operator on one rank.
    let whole: PagedAttention
    let causal: PagedAttention
    let full: PagedAttention
    let agreement: RankAgreement
    let records: AttentionRecords
    /// States of all ranks, behind what each says.
    private var message: MessageBuffer
    private var counts: [Int] = []
    private var queries: MessageBuffer
    /// Queries of all ranks, their states over this rank's tokens, and the states of this rank's queries.
    private var shardBuffers: [ShardBuffer: MessageBuffer] = [:]
    var logSumExp: MessageBuffer

    enum ShardBuffer: Hashable {
        case queries
        case sent
        case received
    }

    /// This rank and the number of ranks.
    var rank: Int { communicator.rank }
    var ranks: Int { communicator.count }

    /// Makes the operator for caches of one configuration. Every rank calls it.
    ///
    /// - Parameters:
    ///   - queryHeads: a multiple of the cache's `kvHeads`.
    ///   - configuration: the configuration of the caches, which is that of a rank.
    ///   - mask: the tokens that a query attends.
    ///   - modifiers: how scores become probabilities.
    ///   - communicator: that of the caches.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: the errors of ``PagedAttention``; `.invalidArgument` for ALiBi on more than one rank; `.communication` when
    ///   ranks have other arguments.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, mask: KVMask = .causal,
        modifiers: ScoreModifiers = ScoreModifiers(), on communicator: any Communicator,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        whole = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, mask: mask, modifiers: modifiers,
            instructionSet: instructionSet)
        guard modifiers.aliBiSlopes == nil || communicator.count == 1 else {
            throw SparseKernelsError(
                .invalidArgument, "modifiers.aliBiSlopes", expected: "nil on more than one rank", actual: "slopes")
        }
        // A sink counts once.
        var own = modifiers
        if communicator.rank > 0 { own.sinkLogits = nil }
        causal = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, modifiers: own, instructionSet: instructionSet)
        full = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, mask: .full, modifiers: own, instructionSet: instructionSet)
        self.queryHeads = queryHeads
        self.configuration = configuration
        self.mask = mask
        self.modifiers = modifiers
        self.communicator = communicator
        records = AttentionRecords(heads: queryHeads, channels: configuration.valueDim)
        agreement = try RankAgreement(communicator)
        message = try MessageBuffer(byteCount: 0)
        queries = try MessageBuffer(byteCount: 0)
        logSumExp = try MessageBuffer(byteCount: 0)
        if communicator.count > 1 {
            try communicator.agree(on: "\(queryHeads), \(configuration), \(mask), \(modifiers)", "ShardedPagedAttention")
        }
    }

    /// Bytes that a rank sends to each other rank in a call with so many queries, over all sequences.
    public func messageByteCount(queries: Int) -> Int {
        // Parts keep the alignment of what ranks say.
        (RankAgreement.byteCount + queries * records.bytesPerToken + 15) / 16 * 16
    }

    /// Attends queries that are the same on all ranks into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × Σ `queryLengths` × `headDim`, one sequence after the other. With a `root`, other ranks may
    ///     pass any view of the same extents and element type; it is not read.
    ///   - cache: the cache, which already has the keys and values of all queries.
    ///   - sequences: the sequences of the queries.
    ///   - queryLengths: queries of each sequence, 0 or more; 1 each unless given. Query i of n has position length − n + i.
    ///   - layer: the layer of the cache.
    ///   - selector: chooses the pages to attend; nil attends all. Needs one query per sequence and the mask `.causal` or
    ///     `.full`.
    ///   - root: the rank whose queries all use; nil when all have them.
    ///   - output: `queryHeads` × Σ `queryLengths` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials of each row, `[queryHeads, Σ queryLengths]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `PagedAttention.run`; `.communication`. When one rank has one, all throw it, and nothing is
    ///   written.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, cache: ShardedKVCache, sequences: [ShardedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selector: ShardedPageSelector? = nil, root: Int? = nil,
        output: consuming MutableTensorView<O>, logSumExp: consuming MutableSpan<Float>? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let entries = try check(cache, sequences, layer: layer)
        let count = try check(query.geometry, sequences, queryLengths, selector)
        try check(root: root)
        let logCount = logSumExp?.count
        try check(output: output.geometry, logSumExp: logCount, count: count)
        if ranks == 1 {
            let names = entries.map(\.name)
            let selection = try selector?.select(query: query, cache: cache, sequences: sequences, layer: layer, on: pool)
            try whole.run(
                query: query, cache: cache.local, sequences: names, queryLengths: queryLengths, layer: layer,
                selection: selection, output: output, logSumExp: logSumExp, on: pool)
            return
        }
        try reserve(count)
        if let root {
            let queries = try send(query, from: root)
            try attend(
                queries.view(Q.self, geometry: query.geometry.packed(), named: "query"), cache, sequences, entries,
                queryLengths, layer, selector, on: pool)
        } else {
            try attend(query, cache, sequences, entries, queryLengths, layer, selector, on: pool)
        }
        let stride = messageByteCount(queries: count)
        merge(
            message, firstByte: RankAgreement.byteCount, stride: stride, count: count, into: output, logSumExp: logSumExp,
            on: pool)
    }

    /// Attends this rank's tokens for all queries, and exchanges states.
    private func attend<Q: AttentionElement>(
        _ query: TensorView<Q>, _ cache: ShardedKVCache, _ sequences: [ShardedKVCache.SequenceID],
        _ entries: [ShardedKVCache.Entry], _ queryLengths: [Int]?, _ layer: Int, _ selector: ShardedPageSelector?,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let start = WaitClock.now
        var selection: KVSelection?
        if let selector {
            selection = try selector.select(query: query, cache: cache, sequences: sequences, layer: layer, on: pool)
        }
        let stride = messageByteCount(queries: query.tokens)
        let part = rank * stride
        let failure = catching { () throws(SparseKernelsError) in
            try attendRows(
                query, cache, entries, queryLengths, layer, selection, atByte: part + RankAgreement.byteCount, on: pool)
        }
        var call = CallFingerprint("attention", layer, query.tokens)
        for (index, sequence) in sequences.enumerated() {
            call.add(sequence.number)
            call.add(entries[index].lengths[layer])
        }
        RankAgreement.write(failure, call, to: message, atByte: part)
        let sending = WaitClock.now
        if counts[0] != stride { for rank in 0..<ranks { counts[rank] = stride } }
        try communicator.allGather(message, counts: counts)
        let end = WaitClock.now
        statistics.calls += 1
        statistics.attentionSeconds += sending - start
        statistics.exchangeSeconds += end - sending
        statistics.sentBytes += (ranks - 1) * stride
        try agreement.check(message, stride: stride, failure, "attention")
    }

    private func attendRows<Q: AttentionElement>(
        _ query: TensorView<Q>, _ cache: ShardedKVCache, _ entries: [ShardedKVCache.Entry], _ queryLengths: [Int]?,
        _ layer: Int, _ selection: KVSelection?, atByte offset: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let attention = LocalAttention(causal: causal, full: full, records: records, logSumExp: logSumExp)
        guard let queryLengths, queryLengths.contains(where: { $0 != 1 }) else {
            try attention.attendStep(
                query, cache, entries, mask: mask, layer: layer, selection: selection, into: message, atByte: offset, on: pool)
            return
        }
        var first = 0
        for (index, entry) in entries.enumerated() {
            let (count, length) = (queryLengths[index], entry.lengths[layer])
            try attention.attend(
                query.tokens(first..<first + count), positions: Array(length - count..<length), cache, entry, mask: mask,
                layer: layer, into: message, atByte: offset + first * records.bytesPerToken, on: pool)
            first += count
        }
    }

    /// Merges the states of all ranks.
    func merge<O: AttentionElement>(
        _ message: MessageBuffer, firstByte: Int, stride: Int, count: Int, into output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>?, on pool: WorkerPool
    ) {
        if count == 0 { return }
        let start = WaitClock.now
        let geometry = output.geometry
        var row = output.mutableRow(head: 0, token: 0)
        RecordMerge(
            records: records, tokens: count, ranks: ranks, first: UnsafeRawPointer(message.address + firstByte),
            rankStride: stride, output: row.withUnsafeMutableBufferPointer { $0.baseAddress! }, geometry: geometry,
            logSumExp: logSumExp?.withUnsafeMutableBufferPointer { $0.baseAddress }
        ).run(on: pool)
        statistics.mergeSeconds += WaitClock.now - start
    }

    // MARK: - Buffers

    /// Makes room for the states of some queries.
    private func reserve(_ count: Int) throws(SparseKernelsError) {
        let needed = ranks * messageByteCount(queries: count)
        if message.byteCount < needed { message = try MessageBuffer(byteCount: needed) }
        try reserveLogSumExp(count)
        if counts.isEmpty { counts = Array(repeating: 0, count: ranks) }
    }

    /// A buffer of at least so many bytes.
    func buffer(_ kind: ShardBuffer, byteCount: Int) throws(SparseKernelsError) -> MessageBuffer {
        if let buffer = shardBuffers[kind], buffer.byteCount >= byteCount { return buffer }
        let buffer = try MessageBuffer(byteCount: byteCount)
        shardBuffers[kind] = buffer
        return buffer
    }

    func reserveLogSumExp(_ count: Int) throws(SparseKernelsError) {
        let needed = queryHeads * count * MemoryLayout<Float>.stride
        if logSumExp.byteCount < needed { logSumExp = try MessageBuffer(byteCount: needed) }
    }

    /// Gives every rank the queries of one.
    private func send<Q: AttentionElement>(
        _ query: TensorView<Q>, from root: Int
    ) throws(SparseKernelsError) -> MessageBuffer {
        let bytes = query.heads * query.tokens * query.channels * MemoryLayout<Q>.stride
        if queries.byteCount < bytes { queries = try MessageBuffer(byteCount: bytes) }
        if rank == root {
            var target = queries.address
            for head in 0..<query.heads {
                for token in 0..<query.tokens {
                    query.row(head: head, token: token).withUnsafeBytes {
                        target.copyMemory(from: $0.baseAddress!, byteCount: $0.count)
                        target += $0.count
                    }
                }
            }
        }
        try communicator.broadcast(queries, 0..<bytes, from: root)
        return queries
    }
}

/// What calls of ``ShardedPagedAttention`` took on a rank, and what it sent.
public struct ShardedAttentionStatistics: Hashable, Sendable {
    public var calls = 0
    /// Seconds of attention over this rank's tokens, selection included.
    public var attentionSeconds = 0.0
    /// Seconds of messages: waiting for slower ranks, and transfers.
    public var exchangeSeconds = 0.0
    /// Seconds of merging states.
    public var mergeSeconds = 0.0
    /// Bytes sent to other ranks, without those of selection.
    public var sentBytes = 0

    public init() {}
}

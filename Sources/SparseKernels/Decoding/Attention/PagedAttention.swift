internal import KernelInterface

/// Attention of new queries over the tokens of a paged cache: decoding, and prefill in chunks.
///
/// Append the keys and values of a step first, then attend: the queries of a sequence are its last tokens. The query heads that
/// share a key/value head are attended together, so that keys and values are read once per step. Sequences that were forked
/// from each other share pages, which are read once for all of them.
///
/// ```swift
/// let attention = try PagedAttention(queryHeads: 32, configuration: cache.configuration)
/// try cache.append(key: k.view(), value: v.view(), to: sequence)
/// let state = try attention(query: q, cache: cache, sequences: [sequence])   // state.output, state.logSumExp
/// ```
///
/// - Keys are cut into chunks of 1024 tokens, which are attended separately and merged by their log-sum-exp in the order of the
///   keys. Results are bitwise equal for every number of threads, with and without shared prefixes, and in every batch.
/// - Float formats are widened in registers. Quantised keys and values are multiplied as integers: queries and weights are
///   rounded to 16 bits, and sums are exact.
/// - A query that attends no token gives output 0 and LSE −∞. Keys and values that are not finite affect only the queries that
///   see them; the bits of other results do not change.
/// - Source: FlashDecoding (Dao et al., 2023) for the split along keys, Hydragen (Juravsky et al., 2024) and FlashInfer's
///   cascade for shared prefixes.
/// - Complexity: reads `bytesPerToken` of every attended token once per call, of a shared prefix once for all sequences.
/// - Scratch: per thread a few KiB per query row of a task. Per call headDim·4 bytes per query row, and (valueDim + 16)·4
///   bytes, valueDim rounded up to 16, per query row and chunk.
public struct PagedAttention: Sendable {
    public let queryHeads: Int
    public let configuration: KVCacheConfiguration
    public let mask: KVMask
    /// How scores become probabilities.
    public let modifiers: ScoreModifiers
    /// Factor on q·k: that of the modifiers, or 1/√headDim.
    public let softmaxScale: Float
    /// Whether pages that several sequences share are attended for all of them at once. That is done in whole chunks of 1024
    /// tokens, under the causal mask and without a selection.
    public let sharesPrefixes: Bool
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet
    let kernels: any KernelTable.Type

    /// Query heads that share one key/value head.
    var group: Int { queryHeads / configuration.kvHeads }

    /// Makes the operator for caches of one configuration.
    ///
    /// - Parameters:
    ///   - queryHeads: a multiple of the cache's `kvHeads`.
    ///   - configuration: the configuration of the caches.
    ///   - mask: the tokens that a query attends.
    ///   - modifiers: how scores become probabilities. The forms of ALiBi differ for masks that show tokens after a query.
    ///   - sharesPrefixes: whether pages that several sequences of a call share are read once for all of them.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` when `queryHeads` is not a multiple of `kvHeads` or slopes are not one per query head,
    ///   `.invalidArgument` for a scale, cap, slope or mask out of range, `.unsupportedInstructionSet`.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, mask: KVMask = .causal,
        modifiers: ScoreModifiers = ScoreModifiers(), sharesPrefixes: Bool = true, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            queryHeads >= 1 && queryHeads % configuration.kvHeads == 0, .invalidShape, "queryHeads",
            expected: "a multiple of kvHeads (\(configuration.kvHeads))", actual: "\(queryHeads)")
        try modifiers.validate(queryHeads: queryHeads)
        try mask.validate()
        self.queryHeads = queryHeads
        self.configuration = configuration
        self.mask = mask
        self.modifiers = modifiers
        softmaxScale = modifiers.softmaxScale ?? 1 / Float(configuration.headDim).squareRoot()
        self.sharesPrefixes = sharesPrefixes
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        kernels = self.instructionSet.kernels
    }

    /// Attends into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × Σ `queryLengths` × `headDim`, one sequence after the other.
    ///   - cache: the cache, which already has the keys and values of all queries.
    ///   - sequences: the sequences of the queries.
    ///   - queryLengths: queries of each sequence, 0 or more; 1 each unless given. Query i of n has position length − n + i.
    ///     Sequences may be empty or have fewer tokens than queries; queries before token 0 then see nothing if causal.
    ///   - layer: the layer of the cache.
    ///   - selection: the tokens to attend, among those that the mask shows; all unless given. Needs the mask `.causal` or
    ///     `.full`.
    ///   - heads: the heads that attend for each sequence, by key/value head or by query head; all unless given. Others have output 0
    ///     and LSE −∞, and read nothing. Prefixes are not shared then.
    ///   - output: `queryHeads` × Σ `queryLengths` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials of each row, `[queryHeads, Σ queryLengths]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for operands, query lengths, selections or a cache that do not fit each other,
    ///   `.unknownSequence`, `.invalidArgument` for a layer or an index of the selection that does not exist and for a
    ///   selection with another mask, `.notFound` for tokens that were discarded. On errors nothing is written.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selection: KVSelection? = nil, heads: HeadSelection? = nil, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try check(query.geometry, cache)
        let step = try pageTables(of: sequences, in: cache, layer: layer, queryLengths: queryLengths)
        try run(
            query: query, cache: cache, step: step, queryLengths: queryLengths, layer: layer, selection: selection,
            heads: heads, output: output, logSumExp: logSumExp, on: pool)
    }

    /// Attends into the caller's memory, once query heads and cache are known to fit the operator.
    private func run<Q: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, step: PageTables, queryLengths: [Int]?, layer: Int,
        selection: KVSelection?, heads: HeadSelection?, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>?,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let batch = try PagedBatch(
            self, step: step, queryLengths: queryLengths, queryTokens: query.tokens, selection: selection, heads: heads)
        let count = logSumExp?.count
        try output.geometry.requireExtents(
            "output", heads: queryHeads, tokens: batch.queryCount, channels: configuration.valueDim)
        if let count {
            try require(
                count == queryHeads * batch.queryCount, .invalidShape, "logSumExp",
                expected: "queryHeads × Σ queryLengths = \(queryHeads * batch.queryCount) elements", actual: "\(count)")
        }
        PagedAttentionCall(
            plan: self, batch: batch, storage: cache.storage, layer: layer, query: AttentionOperand(query),
            output: MutableAttentionOperand(output), logSumExp: logSumExp?.withUnsafeMutableBufferPointer { $0.baseAddress }
        ).run(on: pool)
        withExtendedLifetime(cache) {}
    }

    /// Throws unless queries and cache are those of the operator. This is checked first, because other sizes depend on them.
    func check(_ query: TensorGeometry, _ cache: PagedKVCache) throws(SparseKernelsError) {
        try require(
            query.heads == queryHeads && query.channels == configuration.headDim, .invalidShape, "query",
            expected: "\(queryHeads) heads of \(configuration.headDim) channels",
            actual: "\(query.heads) of \(query.channels)")
        try require(
            cache.configuration == configuration, .invalidShape, "cache",
            expected: "of the configuration that the operator was made for", actual: "another one")
    }

    private func pageTables(
        of sequences: [PagedKVCache.SequenceID], in cache: PagedKVCache, layer: Int, queryLengths: [Int]?
    ) throws(SparseKernelsError) -> PageTables {
        if let queryLengths {
            try require(
                queryLengths.count == sequences.count, .invalidShape, "queryLengths",
                expected: "one per sequence (\(sequences.count))", actual: "\(queryLengths.count)")
        }
        return try PageTables(of: sequences, in: cache, layer: layer)
    }

    /// Attends into new memory. See ``run(query:cache:sequences:queryLengths:layer:selection:heads:output:logSumExp:on:)``.
    public func callAsFunction<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], queryLengths: [Int]? = nil,
        layer: Int = 0, selection: KVSelection? = nil, heads: HeadSelection? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        try check(query.view(named: "query").geometry, cache)
        let step = try pageTables(of: sequences, in: cache, layer: layer, queryLengths: queryLengths)
        return try state(
            query: query, cache: cache, step: step, queryLengths: queryLengths, layer: layer, selection: selection,
            heads: heads, on: pool)
    }

    /// Attends one query of every sequence into new memory, with the page tables that its selection was made from.
    package func callAsFunction<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, tables: PageTables, layer: Int, selection: KVSelection?, on pool: WorkerPool
    ) throws(SparseKernelsError) -> AttentionState {
        try check(query.view(named: "query").geometry, cache)
        return try state(
            query: query, cache: cache, step: tables, queryLengths: nil, layer: layer, selection: selection, heads: nil,
            on: pool)
    }

    private func state<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, step: PageTables, queryLengths: [Int]?, layer: Int, selection: KVSelection?,
        heads: HeadSelection?, on pool: WorkerPool
    ) throws(SparseKernelsError) -> AttentionState {
        let tokens = try query.view(named: "query").tokens
        var output = try Tensor<Float>(zeros: [queryHeads, tokens, configuration.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [queryHeads, tokens])
        try run(
            query: query.view(named: "query"), cache: cache, step: step, queryLengths: queryLengths, layer: layer,
            selection: selection, heads: heads, output: output.mutableView(named: "output"), logSumExp: logSumExp.mutableSpan,
            on: pool)
        return try AttentionState(output: output, logSumExp: logSumExp)
    }
}

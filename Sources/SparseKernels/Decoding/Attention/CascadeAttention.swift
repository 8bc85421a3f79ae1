internal import Foundation
internal import KernelInterface

/// Attention of one new query in each of many sequences that share prefixes: decoding of branches, samples and beams.
///
/// `PagedAttention` reads a shared page once for all sequences, but computes each row as if it were alone. Where enough rows attend
/// the same tokens, this operator computes their part as a product of matrices, where a row costs less, and merges it with the rest
/// by the log-sum-exp.
///
/// ```swift
/// let attention = try CascadeAttention(queryHeads: 32, configuration: cache.configuration)
/// try cache.append(key: k.view(), value: v.view(), toEach: branches)
/// let state = try attention(query: q, cache: cache, sequences: branches)   // as PagedAttention, but for rounding
/// ```
///
/// - Prefixes are found in the page tables, level by level, in whole chunks of 1024 tokens. Those with fewer than `minimumRows`
///   rows per key/value head are attended by `PagedAttention`, and so is all that a sequence has alone.
/// - Results are bitwise equal for every number of threads. They are those of `PagedAttention` up to rounding, which depends on who
///   shares: with fewer sequences a row may take the other way.
/// - Source: Juravsky et al., "Hydragen" (2024), arXiv 2402.05099, section 3; FlashInfer's cascade of several levels.
/// - Complexity: reads each shared token once per call, and computes every pair of a query and a token.
/// - Scratch: that of `PagedAttention` and `DenseAttention`; per call queries and outputs of the shared rows in single precision.
public struct CascadeAttention: Sendable {
    /// The attention of what is not shared by enough rows.
    public let attention: PagedAttention
    /// Rows of a key/value head, query heads × sequences, from which on a prefix is attended as a product of matrices.
    public let minimumRows: Int

    /// Makes the operator for caches of one configuration.
    ///
    /// - Parameters:
    ///   - queryHeads: a multiple of the cache's `kvHeads`.
    ///   - configuration: the configuration of the caches.
    ///   - modifiers: how scores become probabilities. With ALiBi, whose biases differ by sequence, all is `PagedAttention`'s.
    ///   - minimumRows: 1 or more. With 16 rows `PagedAttention` is up to 1.15 times as fast, with 32 this operator is 1.3 times as
    ///     fast.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: the errors of `PagedAttention`; `.invalidArgument` for `minimumRows` below 1.
    public init(
        queryHeads: Int, configuration: KVCacheConfiguration, modifiers: ScoreModifiers = ScoreModifiers(),
        minimumRows: Int = 24, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            minimumRows >= 1, .invalidArgument, "minimumRows", expected: "1 or more", actual: "\(minimumRows)")
        attention = try PagedAttention(
            queryHeads: queryHeads, configuration: configuration, modifiers: modifiers, instructionSet: instructionSet)
        self.minimumRows = modifiers.aliBiSlopes == nil ? minimumRows : .max
    }

    /// Attends into the caller's memory.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × sequences × `headDim`, the last token of each sequence.
    ///   - cache: the cache, which already has the keys and values of all queries.
    ///   - sequences: the sequences of the queries.
    ///   - layer: the layer of the cache.
    ///   - output: `queryHeads` × sequences × `valueDim`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `PagedAttention`. On errors nothing is written.
    public func run<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        output: consuming MutableTensorView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        var logSumExp = try Tensor<Float>(zeros: [attention.queryHeads, sequences.count])
        try run(
            query: query, cache: cache, sequences: sequences, layer: layer, output: output, logSumExp: logSumExp.mutableSpan,
            on: pool)
    }

    /// Attends into new memory. See ``run(query:cache:sequences:layer:output:on:)``.
    public func callAsFunction<Q: AttentionElement>(
        query: Tensor<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        var output = try Tensor<Float>(zeros: [attention.queryHeads, sequences.count, attention.configuration.valueDim])
        var logSumExp = try Tensor<Float>(zeros: [attention.queryHeads, sequences.count])
        try run(
            query: query.view(named: "query"), cache: cache, sequences: sequences, layer: layer,
            output: output.mutableView(named: "output"), logSumExp: logSumExp.mutableSpan, on: pool)
        return try AttentionState(output: output, logSumExp: logSumExp)
    }

    /// Attends what is not shared into the operands, then merges the shared parts into them.
    private func run<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int,
        output: consuming MutableTensorView<Float>, logSumExp: consuming MutableSpan<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try attention.check(query.geometry, cache)
        let batch = try PagedBatch(
            attention, step: PageTables(of: sequences, in: cache, layer: layer), queryLengths: nil, queryTokens: query.tokens,
            selection: nil, separateRows: minimumRows)
        try output.geometry.requireExtents(
            "output", heads: attention.queryHeads, tokens: batch.queryCount, channels: attention.configuration.valueDim)
        let (queries, outputs) = (AttentionOperand(query), MutableAttentionOperand(output))
        let logs = logSumExp.withUnsafeMutableBufferPointer { $0.baseAddress }
        PagedAttentionCall(
            plan: attention, batch: batch, storage: cache.storage, layer: layer, query: queries, output: outputs,
            logSumExp: logs
        ).run(on: pool)
        guard let logs else { return }
        for prefix in batch.separate {
            let part = try SharedPart(
                attention, batch.sequences[prefix.members], prefix.tokens, cache, sequences, layer: layer, queries, on: pool)
            part.merge(into: outputs, logs, queryCount: batch.queryCount)
        }
        withExtendedLifetime(cache) {}
    }
}

/// The state of some rows over the tokens that they share.
private struct SharedPart {
    let attention: PagedAttention
    let members: ArraySlice<PagedBatch.Sequence>
    /// `[queryHeads, members, valueDim]`.
    let state: AttentionState

    init(
        _ attention: PagedAttention, _ members: ArraySlice<PagedBatch.Sequence>, _ tokens: Range<Int>, _ cache: PagedKVCache,
        _ sequences: [PagedKVCache.SequenceID], layer: Int, _ query: AttentionOperand, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        self.attention = attention
        self.members = members
        let configuration = attention.configuration
        var queries = try Tensor<Float>(zeros: [attention.queryHeads, members.count, configuration.headDim])
        var elements = queries.mutableSpan
        elements.withUnsafeMutableBufferPointer { target in
            var row = target.baseAddress!
            for head in 0..<attention.queryHeads {
                for member in members {
                    attention.kernels.stageRows(
                        query.rows(head: head, from: member.firstQuery), first: 0, count: 1, channels: configuration.headDim,
                        into: row)
                    row += configuration.headDim
                }
            }
        }
        let cached = try cache.rows(of: sequences[members.first!.index], layer: layer, pagesOf: tokens)
        // Sinks count once, where the rest is attended.
        let plan = try DenseAttention(
            AttentionShape(
                queryLength: members.count, keyLength: tokens.count, queryHeads: attention.queryHeads,
                kvHeads: configuration.kvHeads,
                headDim: configuration.headDim, valueDim: configuration.valueDim),
            modifiers: ScoreModifiers(
                softmaxScale: attention.softmaxScale, logitsSoftCap: attention.modifiers.logitsSoftCap),
            instructionSet: attention.instructionSet)
        let queryView = try queries.view(named: "query")
        state = try AttentionState.computing(plan.shape) { output, logSumExp throws(SparseKernelsError) in
            try plan.run(
                query: queryView, key: cached.key, value: cached.value, output: output, logSumExp: logSumExp, on: pool)
        }.state
    }

    /// Merges the rows into those of the same queries. See `AttentionState.merge`.
    func merge(into output: MutableAttentionOperand, _ logs: UnsafeMutablePointer<Float>, queryCount: Int) {
        let channels = attention.configuration.valueDim
        let (parts, partLogs) = (state.output.span, state.logSumExp.span)
        var row = 0
        for head in 0..<attention.queryHeads {
            for member in members {
                let place = head * queryCount + member.firstQuery
                let (a, b) = (Double(logs[place]), Double(partLogs[row]))
                let m = a > b ? a : b
                if b > -.infinity || b.isNaN {
                    let (wa, wb) = (a == -.infinity ? 0 : exp(a - m), exp(b - m))
                    let total = wa + wb
                    logs[place] = Float(m + log(total))
                    let (fa, fb) = (Float(wa / total), Float(wb / total))
                    let sums = output.row(head: head, token: member.firstQuery).assumingMemoryBound(to: Float.self)
                    for x in 0..<channels { sums[x] = fa * sums[x] + fb * parts[row * channels + x] }
                }
                row += 1
            }
        }
    }
}

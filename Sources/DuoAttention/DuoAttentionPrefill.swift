public import SparseKernels

/// DuoAttention (Xiao et al., 2024, arXiv 2410.10819): full attention in some key/value heads, first and last tokens in others.
///
/// ```swift
/// let gates = try DuoAttentionGates(tsv: text)
/// let heads = try gates.heads(sparsity: 0.5)
/// let attention = try DuoAttentionPrefill(shape, heads: heads[layer])
/// let state = try attention(query: q, key: k, value: v)
/// ```
///
/// Keys are those of the whole sequence, and queries those of its end, so that one plan serves a prompt, a later chunk of it,
/// or a decoding step. Keys have rotary positions applied from when they were computed, as in the released code.
///
/// - Complexity: dense causal attention in full heads; queryLength · (sinkTokens + localTokens) pairs in streaming heads, and
///   queryLength · queryLength / 2 more with `.cachedChunk`.
public struct DuoAttentionPrefill: AttentionOperator {
    /// The tokens that a query of a streaming head attends to.
    public enum Window: Hashable, Sendable {
        /// The first `sinkTokens` tokens and the `localTokens` that end with the query's own, as the paper defines it. The
        /// result does not depend on how a prompt is cut into chunks.
        case tokens
        /// As `.tokens`, with both counts rounded up to whole blocks of this size. The gates were trained with blocks of 128.
        case blocks(Int)
        /// The contents of the released code's cache and the chunk: the first `sinkTokens` and the last `localTokens` of the
        /// tokens before the chunk, and the chunk up to the query. The first chunk, which has no cache, is full attention.
        case cachedChunk
    }

    public let shape: AttentionShape
    /// Whether each key/value head is full.
    public let isFull: [Bool]
    public let sinkTokens: Int
    public let localTokens: Int
    public let window: Window
    /// The plan that `run` executes.
    public let attention: BlockSparseAttention

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - heads: whether each key/value head is full, such as a layer of `DuoAttentionHeads`.
    ///   - sinkTokens: tokens at the start for streaming heads: 64 in the released evaluation; the gates were trained with 128.
    ///   - localTokens: tokens up to the query's own for streaming heads: 256 in the released evaluation.
    ///   - window: the rule for the tokens of streaming heads.
    ///   - modifiers: how scores become probabilities.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` unless there is one value per key/value head; `.invalidArgument` for negative sinks, no local
    ///   tokens, or blocks below 1; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, heads: some Sequence<Bool>, sinkTokens: Int = 64, localTokens: Int = 256,
        window: Window = .tokens, modifiers: ScoreModifiers = ScoreModifiers(), instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let isFull = Array(heads)
        try require(
            isFull.count == shape.kvHeads, .invalidShape, "heads", expected: "one per key/value head (\(shape.kvHeads))",
            actual: "\(isFull.count)")
        try require(sinkTokens >= 0, .invalidArgument, "sinkTokens", expected: "at least 0", actual: "\(sinkTokens)")
        try require(localTokens >= 1, .invalidArgument, "localTokens", expected: "at least 1", actual: "\(localTokens)")
        let streaming = try Self.pattern(shape, sinkTokens: sinkTokens, localTokens: localTokens, window: window)
        attention = try BlockSparseAttention(
            shape, heads: isFull.map { $0 ? .dense : streaming }, isCausal: true, modifiers: modifiers,
            instructionSet: instructionSet)
        self.shape = shape
        self.isFull = isFull
        self.sinkTokens = sinkTokens
        self.localTokens = localTokens
        self.window = window
    }

    /// The pattern of a streaming head.
    private static func pattern(
        _ shape: AttentionShape, sinkTokens: Int, localTokens: Int, window: Window
    ) throws(SparseKernelsError) -> HeadPattern {
        switch window {
        case .tokens:
            return .streaming(sink: sinkTokens, local: localTokens)
        case .blocks(let size):
            try require(size >= 1, .invalidArgument, "window.blocks", expected: "at least 1", actual: "\(size)")
            let grid = try BlockGrid(
                queryLength: shape.queryLength, keyLength: shape.keyLength, queryBlockSize: size, keyBlockSize: size,
                isCausal: true)
            let mask = try BlockMask.streaming(
                grid, sinkBlocks: blocks(of: sinkTokens, size), localBlocks: blocks(of: localTokens, size))
            return .blockSparse(mask, head: 0)
        case .cachedChunk:
            let past = shape.keyLength - shape.queryLength
            var runs = cachedKeys(past: past, sinkTokens: sinkTokens, localTokens: localTokens)
            // Attention is dense without a past, and with one that the cache has as a whole.
            guard let last = runs.last, runs != [0..<past] else { return .dense }
            runs[runs.count - 1] = last.lowerBound..<shape.keyLength
            return try .runs(
                KeyRuns(
                    query: BlockPartition(length: shape.queryLength, blockSize: max(1, shape.queryLength)),
                    keyLength: shape.keyLength, runOffsets: [0, runs.count], runs: runs, keyOffsets: [0, 0], keys: []))
        }
    }

    private static func blocks(of tokens: Int, _ size: Int) -> Int { tokens == 0 ? 0 : (tokens - 1) / size + 1 }

    /// Positions of the tokens in a streaming cache after `past` tokens: all tokens while they fit, then the first `sinkTokens`
    /// and the last `localTokens`.
    ///
    /// For a chunk, dense causal attention over these keys followed by the chunk's, aligned at the end, equals `.cachedChunk`
    /// over the whole sequence.
    public static func cachedKeys(past: Int, sinkTokens: Int = 64, localTokens: Int = 256) -> [Range<Int>] {
        if past <= 0 { return [] }
        let local = max(0, past - max(0, localTokens))
        let sink = min(max(0, sinkTokens), past)
        if local <= sink { return [0..<past] }
        return [0..<sink, local..<past].filter { !$0.isEmpty }
    }

    /// Computes attention into the caller's memory. See `AttentionOperator.run`.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try attention.run(query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
    }
}

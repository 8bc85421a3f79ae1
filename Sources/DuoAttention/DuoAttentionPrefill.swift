public import SparseKernels

/// DuoAttention (Xiao et al., 2024, arXiv 2410.10819): full attention in some key/value heads, the first and last tokens in the others.
///
/// ```swift
/// let gates = try DuoAttentionGates(tsv: text)
/// let heads = try gates.heads(sparsity: 0.5)
/// let attention = try DuoAttentionPrefill(shape, heads: heads[layer])
/// let state = try attention(query: q, key: k, value: v)
/// ```
///
/// Keys hold the whole sequence and queries its end, so that one plan serves a prompt, a later chunk of it, and a decoding step. Keys are
/// taken as they are: with rotary positions that they were given when they were computed, as in the released code.
///
/// - Complexity: full heads as dense causal attention; streaming heads queryLength · (sinkTokens + localTokens) pairs, and with
///   `.cachedChunk` queryLength · queryLength / 2 more.
public struct DuoAttentionPrefill: AttentionOperator {
    /// What a query of a streaming head sees.
    public enum Window: Hashable, Sendable {
        /// The first `sinkTokens` tokens and the `localTokens` that end with the query's own: the definition of the paper. It does not
        /// depend on how a prompt is cut into chunks.
        case tokens
        /// The same in whole blocks of this many tokens, both counts rounded up: the mask that the gates are trained with (128).
        case blocks(Int)
        /// What the released code's cache holds, and the chunk itself: the first `sinkTokens` and the last `localTokens` of the tokens
        /// before the chunk, and the chunk up to the query. The first chunk, which has nothing before it, is full attention.
        case cachedChunk
    }

    public let shape: AttentionShape
    /// Per key/value head.
    public let isFull: [Bool]
    public let sinkTokens: Int
    public let localTokens: Int
    public let window: Window
    /// The plan that `run` executes.
    public let attention: BlockSparseAttention

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - heads: whether each key/value head is full, such as a layer of `DuoAttentionHeads`.
    ///   - sinkTokens: tokens at the start that streaming heads see: 64 in the released evaluation; the gates were trained with
    ///     128.
    ///   - localTokens: tokens up to the query's own that they see: 256 in the released evaluation.
    ///   - window: which tokens the local part of a streaming head has.
    ///   - modifiers: how scores become probabilities.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` unless there is one value per key/value head; `.invalidArgument` for negative sinks, no local tokens, or blocks below 1; `.unsupportedInstructionSet`.
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

    /// What a streaming head sees.
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
            // Nothing is left out: no past, or one that the cache holds as a whole.
            guard let last = runs.last, runs != [0..<past] else { return .dense }
            runs[runs.count - 1] = last.lowerBound..<shape.keyLength
            return try .runs(
                KeyRuns(
                    query: BlockPartition(length: shape.queryLength, blockSize: max(1, shape.queryLength)),
                    keyLength: shape.keyLength, runOffsets: [0, runs.count], runs: runs, keyOffsets: [0, 0], keys: []))
        }
    }

    private static func blocks(of tokens: Int, _ size: Int) -> Int { tokens == 0 ? 0 : (tokens - 1) / size + 1 }

    /// Positions of the tokens that a streaming cache holds after `past` tokens: all of them while they fit, then the first
    /// `sinkTokens` and the last `localTokens`.
    ///
    /// Attention of a chunk over these keys and the chunk, packed one after the other, is dense causal attention aligned at the end, and
    /// equals what `.cachedChunk` gives over the whole sequence.
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

/// XAttention for prefill: score every block by its strided antidiagonals, keep the blocks that carry a fraction of the mass,
/// attend to those exactly.
///
/// ```swift
/// let shape = try AttentionShape(queryLength: 8192, keyLength: 8192, queryHeads: 32, kvHeads: 8, headDim: 128)
/// let prefill = try XAttentionPrefill(shape)
/// let result = try prefill(query: query, key: key, value: value)
/// print(result.mask.density)
/// ```
///
/// Chunked prefill needs no state: give the new queries and all keys so far. The two are aligned at their ends, whatever their
/// lengths.
///
/// - Results are bitwise the same for every number of threads.
/// - Source: Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring" (ICML 2025, arXiv 2503.16428), Algorithm 1;
///   `xattn_estimate` and `Xattention_prefill` in `xattn/src/Xattention.py` of mit-han-lab/x-attention.
/// - Complexity: `AntidiagonalScoring`, `BlockSelection` and `BlockSparseAttention`, one after the other.
/// - Scratch: that of the three operators; scores take 4 bytes per block and head.
public struct XAttentionPrefill: Sendable {
    /// Which rule turns scores into a mask.
    public enum Mode: Hashable, Sendable {
        /// Sink column and diagonal blocks first, when causal; then blocks by score until the mass is at least threshold × the
        /// row's total. Nothing is padded, and the mask does not depend on any chunk.
        case clean
        /// What the released code computes, in `.float32`: sequences padded with zeros to whole chunks, padded keys taking part in
        /// the softmax when not causal, and `XAttentionSelection` with its first-chunk rule. nil is the code's own choice of chunk,
        /// `XAttentionPrefill.releasedChunkSize(keyLength:)`.
        case released(chunkSize: Int? = nil)
    }

    /// What a call attended to.
    public struct Selected: Sendable {
        /// One head per query head.
        public let mask: BlockMask
        /// The scores that the mask was made from, if asked for. In the released mode over the padded grid.
        public let scores: BlockScores?
        /// Kept fraction of the reachable blocks: of the causal area, when causal.
        public var density: Double { mask.density }
    }

    /// What a call computed, and what it attended to.
    public struct Result: Sendable {
        public let state: AttentionState
        /// One head per query head.
        public let mask: BlockMask
        /// The scores that the mask was made from, if asked for. In the released mode over the padded grid.
        public let scores: BlockScores?
        /// Kept fraction of the reachable blocks: of the causal area, when causal.
        public var density: Double { mask.density }
    }

    public let shape: AttentionShape
    /// Blocks of the mask.
    public let grid: BlockGrid
    /// Blocks of the scores: `grid`, or in the released mode its padded form.
    public var scoredGrid: BlockGrid { scoring.grid }
    public var stride: Int { scoring.stride }
    /// Fraction of the mass to keep, one per query head.
    public let thresholds: [Double]
    public let mode: Mode
    public let keepSink: Bool
    public let keepRecent: Bool
    public let minimumBlocks: Int
    /// Arithmetic of the scores.
    public var precision: ScoringPrecision { scoring.precision }

    private let scoring: AntidiagonalScoring
    private let selection: Selection
    private let softmaxScale: Float?
    private let instructionSet: InstructionSet

    private enum Selection {
        case clean(BlockSelection)
        case released(XAttentionSelection)
    }

    /// A plan with one threshold for all heads; parameters and errors as below.
    public init(
        _ shape: AttentionShape, stride: Int = 16, threshold: Double = 0.9, blockSize: Int = 128, isCausal: Bool = true,
        norm: Float = 1, mode: Mode = .clean, keepSink: Bool = false, keepRecent: Bool = false, minimumBlocks: Int = 1,
        precision: ScoringPrecision = .int6, softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try Self.check(threshold, named: "threshold")
        try self.init(
            shape, stride: stride, thresholds: Array(repeating: threshold, count: shape.queryHeads), blockSize: blockSize,
            isCausal: isCausal, norm: norm, mode: mode, keepSink: keepSink, keepRecent: keepRecent,
            minimumBlocks: minimumBlocks, precision: precision, softmaxScale: softmaxScale, instructionSet: instructionSet)
    }

    /// A plan with one threshold per query head.
    ///
    /// - Parameters:
    ///   - shape: `queryLength` may be below `keyLength`: new queries after cached keys. In the released mode, `keyLength` −
    ///     `queryLength` must then be a multiple of the chunk.
    ///   - stride: tokens per antidiagonal; the paper uses 8 and 16. Divides `blockSize`.
    ///   - thresholds: fractions of the mass, 0…1.
    ///   - blockSize: tokens of a block, of queries and of keys.
    ///   - isCausal: false for video and other bidirectional models.
    ///   - norm: further divisor of the scores.
    ///   - mode: the clean rules, or those of the released code.
    ///   - keepSink: clean mode: every row keeps column 0. A causal plan does so in any case, so the flag matters only without
    ///     the causal limit. Released mode: all blocks of query block 0 are kept, as released.
    ///   - keepRecent: clean mode: every row keeps its diagonal blocks. A causal plan does so in any case. Released mode: the
    ///     diagonal of the padded grid is kept.
    ///   - minimumBlocks: blocks that every row keeps at least; clean mode only.
    ///   - precision: arithmetic of the scores in clean mode. The released mode always scores in `.float32`.
    ///   - softmaxScale: factor on q·k of scores and attention; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidArgument` for thresholds outside 0…1, a stride that does not divide the block, a chunk that is no
    ///   multiple of the block, and other options outside their domain; `.invalidShape` for a wrong number of thresholds and lengths that the released code would misalign; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, stride: Int = 16, thresholds: [Double], blockSize: Int = 128, isCausal: Bool = true,
        norm: Float = 1, mode: Mode = .clean, keepSink: Bool = false, keepRecent: Bool = false, minimumBlocks: Int = 1,
        precision: ScoringPrecision = .int6, softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            thresholds.count == shape.queryHeads, .invalidShape, "thresholds",
            expected: "one per query head (\(shape.queryHeads))", actual: "\(thresholds.count)")
        for (index, threshold) in thresholds.enumerated() { try Self.check(threshold, named: "thresholds[\(index)]") }
        grid = try BlockGrid(shape, blockSize: blockSize, isCausal: isCausal)
        try require(
            stride >= 1 && blockSize % stride == 0, .invalidArgument, "stride",
            expected: "a divisor of blockSize (\(blockSize))", actual: "\(stride)")
        self.shape = shape
        self.thresholds = thresholds
        self.mode = mode
        self.keepSink = keepSink
        self.keepRecent = keepRecent
        self.minimumBlocks = minimumBlocks
        self.softmaxScale = softmaxScale
        switch mode {
        case .clean:
            scoring = try AntidiagonalScoring(
                shape, grid: grid, stride: stride, norm: norm, softmaxScale: softmaxScale, precision: precision,
                instructionSet: instructionSet)
            selection = .clean(
                try BlockSelection(
                    perHead: thresholds.map { .topP($0) }, minimumBlocks: minimumBlocks,
                    sinkBlocks: isCausal || keepSink ? 1 : 0, recentBlocks: isCausal || keepRecent ? 1 : 0))
        case .released(let chunkSize):
            try require(
                minimumBlocks == 1, .invalidArgument, "minimumBlocks", expected: "1 in the released mode",
                actual: "\(minimumBlocks)")
            let padding = try ReleasedPadding(grid: grid, blockSize: blockSize, chunkSize: chunkSize)
            let padded = try AttentionShape(
                queryLength: padding.queryLength, keyLength: padding.keyLength, queryHeads: shape.queryHeads,
                kvHeads: shape.kvHeads, headDim: shape.headDim)
            var scoring = try AntidiagonalScoring(
                padded, grid: BlockGrid(padded, blockSize: blockSize, isCausal: isCausal), stride: stride, norm: norm,
                softmaxScale: softmaxScale, precision: .float32, instructionSet: instructionSet)
            scoring.scoredQueryTokens = shape.queryLength
            self.scoring = scoring
            selection = .released(
                try XAttentionSelection(
                    thresholds: thresholds, blocksPerChunk: padding.chunkSize / blockSize, keepSink: keepSink,
                    keepRecent: keepRecent))
        }
        self.instructionSet = scoring.instructionSet
    }

    private static func check(_ threshold: Double, named name: String) throws(SparseKernelsError) {
        try require(
            threshold >= 0 && threshold <= 1, .invalidArgument, name, expected: "within 0...1", actual: "\(threshold)")
    }

    /// Scores of all blocks of `scoredGrid`, `[queryHeads, blockRows, blockColumns]`.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan.
    public func scores<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        // The released mode adds as many tokens to the queries as to the keys.
        let scored = scoring.shape
        if scored.keyLength == shape.keyLength { return try scoring.run(query: query, key: key, on: pool) }
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        return try scoring(
            query: Tensor(zeroPadding: query, toTokens: scored.queryLength),
            key: Tensor(zeroPadding: key, toTokens: scored.keyLength), on: pool)
    }

    /// Scores from tensors `[heads, tokens, headDim]`.
    /// - Throws: as above.
    public func scores<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try scores(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }

    /// The blocks to attend to, from scores over `scoredGrid`.
    /// - Throws: `.invalidShape` for scores over another grid or of other heads.
    public func mask(from scores: BlockScores, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> BlockMask {
        try require(
            scores.grid == scoredGrid && scores.heads == shape.queryHeads, .invalidShape, "scores",
            expected: "\(shape.queryHeads) heads × \(scoredGrid.blockRows) × \(scoredGrid.blockColumns) blocks of the plan",
            actual: "\(scores.values.shape)")
        switch selection {
        case .clean(let selection):
            return try selection(scores, on: pool)
        case .released(let selection):
            // The padding lies at the ends: the mask of the real blocks is the upper left corner.
            let padded = try selection(scores)
            return try BlockMask(grid: grid, heads: padded.heads) { padded[$0, $1, $2] }
        }
    }

    /// The blocks to attend to.
    /// - Throws: as `scores`.
    public func mask<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try mask(from: scores(query: query, key: key, on: pool), on: pool)
    }

    /// The blocks to attend to, from tensors `[heads, tokens, headDim]`.
    /// - Throws: as `scores`.
    public func mask<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try mask(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }

    /// Scores, selects and attends into the caller's memory. No operand is copied, but for queries and keys that the released mode
    /// pads.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`. Any strides that keep channels adjacent, here and below.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - value: `kvHeads` × `keyLength` × `valueDim`.
    ///   - output: `queryHeads` × `queryLength` × `valueDim`.
    ///   - logSumExp: natural log of the sum of exponentials over the kept keys of each row, `[queryHeads, queryLength]`.
    ///   - keepsScores: returns the scores as well.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan; nothing is computed or written then.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, keepsScores: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        let scores = try scores(query: query, key: key, on: pool)
        let mask = try mask(from: scores, on: pool)
        let attention = try BlockSparseAttention(
            shape, mask: mask, modifiers: ScoreModifiers(softmaxScale: softmaxScale), instructionSet: instructionSet)
        try attention.run(query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
        return Selected(mask: mask, scores: keepsScores ? scores : nil)
    }

    /// Scores, selects and attends with tensors `[heads, tokens, channels]` into a tensor that is reused from call to call.
    /// - Throws: as above.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, into output: inout Tensor<O>, keepsScores: Bool = false,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), keepsScores: keepsScores, on: pool)
    }

    /// Scores, selects and attends with tensors `[heads, tokens, channels]` into new memory.
    /// - Throws: as `run`.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, keepsScores: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Result {
        let (state, selected) = try AttentionState.computing(shape) { output, logSumExp throws(SparseKernelsError) in
            try run(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
                output: output, logSumExp: logSumExp, keepsScores: keepsScores, on: pool)
        }
        return Result(state: state, mask: selected.mask, scores: selected.scores)
    }
}

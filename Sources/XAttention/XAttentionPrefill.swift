/// XAttention for prefill: exact attention over the blocks with most of the mass, as estimated from strided antidiagonals.
///
/// ```swift
/// let shape = try AttentionShape(queryLength: 8192, keyLength: 8192, queryHeads: 32, kvHeads: 8, headDim: 128)
/// let prefill = try XAttentionPrefill(shape)
/// let result = try prefill(query: query, key: key, value: value)
/// print(result.mask.density)
/// ```
///
/// Chunked prefill needs no state: pass the new queries and all keys so far. Any lengths are allowed, aligned at the ends.
///
/// - Results are bitwise the same for every number of threads.
/// - Source: Algorithm 1 of Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring" (ICML 2025, arXiv
///   2503.16428); `xattn_estimate` and `Xattention_prefill` in `xattn/src/Xattention.py` of mit-han-lab/x-attention.
/// - Complexity: the sum of `AntidiagonalScoring`, `BlockSelection` and `BlockSparseAttention`.
/// - Scratch: that of the three operators; scores take 4 bytes per block and head.
public struct XAttentionPrefill: PredictiveAttention {
    /// The mask of a call, and its scores on request.
    public struct Selected: Sendable {
        /// The kept blocks, with one head per query head.
        public let mask: BlockMask
        /// The scores behind the mask, if the configuration keeps them. In released mode they cover the padded grid.
        public let scores: BlockScores?
        /// Kept fraction of the reachable blocks: of the causal area when causal.
        public var density: Double { mask.density }
    }

    public let shape: AttentionShape
    public let configuration: XAttentionConfiguration
    /// Fraction of the mass that is kept, one per query head.
    public let thresholds: [Double]
    /// The blocks of the mask.
    public let grid: BlockGrid
    /// The blocks of the scores: `grid`, padded in released mode.
    public var scoredGrid: BlockGrid { scoring.grid }
    /// Arithmetic of the scores: that of the configuration, or `.float32` in released mode.
    public var precision: ScoringPrecision { scoring.precision }

    private let scoring: AntidiagonalScoring
    private let selection: Selection
    private let instructionSet: InstructionSet

    private enum Selection {
        case clean(BlockSelection)
        case released(XAttentionSelection)
    }

    /// Makes a plan with one threshold for all heads. Parameters and errors are those of the initialiser with `thresholds`.
    public init(
        _ shape: AttentionShape, _ configuration: XAttentionConfiguration = XAttentionConfiguration(), threshold: Double = 0.9,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try Self.check(threshold, named: "threshold")
        try self.init(
            shape, configuration, thresholds: Array(repeating: threshold, count: shape.queryHeads),
            instructionSet: instructionSet)
    }

    /// Makes a plan with one threshold per query head.
    ///
    /// - Parameters:
    ///   - shape: `queryLength` may be below `keyLength`, for new queries after cached keys. In released mode `keyLength` −
    ///     `queryLength` must then be a multiple of the chunk.
    ///   - configuration: how blocks are scored and selected.
    ///   - thresholds: fractions of the mass, 0…1.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidArgument` for thresholds outside 0…1, a stride that does not divide the block, a chunk that is not a
    ///   multiple of the block, and other options outside their domain; `.invalidShape` for a wrong number of thresholds and
    ///   lengths that the released code would misalign; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, _ configuration: XAttentionConfiguration = XAttentionConfiguration(), thresholds: [Double],
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let (blockSize, stride, isCausal) = (configuration.blockSize, configuration.stride, configuration.isCausal)
        try require(
            thresholds.count == shape.queryHeads, .invalidShape, "thresholds",
            expected: "one per query head (\(shape.queryHeads))", actual: "\(thresholds.count)")
        for (index, threshold) in thresholds.enumerated() { try Self.check(threshold, named: "thresholds[\(index)]") }
        grid = try BlockGrid(shape, blockSize: blockSize, isCausal: isCausal)
        try require(
            stride >= 1 && blockSize % stride == 0, .invalidArgument, "stride",
            expected: "a divisor of blockSize (\(blockSize))", actual: "\(stride)")
        self.shape = shape
        self.configuration = configuration
        self.thresholds = thresholds
        switch configuration.mode {
        case .clean:
            scoring = try AntidiagonalScoring(
                shape, grid: grid, stride: stride, norm: configuration.norm, softmaxScale: configuration.softmaxScale,
                precision: configuration.precision, instructionSet: instructionSet)
            selection = .clean(
                try BlockSelection(
                    perHead: thresholds.map { .topP($0) }, minimumBlocks: configuration.minimumBlocks,
                    sinkBlocks: isCausal || configuration.keepSink ? 1 : 0,
                    recentBlocks: isCausal || configuration.keepRecent ? 1 : 0))
        case .released(let chunkSize):
            try require(
                configuration.minimumBlocks == 1, .invalidArgument, "minimumBlocks", expected: "1 in the released mode",
                actual: "\(configuration.minimumBlocks)")
            let padding = try ReleasedPadding(grid: grid, blockSize: blockSize, chunkSize: chunkSize)
            let padded = try AttentionShape(
                queryLength: padding.queryLength, keyLength: padding.keyLength, queryHeads: shape.queryHeads,
                kvHeads: shape.kvHeads, headDim: shape.headDim)
            var scoring = try AntidiagonalScoring(
                padded, grid: BlockGrid(padded, blockSize: blockSize, isCausal: isCausal), stride: stride,
                norm: configuration.norm, softmaxScale: configuration.softmaxScale, precision: .float32,
                instructionSet: instructionSet)
            scoring.scoredQueryTokens = shape.queryLength
            self.scoring = scoring
            selection = .released(
                try XAttentionSelection(
                    thresholds: thresholds, blocksPerChunk: padding.chunkSize / blockSize, keepSink: configuration.keepSink,
                    keepRecent: configuration.keepRecent))
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
        // The released mode pads queries and keys by the same number of tokens.
        let scored = scoring.shape
        if scored.keyLength == shape.keyLength { return try scoring.run(query: query, key: key, on: pool) }
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        return try scoring(
            query: Tensor(zeroPadding: query, toTokens: scored.queryLength),
            key: Tensor(zeroPadding: key, toTokens: scored.keyLength), on: pool)
    }

    /// Scores from tensors `[heads, tokens, headDim]`.
    /// - Throws: as `scores` with views, and `.invalidShape` for another rank.
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
            // Padding is at the ends, so the mask of the real blocks is the upper left corner.
            let padded = try selection(scores)
            return try BlockMask(grid: grid, heads: padded.heads) { padded[$0, $1, $2] }
        }
    }

    /// Scores all blocks and keeps those with most of the mass. In released mode queries and keys that need padding are copied.
    /// - Throws: as `scores`.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        let scores = try scores(query: query, key: key, on: pool)
        return Selected(mask: try mask(from: scores, on: pool), scores: configuration.keepsScores ? scores : nil)
    }

    /// The plan of attention over the blocks of a mask.
    /// - Throws: `.invalidShape` or `.invalidArgument` for a mask that does not fit the shape.
    public func attention(over selected: Selected) throws(SparseKernelsError) -> BlockSparseAttention {
        try BlockSparseAttention(
            shape, mask: selected.mask, modifiers: ScoreModifiers(softmaxScale: configuration.softmaxScale),
            instructionSet: instructionSet)
    }
}

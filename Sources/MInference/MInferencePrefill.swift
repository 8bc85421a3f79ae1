/// MInference prefill: every head attends with its assigned pattern, filled in from the prompt.
///
/// ```swift
/// let prefill = try MInferencePrefill(shape, heads: [.verticalSlash(vertical: 1000, slash: 6096)])
/// let result = try prefill(query: q, key: k, value: v)   // result.state, result.patterns, result.density
/// ```
///
/// - Attention is causal, aligned at the end of the keys. Queries and keys have rotary embeddings applied.
/// - Results are bitwise the same for every number of threads.
/// - Source: MInference (arXiv 2407.02490), microsoft/MInference. Deviations are listed in Docs/Papers/MInference.md.
/// - Complexity: per vertical-slash head 64 · `keyLength` · `headDim` multiply-adds and an index of `queryLength`/64 ·
///   (vertical + slash) lines, plus `BlockSparseAttention` over the kept keys.
/// - Scratch: that of the operators; a vertical-slash head uses 64 · `keyLength` floats per thread.
public struct MInferencePrefill: PredictiveAttention {
    public let shape: AttentionShape
    /// The patterns, one per query head.
    public let heads: [MInferenceHead]
    /// Factor on q·k in attention and in vertical-slash scoring; nil means 1/√headDim.
    public let softmaxScale: Float?
    /// Number of the smallest distances that vertical-slash heads always keep.
    public let forcedDistances: Int
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    /// - Parameters:
    ///   - shape: the sizes of the operands.
    ///   - heads: one pattern for all query heads, or one per query head.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - forcedDistances: number of the smallest distances that are always kept: 100 as released, 30 in the released search.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for 2³⁰ keys or a wrong number of patterns; `.invalidArgument` naming the
    ///   number of a pattern that is out of its domain; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, heads: [MInferenceHead] = [.standard], softmaxScale: Float? = nil,
        forcedDistances: Int = 100, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            shape.keyLength < 1 << 30, .invalidShape, "keyLength", expected: "below 2³⁰", actual: "\(shape.keyLength)")
        try require(
            heads.count == 1 || heads.count == shape.queryHeads, .invalidShape, "heads",
            expected: "1 or queryHeads (\(shape.queryHeads)) patterns", actual: "\(heads.count)")
        for (index, head) in heads.enumerated() { try head.validate(named: "heads[\(index)]") }
        try require(
            forcedDistances >= 1, .invalidArgument, "forcedDistances", expected: "at least 1", actual: "\(forcedDistances)")
        if let scale = softmaxScale {
            try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        }
        self.shape = shape
        self.heads = heads.count == 1 ? Array(repeating: heads[0], count: shape.queryHeads) : heads
        self.softmaxScale = softmaxScale
        self.forcedDistances = forcedDistances
        self.instructionSet = try InstructionSet.resolve(instructionSet)
    }

    /// The patterns of a call and the plan of attention.
    public struct Selected: Sendable {
        /// The pattern of each query head.
        public let patterns: [HeadPattern]
        /// The plan of attention over the patterns.
        public let attention: BlockSparseAttention
        /// Kept fraction of the causal query-key pairs of all query heads.
        public var density: Double { attention.density }
    }

    /// The pattern of every query head, for `BlockSparseAttention`.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × `queryLength` × `headDim`.
    ///   - key: `kvHeads` × `keyLength` × `headDim`.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func patterns<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> [HeadPattern] {
        var patterns = [HeadPattern](repeating: .dense, count: heads.count)
        var verticalSlashHeads: [Int] = []
        var blockSizes: Set<Int> = []
        for (index, head) in heads.enumerated() {
            switch head {
            case .verticalSlash: verticalSlashHeads.append(index)
            case .blockSparse(_, let blockSize): blockSizes.insert(blockSize)
            case .aShape(let initial, let local): patterns[index] = .streaming(sink: initial, local: local)
            case .dense: break
            }
        }
        let scores = try VerticalSlashScoring(
            shape, softmaxScale: softmaxScale, heads: verticalSlashHeads, instructionSet: instructionSet)(
                query: query, key: key, on: pool)
        for (index, runs) in zip(verticalSlashHeads, keyRuns(scores, heads: verticalSlashHeads, on: pool)) {
            patterns[index] = .runs(try runs.get())
        }
        for blockSize in blockSizes {
            let mask = try blockMask(query: query, key: key, blockSize: blockSize, on: pool)
            for (index, head) in heads.enumerated() {
                if case .blockSparse(_, blockSize) = head { patterns[index] = .blockSparse(mask, head: index) }
            }
        }
        return patterns
    }

    /// Chooses the pattern of every query head and makes the plan of attention over the patterns, which has their density.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Selected {
        let patterns = try patterns(query: query, key: key, on: pool)
        let attention = try BlockSparseAttention(
            shape, heads: patterns, isCausal: true, modifiers: ScoreModifiers(softmaxScale: softmaxScale),
            instructionSet: instructionSet)
        return Selected(patterns: patterns, attention: attention)
    }

    /// The plan that `select` made.
    public func attention(over selected: Selected) -> BlockSparseAttention { selected.attention }

    /// The indices of all vertical-slash heads, built head by head on the pool.
    private func keyRuns(
        _ scores: VerticalSlashScores, heads indices: [Int], on pool: WorkerPool
    ) -> [Swift.Result<KeyRuns, SparseKernelsError>] {
        let blocks = (shape.queryLength - 1) / VerticalSlashIndex.releasedBlockSize + 1
        return pool.map(indices.count, work: indices.count * (shape.keyLength + blocks * 1024)) { row in
            Swift.Result { () throws(SparseKernelsError) -> KeyRuns in
                guard case .verticalSlash(let vertical, let slash) = heads[indices[row]] else {
                    preconditionFailure("head \(indices[row]) has no verticals")
                }
                let selection = try VerticalSlashSelection(
                    vertical: vertical, slash: slash, forcedDistances: forcedDistances)
                return try VerticalSlashIndex(
                    selection(scores, head: row), queryLength: shape.queryLength, keyLength: shape.keyLength
                ).keyRuns
            }
        }
    }

    /// One mask for all block-sparse heads with one block size. In it, the other heads have one unused block per row.
    private func blockMask<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, blockSize: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> BlockMask {
        var rules: [BlockSelection.Rule] = []
        for head in heads {
            if case .blockSparse(let topK, blockSize) = head { rules.append(.topK(topK)) } else { rules.append(.topK(1)) }
        }
        let grid = try BlockGrid(shape, blockSize: blockSize, isCausal: true)
        let scores = try MeanPoolScoring(shape, grid: grid, padding: .zeros, instructionSet: instructionSet)(
            query: query, key: key, on: pool)
        return try BlockSelection(perHead: rules)(scores, on: pool)
    }
}

public import SparseKernels

/// Attention of a video whose blocks are chosen on a low-resolution draft of it.
///
/// Queries and keys are averaged over windows of each frame. The softmax of the averages is the draft map, and its largest
/// entries, over the whole map of a head, name the pairs of windows that attend to each other. Attention is then exact over
/// these pairs: tokens are reordered so that a window's are adjacent, and windows are blocks, which may differ in size.
///
/// Text sees every token, and every token sees the text. Padding, where `geometry` has some, sees itself and nothing else does.
///
/// ```swift
/// let video = try VideoGeometry(frames: 33, height: 48, width: 80, textTokens: 256, textPlacement: .after)
/// let draft = try DraftAttentionVideo(shape, geometry: video)
/// let result = try draft(query: query, key: key, value: value)   // result.state, result.mask
/// ```
///
/// - The mask is over tokens in the order of `permutation`. `attention(over:)` reads and writes them where they are.
/// - Results are bitwise equal for every number of threads.
/// - Source: Shen et al., "DraftAttention: Fast Video Diffusion via Low-Resolution Attention Guidance" (2025), arXiv 2505.14708;
///   `draft_attention.py` of shawnricecake/draft-attention.
/// - Complexity: with S windows, tokens · headDim for pooling and S² · headDim multiply-adds for the map of every head.
/// - Memory: 4·S² bytes per query head for the map during the choice.
public struct DraftAttentionVideo: PredictiveAttention {
    public let shape: AttentionShape
    public let geometry: VideoGeometry
    public let configuration: DraftAttentionConfiguration
    /// The windows, which are the tokens of the draft.
    public let windows: DraftWindows
    /// The order in which a window's tokens are adjacent.
    public let permutation: Permutation
    /// The blocks over tokens in that order: the windows and, in its place, the text, cut into blocks of a window's size.
    public let grid: BlockGrid
    /// The instruction set that runs.
    public let instructionSet: InstructionSet

    private let selection: DraftSelection
    private let scoring: MeanPoolScoring
    /// Blocks of the grid that hold prompt, padding, and windows.
    private let prompt: Range<Int>
    private let padding: Range<Int>
    private let video: Range<Int>

    /// - Parameters:
    ///   - shape: queries and keys are the geometry's tokens. Grouped heads are allowed.
    ///   - geometry: the tokens of the call.
    ///   - configuration: the settings.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` when shape and geometry disagree, `.invalidArgument` for a sparsity outside 0…1 or a window
    ///   without tokens, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, geometry: VideoGeometry,
        _ configuration: DraftAttentionConfiguration = DraftAttentionConfiguration(), instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try geometry.check(shape)
        self.shape = shape
        self.geometry = geometry
        self.configuration = configuration
        selection = try DraftSelection(sparsity: configuration.sparsity, isReleased: configuration.isReleased)
        windows = try DraftWindows(geometry, height: configuration.windowHeight, width: configuration.windowWidth)
        permutation = try windows.order()

        let blockSize = windows.height * windows.width
        let promptSizes = try BlockPartition(length: geometry.prompt.count, blockSize: blockSize).sizes
        let paddingSizes = try BlockPartition(length: geometry.padding.count, blockSize: blockSize).sizes
        let videoSizes = windows.sizes
        let textIsFirst = geometry.textPlacement == .before
        let sizes =
            textIsFirst ? promptSizes + paddingSizes + videoSizes : videoSizes + promptSizes + paddingSizes
        let partition = try BlockPartition(sizes: sizes)
        grid = try BlockGrid(query: partition, key: partition, isCausal: false)
        let text = textIsFirst ? 0 : videoSizes.count
        prompt = text..<text + promptSizes.count
        padding = prompt.upperBound..<prompt.upperBound + paddingSizes.count
        let first = textIsFirst ? padding.upperBound : 0
        video = first..<first + videoSizes.count

        // The draft is a sequence of pooled tokens, each of them a block of its own.
        let draft = try AttentionShape(
            queryLength: windows.count, keyLength: windows.count, queryHeads: shape.queryHeads, kvHeads: shape.kvHeads,
            headDim: shape.headDim)
        scoring = try MeanPoolScoring(
            draft, grid: BlockGrid(draft, blockSize: 1, isCausal: false),
            scale: configuration.modifiers.softmaxScale ?? 1 / Float(shape.headDim).squareRoot(), normalizes: true,
            instructionSet: instructionSet)
        self.instructionSet = scoring.instructionSet
    }

    /// The softmax over the windows of pooled queries and keys, `[queryHeads, windows, windows]`.
    ///
    /// Windows are blocks of one token in the grid of the result.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func draftMap<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        return try scoring(
            query: windows.means(query, instructionSet: instructionSet, on: pool),
            key: windows.means(key, instructionSet: instructionSet, on: pool), on: pool)
    }

    /// The mask that a draft map asks for, over tokens in the order of `permutation`, with one head per head of the map.
    /// - Throws: `.invalidShape` for a map that is not over the windows.
    public func mask(_ map: BlockScores, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> BlockMask {
        try require(
            map.grid.blockRows == windows.count && map.grid.blockColumns == windows.count, .invalidShape, "map",
            expected: "\(windows.count) × \(windows.count) entries per head, one per pair of windows",
            actual: "\(map.grid.blockRows) × \(map.grid.blockColumns)")
        let kept = try selection(map, on: pool)
        let entries = kept.span
        var builder = BlockMaskBuilder(grid: grid, heads: map.heads)
        for head in 0..<map.heads {
            for row in 0..<grid.blockRows {
                if padding.contains(row) {
                    builder.keep(padding)
                } else if prompt.contains(row) {
                    for columns in inOrder(prompt, video) { builder.keep(columns) }
                } else {
                    let line = (head * windows.count + row - video.lowerBound) * windows.count
                    for columns in inOrder(prompt, video) {
                        for column in columns {
                            if columns == prompt || entries[line + column - video.lowerBound] != 0 { builder.keep(column) }
                        }
                    }
                }
                builder.endRow()
            }
        }
        return builder.mask
    }

    /// Two ranges of blocks by position.
    private func inOrder(_ a: Range<Int>, _ b: Range<Int>) -> [Range<Int>] { a.lowerBound <= b.lowerBound ? [a, b] : [b, a] }

    /// Chooses the blocks that every query head attends to.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockMask {
        try mask(draftMap(query: query, key: key, on: pool), on: pool)
    }

    /// The plan of attention over a mask, on tokens in their own order.
    /// - Throws: `.invalidShape` or `.invalidArgument` when the mask does not fit the shape.
    public func attention(over mask: BlockMask) throws(SparseKernelsError) -> PermutedAttention {
        try PermutedAttention(
            BlockSparseAttention(shape, mask: mask, modifiers: configuration.modifiers, instructionSet: instructionSet),
            query: permutation, key: permutation)
    }
}

extension DraftAttentionVideo {
    /// The draft map of tensors `[heads, tokens, headDim]`.
    /// - Throws: as `draftMap` with views, and `.invalidShape` for another rank.
    public func draftMap<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> BlockScores {
        try draftMap(query: query.view(named: "query"), key: key.view(named: "key"), on: pool)
    }
}

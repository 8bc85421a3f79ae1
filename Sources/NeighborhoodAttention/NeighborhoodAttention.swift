public import SparseKernels

/// Neighbourhood attention (NATTEN) and its generalisation with strides (GNA): every token attends to a window around it, along
/// one to three axes, with stride, dilation and a causal limit for each axis.
///
/// ```swift
/// let video = try VideoGeometry(frames: 30, height: 48, width: 80, textTokens: 256, textPlacement: .after)
/// let attention = try NeighborhoodAttention(shape, video, window: [18, 24, 24], stride: [16, 8, 8])
/// let state = try attention(query: q, key: k, value: v)
/// ```
///
/// Text tokens are seen by every query, and text queries see every key but the padding of the text, which nobody sees.
///
/// The mask is exact for every window, stride and dilation. Queries are attended in tiles, with the union of their windows as
/// keys and the other pairs hidden; where a tile is a stride group, nothing is hidden and nothing computed in vain.
///
/// - Non-finite input propagates, as in IEEE arithmetic, into the rows that see it and into no other row.
/// - Results are bitwise equal for every number of threads.
/// - Source: NATTEN 0.21, `csrc/include/natten/cuda/reference/mask.hpp`; GNA (2025), arXiv 2504.16922.
/// - Complexity: (`visiblePairs` + pairs hidden in tiles) · (headDim + valueDim) multiply-adds. ``computedPairs`` has the sum.
/// - Memory: a plan has O(sum of the axes) numbers, whatever the window and stride. No mask is stored.
/// - Scratch: `scratchByteCount` per thread, whatever the number of tokens: about 6 MiB for heads of 128 channels, and more for
///   large groups of query heads, which are attended together.
public struct NeighborhoodAttention: AttentionOperator {
    public let shape: AttentionShape
    public let neighborhood: Neighborhood
    /// Tokens of the neighbourhood; the others are text.
    public let tokens: Range<Int>
    /// Keys that every query sees.
    public let contextKeys: Range<Int>
    /// Factor on q·k.
    public let softmaxScale: Float
    public let instructionSet: InstructionSet
    let tiling: NeighborhoodTiling

    /// A plan for tokens of a sequence, an image or a video, without text.
    ///
    /// - Parameters:
    ///   - shape: its query and key lengths are the number of tokens.
    ///   - neighborhood: who sees whom.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` when the lengths are not the number of tokens, `.invalidArgument` for a scale that is not
    ///   finite, `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, _ neighborhood: Neighborhood, softmaxScale: Float? = nil,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        for (name, length) in [("queryLength", shape.queryLength), ("keyLength", shape.keyLength)] {
            try require(
                length == neighborhood.tokens, .invalidShape, name,
                expected: "\(neighborhood.tokens), the tokens of the neighbourhood", actual: "\(length)")
        }
        try self.init(
            shape, neighborhood, tokens: 0..<neighborhood.tokens, contextKeys: 0..<0, softmaxScale: softmaxScale,
            instructionSet: instructionSet)
    }

    /// A plan for the tokens of a video, with the axes frame, height and width, and text before or after it.
    ///
    /// - Parameters:
    ///   - shape: its query and key lengths are the tokens of the geometry.
    ///   - geometry: the video and its text.
    ///   - window: keys that a query sees along each of the three axes.
    ///   - stride: queries that share a window, for each axis; nil means 1.
    ///   - dilation: the distance between neighbours, for each axis; nil means 1.
    ///   - isCausal: whether keys after the query are hidden, for each axis; nil means no.
    ///   - softmaxScale: factor on q·k; nil means 1/√headDim.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: as the other initialiser, and the errors of ``Neighborhood``.
    public init(
        _ shape: AttentionShape, _ geometry: VideoGeometry, window: [Int], stride: [Int]? = nil, dilation: [Int]? = nil,
        isCausal: [Bool]? = nil, softmaxScale: Float? = nil, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try geometry.check(shape)
        let neighborhood = try Neighborhood(
            size: [geometry.frames, geometry.height, geometry.width], window: window, stride: stride, dilation: dilation,
            isCausal: isCausal)
        try self.init(
            shape, neighborhood, tokens: geometry.video, contextKeys: geometry.prompt, softmaxScale: softmaxScale,
            instructionSet: instructionSet)
    }

    private init(
        _ shape: AttentionShape, _ neighborhood: Neighborhood, tokens: Range<Int>, contextKeys: Range<Int>,
        softmaxScale: Float?, instructionSet: InstructionSet?
    ) throws(SparseKernelsError) {
        if let softmaxScale {
            try require(
                softmaxScale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(softmaxScale)")
        }
        self.shape = shape
        self.neighborhood = neighborhood
        self.tokens = tokens
        self.contextKeys = contextKeys
        self.softmaxScale = softmaxScale ?? 1 / Float(shape.headDim).squareRoot()
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        // Tiles of equal windows gain little beyond this. Heads of a group are attended together.
        tiling = try NeighborhoodTiling(neighborhood, uniformRows: max(128, 1024 / shape.queryHeadsPerKVHead))
    }

    var step: AttentionStep {
        AttentionStep(
            headDim: shape.headDim, valueDim: shape.valueDim, softmaxScale: softmaxScale, instructionSet: instructionSet)
    }

    /// Queries of text, which see all keys.
    var textQueries: [Range<Int>] {
        [0..<tokens.lowerBound, tokens.upperBound..<shape.queryLength].filter { !$0.isEmpty }
    }

    /// Pairs of a query and a key that it sees, over all query heads.
    public var visiblePairs: Int {
        let text = shape.queryLength - tokens.count
        return shape.queryHeads
            * (neighborhood.visiblePairs + tokens.count * contextKeys.count + text * (tokens.count + contextKeys.count))
    }

    /// Pairs whose scores are computed, over all query heads: the visible ones, and those hidden in tiles.
    public var computedPairs: Int {
        var pairs = 1
        for tiles in tiling.tiles { pairs *= tiles.reduce(0) { $0 + $1.queries.count * $1.keys.count } }
        return visiblePairs + shape.queryHeads * (pairs - neighborhood.visiblePairs)
    }

    /// `visiblePairs` as a fraction of all pairs of queries and keys.
    public var density: Double { fraction(visiblePairs, of: shape.queryHeads * shape.queryLength * shape.keyLength) }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int { TileScratch(self).byteCount }

    /// Computes attention into the caller's memory. See `AttentionOperator.run`.
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        // Addresses are used only until this call returns, which borrows or owns the views.
        NeighborhoodCall(
            plan: self, query: OperandRows(query, instructionSet: instructionSet),
            key: OperandRows(key, instructionSet: instructionSet),
            value: OperandRows(value, instructionSet: instructionSet), output: OutputRows(&output),
            logSumExp: logSumExp?.withUnsafeMutableBufferPointer { $0.baseAddress }
        ).run(on: pool)
    }

    /// Attention with additional keys and values that every query sees, in tensors of their own, as NATTEN takes them.
    ///
    /// It is dense attention to these, merged with the attention of the neighbourhood. Queries of the additional tokens are not
    /// part of it.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, queryLength, headDim]`.
    ///   - key: `[kvHeads, keyLength, headDim]`.
    ///   - value: `[kvHeads, keyLength, valueDim]`.
    ///   - contextKey: `[kvHeads, any number, headDim]`.
    ///   - contextValue: as many tokens of `valueDim` channels.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the plan.
    /// - Source: `src/natten/attn_merge.py`.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, contextKey: Tensor<K>, contextValue: Tensor<V>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionState {
        let context = try AttentionShape(
            queryLength: shape.queryLength, keyLength: contextKey.view(named: "contextKey").tokens,
            queryHeads: shape.queryHeads, kvHeads: shape.kvHeads, headDim: shape.headDim, valueDim: shape.valueDim)
        for (name, actual, channels) in [
            ("contextKey", contextKey.shape, shape.headDim), ("contextValue", contextValue.shape, shape.valueDim),
        ] {
            let expected = [shape.kvHeads, context.keyLength, channels]
            try require(actual == expected, .invalidShape, name, expected: "\(expected)", actual: "\(actual)")
        }
        var state = try self(query: query, key: key, value: value, on: pool)
        let dense = try DenseAttention(
            context, modifiers: ScoreModifiers(softmaxScale: softmaxScale), instructionSet: instructionSet)
        try state.merge(dense(query: query, key: contextKey, value: contextValue, on: pool))
        return state
    }
}

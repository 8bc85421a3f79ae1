public import SparseKernels

/// Polar Sparsity (Xu et al., 2025, arXiv 2505.14884): decoding in which every sequence of a batch attends with the heads that a router
/// chooses for it.
///
/// ```swift
/// let polar = try PolarDecode(attention: attention, routers: routers, counts: [8, 4, 4, 4])   // of 8 key/value heads
/// try polar.run(
///     query: q, hidden: hidden, cache: cache, sequences: sequences, layer: layer, into: &output)
/// ```
///
/// Channels of MLPs that tokens need differ, and the union over a batch soon has them all. Heads do not: pairs of a sequence and a head
/// that are skipped read no keys and no values, however large the batch. Their output is 0.
///
/// - Results are bitwise the same for every number of threads, and those of attention in all heads where heads are selected.
/// - Complexity: a router's product, and the selected part of the cache.
/// - Source: sections 4.2 and 5.2. The first layer is dense, as in the paper.
public struct PolarDecode: Sendable {
    public let attention: PagedAttention
    /// A router per layer; nil in layers without.
    public let routers: [HeadRouter?]
    /// Selected heads per layer.
    public let counts: [Int]
    /// Layers, from the first one on, that attend with all heads.
    public let denseLayers: Int

    /// - Parameters:
    ///   - attention: the attention of all layers.
    ///   - routers: one per layer of the cache, of query heads or key/value heads. A layer without one is dense.
    ///   - counts: the heads that each layer selects: 0 to those of its router.
    ///   - denseLayers: 0 or more.
    /// - Throws: `.invalidShape` for other numbers of layers, and a router of other heads than the attention has; `.invalidArgument`
    ///   for a count or `denseLayers` out of range.
    public init(
        attention: PagedAttention, routers: [HeadRouter?], counts: [Int], denseLayers: Int = 1
    ) throws(SparseKernelsError) {
        let configuration = attention.configuration
        try require(
            routers.count == configuration.layers, .invalidShape, "routers", expected: "\(configuration.layers), one per layer",
            actual: "\(routers.count)")
        try require(
            counts.count == routers.count, .invalidShape, "counts", expected: "\(routers.count), one per layer",
            actual: "\(counts.count)")
        try require(denseLayers >= 0, .invalidArgument, "denseLayers", expected: "0 or more", actual: "\(denseLayers)")
        for (layer, router) in routers.enumerated() {
            guard let router else { continue }
            try require(
                router.heads == configuration.kvHeads || router.heads == attention.queryHeads, .invalidShape,
                "routers[\(layer)]",
                expected: "kvHeads (\(configuration.kvHeads)) or queryHeads (\(attention.queryHeads)) heads",
                actual: "\(router.heads)")
            try require(
                counts[layer] >= 0 && counts[layer] <= router.heads, .invalidArgument, "counts[\(layer)]",
                expected: "0 to \(router.heads), the heads of the router", actual: "\(counts[layer])")
        }
        self.attention = attention
        self.routers = routers
        self.counts = counts
        self.denseLayers = denseLayers
    }

    /// The heads of a step; nil in dense layers.
    ///
    /// - Parameters:
    ///   - hidden: `[sequences, features]`, the input of the layer's projections.
    ///   - layer: a layer of the cache.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidArgument` for a layer that there is not; the errors of `HeadRouter.select`.
    public func select(
        hidden: MatrixView<Float>, layer: Int, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> HeadSelection? {
        try require(
            routers.indices.contains(layer), .invalidArgument, "layer", expected: "0 to \(routers.count - 1)",
            actual: "\(layer)")
        guard layer >= denseLayers, let router = routers[layer] else { return nil }
        return try router.select(hidden, count: counts[layer], on: pool)
    }

    /// Performs one step of decoding: selects heads and attends with them.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, sequences, headDim]`: token i is the last one of `sequences[i]`.
    ///   - hidden: `[sequences, features]`, the input of the layer's projections for these tokens.
    ///   - cache: a cache that already has the keys and values of these tokens.
    ///   - sequences: sequences of any lengths.
    ///   - layer: a layer of the cache; those below `denseLayers` are dense.
    ///   - output: `[queryHeads, sequences, valueDim]`, overwritten.
    ///   - pool: the threads to use.
    /// - Throws: as `select` and `PagedAttention.run`, and `.invalidShape` for hidden rows of another number.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, hidden: MatrixView<Float>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int,
        into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            hidden.rows == sequences.count, .invalidShape, "hidden", expected: "\(sequences.count) rows, one per sequence",
            actual: "\(hidden.rows)")
        let heads = try select(hidden: hidden, layer: layer, on: pool)
        try attention.run(
            query: query, cache: cache, sequences: sequences, layer: layer, heads: heads, into: &output, on: pool)
    }
}

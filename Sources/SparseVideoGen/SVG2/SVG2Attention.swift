public import SparseKernels

/// Sparse VideoGen 2 (Yang et al., 2025, arXiv 2505.18875): attention of video tokens over clusters of similar keys.
///
/// ```swift
/// let svg2 = try SVG2Attention(shape, geometry: geometry)
/// var state = SVG2State()
/// for step in 0..<steps {
///     let selected = try svg2.run(query: q, key: k, value: v, into: &output, state: &state, layer: 3)
///     print(selected.density)
/// }
/// ```
///
/// Per head, k-means clusters the video's queries, and its keys. The centroids estimate how much attention each query cluster
/// pays to each key cluster, and the key clusters with most of it are kept. Tokens are gathered by cluster, so that attention
/// reads blocks of any size without padding, and outputs are written where their tokens were.
///
/// - Text is not clustered. Video and prompt see the prompt; the prompt sees the video; padding sees padding only.
/// - Clusters carry over from step to step in an ``SVG2State``. Without one, every call starts anew.
/// - A query or key that is not finite is in cluster 0 of its head and moves no centroid. Attention over it is that of the kept
///   pairs: NaN reaches the queries that see it.
/// - Source: `batch_kmeans_Euclid`, `identify_dynamic_map`, `dynamic_block_sparse_fwd` of the released code.
/// - Complexity: clustering O(tokens · clusters · headDim) per iteration, selection O(clusters²·headDim), attention as
///   `BlockSparseAttention`.
/// - Scratch: that of `KMeans` and `PermutedAttention`.
public struct SVG2Attention: PredictiveAttention {
    public let shape: AttentionShape
    public let geometry: VideoGeometry
    public let configuration: SVG2Configuration
    public let instructionSet: InstructionSet
    private let queries: KMeans
    private let keys: KMeans
    private let selection: CentroidSelection

    /// - Parameters:
    ///   - shape: the sizes of the operands. Heads of several passes or prompts may be stacked.
    ///   - geometry: the tokens of queries and keys.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` when geometry and shape disagree, or for clusters below 1 or more than video tokens;
    ///   `.invalidArgument` naming a setting out of its domain; `.unsupportedInstructionSet`.
    public init(
        _ shape: AttentionShape, geometry: VideoGeometry, _ configuration: SVG2Configuration = SVG2Configuration(),
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try geometry.check(shape)
        try configuration.validate(queryHeads: shape.queryHeads)
        for (name, clusters) in [("queryClusters", configuration.queryClusters), ("keyClusters", configuration.keyClusters)] {
            try require(
                clusters >= 1 && clusters <= geometry.videoTokens, .invalidShape, name,
                expected: "from 1 to \(geometry.videoTokens), the video tokens", actual: "\(clusters)")
        }
        self.shape = shape
        self.geometry = geometry
        self.configuration = configuration
        queries = try KMeans(
            heads: shape.queryHeads, points: geometry.videoTokens, channels: shape.headDim,
            clusters: configuration.queryClusters, instructionSet: instructionSet)
        keys = try KMeans(
            heads: shape.kvHeads, points: geometry.videoTokens, channels: shape.headDim, clusters: configuration.keyClusters,
            instructionSet: instructionSet)
        self.instructionSet = queries.instructionSet
        selection = try CentroidSelection(
            mass: configuration.mass, minimumKeyRatio: configuration.minimumKeyRatio, keyClusters: configuration.keyClusters,
            softmaxScale: configuration.modifiers.softmaxScale ?? 1 / Float(shape.headDim).squareRoot(),
            instructionSet: instructionSet)
    }

    /// Clusters anew, and selects.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVG2Selection {
        try select(query: query, key: key, from: nil, on: pool)
    }

    /// Clusters from the state's centroids, or anew in the first step of a layer, selects, and keeps the centroids.
    ///
    /// - Parameters:
    ///   - query: `queryHeads` × tokens × `headDim`.
    ///   - key: `kvHeads` × tokens × `headDim`.
    ///   - state: the centroids of all layers. It is unchanged after an error.
    ///   - layer: the layer of the model.
    ///   - pass: the pass of classifier-free guidance, which counts for a state with separate centroids.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the shape, or a state of another video or model.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, continuing state: inout SVG2State, layer: Int = 0, pass: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVG2Selection {
        let selected = try select(query: query, key: key, from: state[layer: layer, pass: pass], on: pool)
        state[layer: layer, pass: pass] = selected.centroids(geometry)
        return selected
    }

    /// Clusters and keeps the centroids, without selecting: for steps that attend densely, so that the first sparse one finds
    /// clusters (`zero_step_kmeans_init` of the released code).
    /// - Throws: as `select`.
    public func track<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, in state: inout SVG2State, layer: Int = 0, pass: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let (queries, keys) = try clusters(query: query, key: key, from: state[layer: layer, pass: pass], on: pool)
        state[layer: layer, pass: pass] = SVG2Centroids(query: queries.centroids, key: keys.centroids, geometry: geometry)
    }

    /// The plan of attention over a selection.
    /// - Throws: `.invalidShape` for a selection of another shape.
    public func attention(over selected: SVG2Selection) throws(SparseKernelsError) -> PermutedAttention {
        try require(
            selected.masks.count == shape.queryHeads, .invalidShape, "selected",
            expected: "masks of \(shape.queryHeads) heads", actual: "\(selected.masks.count)")
        let plan = try BlockSparseAttention(
            shape, heads: selected.masks.map { .blockSparse($0, head: 0) }, isCausal: false,
            modifiers: configuration.modifiers, instructionSet: instructionSet)
        return try PermutedAttention(plan, query: selected.queryOrder, key: selected.keyOrder)
    }

    /// Selects with a state, then attends into the caller's memory.
    /// - Throws: the errors of `select` and of `SelectiveAttention.run`; then nothing is written and the state is unchanged.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>, output: consuming MutableTensorView<O>,
        logSumExp: consuming MutableSpan<Float>? = nil, state: inout SVG2State, layer: Int = 0, pass: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVG2Selection {
        try shape.check(
            query: query.geometry, key: key.geometry, value: value.geometry, output: output.geometry,
            logSumExpCount: logSumExp?.count)
        let selected = try select(query: query, key: key, continuing: &state, layer: layer, pass: pass, on: pool)
        try attention(over: selected).run(
            query: query, key: key, value: value, output: output, logSumExp: logSumExp, on: pool)
        return selected
    }

    /// Selects with a state, then attends with tensors `[heads, tokens, channels]` into a tensor that is reused.
    /// - Throws: as `run` with views, and `.invalidShape` for another rank.
    @discardableResult
    public func run<Q: AttentionElement, K: AttentionElement, V: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>, into output: inout Tensor<O>, state: inout SVG2State,
        layer: Int = 0, pass: Int = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVG2Selection {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: output.mutableView(named: "output"), state: &state, layer: layer, pass: pass, on: pool)
    }

    // MARK: - Stages

    private func clusters<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, from start: SVG2Centroids?, on pool: WorkerPool
    ) throws(SparseKernelsError) -> (query: Clustering, key: Clustering) {
        try shape.check(query: query.geometry)
        try shape.check(key: key.geometry)
        if let start {
            let queryShape = [shape.queryHeads, configuration.queryClusters, shape.headDim]
            let keyShape = [shape.kvHeads, configuration.keyClusters, shape.headDim]
            // Text has no centroids, so prompts may differ from pass to pass.
            let (own, theirs) = (geometry.videoExtents, start.geometry.videoExtents)
            try require(
                own == theirs && start.query.shape == queryShape && start.key.shape == keyShape, .invalidShape, "state",
                expected: "centroids \(queryShape) and \(keyShape) of a video of \(own)",
                actual: "\(start.query.shape) and \(start.key.shape) of \(theirs)")
        }
        func cluster<Element: AttentionElement>(
            _ operand: TensorView<Element>, _ kMeans: KMeans, from centroids: Tensor<Float>?, seed: UInt64
        ) throws(SparseKernelsError) -> Clustering {
            let video = operand.tokens(geometry.video)
            if let centroids {
                return try kMeans(
                    video, from: centroids, iterations: configuration.stepIterations,
                    roundsCentroids: configuration.roundsCentroids, on: pool)
            }
            let first = try kMeans.initialCentroids(of: video, configuration.initialization, seed: seed, on: pool)
            return try kMeans(
                video, from: first, iterations: configuration.initialIterations,
                roundsCentroids: configuration.roundsCentroids, on: pool)
        }
        return try (
            cluster(query, queries, from: start?.query, seed: configuration.seed),
            // A seed of its own, so that queries and keys do not draw the same tokens.
            cluster(key, keys, from: start?.key, seed: ~configuration.seed)
        )
    }

    private func select<Q: AttentionElement, K: AttentionElement>(
        query: TensorView<Q>, key: TensorView<K>, from start: SVG2Centroids?, on pool: WorkerPool
    ) throws(SparseKernelsError) -> SVG2Selection {
        let (queries, keys) = try clusters(query: query, key: key, from: start, on: pool)
        return try select(query: queries, key: keys, on: pool)
    }

    /// Selects with given clusters of the video's tokens.
    /// - Throws: `.invalidShape` for clusters of other heads, tokens or numbers.
    public func select(
        query: Clustering, key: Clustering, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVG2Selection {
        try check(query: query, key: key)
        for (name, clusters, expected) in [
            ("query", query, [shape.queryHeads, configuration.queryClusters, shape.headDim]),
            ("key", key, [shape.kvHeads, configuration.keyClusters, shape.headDim]),
        ] {
            try require(
                clusters.centroids.shape == expected, .invalidShape, name, expected: "centroids \(expected)",
                actual: "\(clusters.centroids.shape)")
        }
        let weights = try selection.weights(
            query: query.centroids, key: key.centroids, keySizes: key.sizes, on: pool)
        return try self.selection(query: query, key: key, keeping: selection(weights: weights, on: pool))
    }

    private func check(query: Clustering, key: Clustering) throws(SparseKernelsError) {
        for (name, clusters, heads) in [("query", query, shape.queryHeads), ("key", key, shape.kvHeads)] {
            try require(
                clusters.labels.shape == [heads, geometry.videoTokens], .invalidShape, name,
                expected: "clusters of \(heads) heads × \(geometry.videoTokens) tokens", actual: "\(clusters.labels.shape)")
        }
    }

    /// The selection that keeps given key clusters, such as recorded ones.
    ///
    /// - Parameter kept: the key clusters of each query cluster, `[queryHeads][queryClusters]` ascending lists.
    /// - Throws: `.invalidShape` for clusters of other heads or tokens, or lists of another number; `.invalidArgument` for a list
    ///   out of order or range.
    public func selection(
        query: Clustering, key: Clustering, keeping kept: [[[Int]]]
    ) throws(SparseKernelsError) -> SVG2Selection {
        try check(query: query, key: key)
        try require(
            kept.count == shape.queryHeads, .invalidShape, "kept", expected: "lists of \(shape.queryHeads) heads",
            actual: "\(kept.count)")
        for (head, lists) in kept.enumerated() {
            try require(
                lists.count == query.sizes[head].count, .invalidShape, "kept[\(head)]",
                expected: "\(query.sizes[head].count) lists, one per query cluster", actual: "\(lists.count)")
            let columns = key.sizes[head / shape.queryHeadsPerKVHead].count
            for (row, list) in lists.enumerated() {
                let isAscending = zip(list, list.dropFirst()).allSatisfy { $0 < $1 }
                try require(
                    isAscending && (list.first ?? 0) >= 0 && (list.last ?? 0) < columns, .invalidArgument,
                    "kept[\(head)][\(row)]", expected: "ascending key clusters below \(columns)", actual: "\(list)")
            }
        }
        let blocks = ClusterBlocks(geometry)
        var masks: [BlockMask] = []
        for head in 0..<shape.queryHeads {
            masks.append(
                try blocks.mask(
                    kept[head], querySizes: query.sizes[head], keySizes: key.sizes[head / shape.queryHeadsPerKVHead]))
        }
        return SVG2Selection(
            query: query, key: key, masks: masks,
            queryOrder: try query.permutation.placed(at: geometry.video.lowerBound, of: geometry.tokens),
            keyOrder: try key.permutation.placed(at: geometry.video.lowerBound, of: geometry.tokens))
    }
}

extension VideoGeometry {
    /// Frames, rows and tokens per row, whatever the text.
    fileprivate var videoExtents: [Int] { [frames, height, width] }
}

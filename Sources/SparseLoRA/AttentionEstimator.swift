public import SparseKernels

/// The channels of an attention layer that context tokens keep.
public struct AttentionChannels: Hashable, Sendable {
    /// Of queryHeads · headDim.
    public var query: ChannelSubset
    /// Of kvHeads · headDim.
    public var key: ChannelSubset
    /// Of kvHeads · headDim.
    public var value: ChannelSubset
    /// Inputs of the output projection, of queryHeads · headDim.
    public var output: ChannelSubset

    public init(query: ChannelSubset, key: ChannelSubset, value: ChannelSubset, output: ChannelSubset) {
        self.query = query
        self.key = key
        self.value = value
        self.output = output
    }
}

/// Chooses the channels of an attention layer from its input, by estimated queries, keys and values.
///
///     s(query, key) = ‖Q̂‖ · ‖K̂‖,   s(value, output) = ‖V̂‖,   norms over all tokens of the batch
///
/// With grouped queries a channel (j, δ) of keys belongs to the channels ((j·g + t)·d + δ), t = 0 … g − 1, of queries, whose norms are
/// averaged; the mode `.released` numbers them in the order of the released code.
///
/// The norms need no estimates of single tokens: with T = X·downᵀ, which has a column per rank, ‖X̂‖² of a channel is u·(TᵀT)·uᵀ for its
/// row u of `up`.
///
/// - Complexity: tokens · width · 3 · rank multiply-adds, and rank² per channel.
/// - Source: SparseLoRA (arXiv 2506.16500), section 3.2; `QKVOFusedPredictor` and `QKVOFusedGQAPredictor` in `spft/modules/pred.py`.
public struct AttentionEstimator: Sendable, Equatable {
    public let query: ChannelEstimator
    public let key: ChannelEstimator
    public let value: ChannelEstimator
    public let heads: Int
    public let kvHeads: Int
    /// The three `down` factors on top of each other.
    private let down: Tensor<Float>

    /// Channels of the input.
    public var width: Int { query.inFeatures }
    public var headDim: Int { kvHeads == 0 ? 0 : key.outFeatures / kvHeads }

    /// The estimator of a layer's weights, `[outFeatures, inFeatures]` each.
    /// - Throws: the errors of ``ChannelEstimator``; `.invalidShape` for weights that do not belong to as many heads of one size.
    public init(
        query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, heads: Int, kvHeads: Int, rank: Int = 8,
        method: SVDMethod = ChannelEstimator.defaultMethod, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            query: ChannelEstimator(weight: query, rank: rank, method: method, on: pool),
            key: ChannelEstimator(weight: key, rank: rank, method: method, on: pool),
            value: ChannelEstimator(weight: value, rank: rank, method: method, on: pool), heads: heads, kvHeads: kvHeads)
    }

    /// - Throws: `.invalidShape` for estimators that do not belong to as many heads of one size; `.invalidArgument` for numbers of heads
    ///   below 1, or query heads that do not share key heads evenly.
    public init(
        query: ChannelEstimator, key: ChannelEstimator, value: ChannelEstimator, heads: Int, kvHeads: Int
    ) throws(SparseKernelsError) {
        try require(kvHeads >= 1, .invalidArgument, "kvHeads", expected: "at least 1", actual: "\(kvHeads)")
        try require(
            heads >= 1 && heads % kvHeads == 0, .invalidArgument, "heads", expected: "a multiple of the \(kvHeads) key heads",
            actual: "\(heads)")
        try require(
            key.outFeatures % kvHeads == 0, .invalidShape, "key", expected: "outputs in \(kvHeads) heads",
            actual: "\(key.outFeatures)")
        let group = heads / kvHeads
        let (queries, overflow) = key.outFeatures.multipliedReportingOverflow(by: group)
        for (name, estimator, outputs) in [("query", query, queries), ("value", value, key.outFeatures)] {
            try require(
                !overflow && estimator.outFeatures == outputs && estimator.inFeatures == key.inFeatures, .invalidShape, name,
                expected: "\(key.inFeatures) inputs and \(outputs) outputs",
                actual: "\(estimator.inFeatures) and \(estimator.outFeatures)")
        }
        self.query = query
        self.key = key
        self.value = value
        self.heads = heads
        self.kvHeads = kvHeads
        down = try stacked([query.down, key.down, value.down])
    }

    /// The scores of channels: of key channels, with their queries, and of value channels.
    ///
    /// - Parameters:
    ///   - x: tokens × width, the input of the projections.
    ///   - mode: how channels of queries are matched with those of keys.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for another width.
    public func scores(
        _ x: MatrixView<Float>, mode: SparseLoRAConfiguration.Mode = .intended, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> (queryKey: [Float], value: [Float]) {
        try require(x.columns == width, .invalidShape, "x", expected: "\(width) columns", actual: "\(x.columns)")
        let t = try projected(x, by: down, instructionSet, on: pool)
        let norms = [
            Self.norms(query, t, first: 0, on: pool), Self.norms(key, t, first: query.rank, on: pool),
            Self.norms(value, t, first: query.rank + key.rank, on: pool),
        ]
        let (group, width, d) = (heads / kvHeads, key.outFeatures, headDim)
        var scores: [Float] = []
        scores.reserveCapacity(width)
        for channel in 0..<width {
            var sum = 0.0
            for t in 0..<group {
                switch mode {
                case .intended: sum += norms[0][(channel / d * group + t) * d + channel % d]
                case .released: sum += norms[0][t * width + channel]
                }
            }
            scores.append(Float(sum / Double(group) * norms[1][channel]))
        }
        return (scores, norms[2].map { Float($0) })
    }

    /// The channels that context tokens keep.
    ///
    /// - Parameters:
    ///   - x: tokens × width, the input of the projections.
    ///   - sparsity: the share of channels that are left out, in [0, 1).
    ///   - mode: how channels of queries and outputs are matched with those of keys and values.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for another width; `.invalidArgument` for a sparsity outside [0, 1) and input that is not finite.
    public func channels(
        _ x: MatrixView<Float>, sparsity: Double, mode: SparseLoRAConfiguration.Mode = .intended,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> AttentionChannels {
        let count = try ChannelSubset.count(ofWidth: key.outFeatures, sparsity: sparsity)
        let scores = try scores(x, mode: mode, instructionSet: instructionSet, on: pool)
        let keys = try ChannelSubset.strongest(scores.queryKey, count: count)
        let values = try ChannelSubset.strongest(scores.value, count: count)
        let all = query.outFeatures
        switch mode {
        case .intended:
            return try AttentionChannels(
                query: ChannelSubset(headMajor(keys), of: all), key: keys, value: values,
                output: ChannelSubset(headMajor(values), of: all))
        case .released:
            // The numbers of value channels are taken for inputs of the output projection as they are.
            return try AttentionChannels(
                query: keys.blocks(of: heads / kvHeads), key: keys, value: values,
                output: ChannelSubset(values.indices, of: all))
        }
    }

    /// The channels of query heads that belong to channels of key or value heads, ascending.
    private func headMajor(_ channels: ChannelSubset) -> [Int32] {
        let (group, d) = (heads / kvHeads, headDim)
        var indices: [Int32] = []
        indices.reserveCapacity(channels.count * group)
        var start = 0
        while start < channels.indices.count {
            let head = Int(channels.indices[start]) / d
            var end = start
            while end < channels.indices.count && Int(channels.indices[end]) / d == head { end += 1 }
            for t in 0..<group {
                for index in channels.indices[start..<end] { indices.append(index + Int32(head * (group - 1) * d + t * d)) }
            }
            start = end
        }
        return indices
    }

    /// ‖X̂‖ of every channel, from the projected tokens in columns from `first` on.
    private static func norms(
        _ estimator: ChannelEstimator, _ t: Tensor<Float>, first: Int, on pool: WorkerPool
    ) -> [Double] {
        let (rank, rows, columns) = (estimator.rank, t.shape[0], t.shape[1])
        // Parts of a fixed size, added in order: sums do not depend on the number of threads.
        let part = 256
        let parts = pool.map((rows + part - 1) / part, work: rows * rank * rank) { index in
            gram(t, index * part..<min(rows, (index + 1) * part), first: first, rank: rank, columns: columns)
        }
        var sums = [Double](repeating: 0, count: rank * rank)
        for part in parts { for index in sums.indices { sums[index] += part[index] } }
        return estimator.up.span.withUnsafeBufferPointer { up in
            (0..<estimator.outFeatures).map { channel in
                var sum = 0.0
                for i in 0..<rank {
                    var row = 0.0
                    for j in 0..<rank { row += Double(up[channel * rank + j]) * sums[i * rank + j] }
                    sum += Double(up[channel * rank + i]) * row
                }
                return (sum < 0 ? 0 : sum).squareRoot()
            }
        }
    }

    /// TᵀT of some rows and of `rank` columns.
    private static func gram(
        _ t: Tensor<Float>, _ range: Range<Int>, first: Int, rank: Int, columns: Int
    ) -> [Double] {
        [Double](unsafeUninitializedCapacity: rank * rank) { sums, count in
            sums.initialize(repeating: 0)
            count = rank * rank
            guard let sums = sums.baseAddress else { return }
            t.span.withUnsafeBufferPointer { elements in
                guard let base = elements.baseAddress else { return }
                for row in range {
                    let line = base + row * columns + first
                    for i in 0..<rank {
                        let (a, target) = (Double(line[i]), sums + i * rank)
                        for j in 0..<rank { target[j] += a * Double(line[j]) }
                    }
                }
            }
        }
    }
}

public import SparseKernels

// The calls with tensors in place of views. Their errors are those of the calls with views, and `.invalidShape` for another rank.

extension HeadRouter {
    /// The heads with the largest scores for the last token of every sequence; x is `[sequences, inFeatures]`.
    public func select(
        _ x: Tensor<Float>, count: Int, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> HeadSelection { try select(x.matrixView(named: "x"), count: count, on: pool) }

    /// The score of every head, `[tokens, heads]`, for the rows of x, `[tokens, inFeatures]`.
    public func callAsFunction(_ x: Tensor<Float>, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Tensor<Float> {
        let rows = try x.matrixView(named: "x").rows
        var scores = try Tensor<Float>(zeros: [rows, heads])
        try run(x.matrixView(named: "x"), into: scores.mutableMatrixView(named: "scores"), on: pool)
        return scores
    }
}

extension NeuronRouter {
    /// The channels that the tokens of a batch select together; x is `[tokens, inFeatures]`.
    public func select(
        _ x: Tensor<Float>, _ rule: Rule, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> ChannelSubset { try select(x.matrixView(named: "x"), rule, on: pool) }

    /// The score of every channel, `[tokens, channels]`, for the rows of x, `[tokens, inFeatures]`.
    public func callAsFunction(_ x: Tensor<Float>, on pool: WorkerPool = .shared) throws(SparseKernelsError) -> Tensor<Float> {
        let rows = try x.matrixView(named: "x").rows
        var scores = try Tensor<Float>(zeros: [rows, channels])
        try run(x.matrixView(named: "x"), into: scores.mutableMatrixView(named: "scores"), on: pool)
        return scores
    }
}

extension PolarMLP {
    /// Computes y for the rows of x into a tensor that is reused from call to call.
    public func run(
        _ x: Tensor<Float>, neurons: ChannelSubset? = nil, into y: inout Tensor<Float>, workspace: inout Workspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x.matrixView(named: "x"), neurons: neurons, into: y.mutableMatrixView(named: "y"), workspace: &workspace, on: pool)
    }

    /// The channels of every row, `[tokens, channels]`.
    public func hidden(
        of x: Tensor<Float>, workspace: inout Workspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try hidden(of: x.matrixView(named: "x"), workspace: &workspace, on: pool)
    }
}

extension PolarDecode {
    /// Performs one step of decoding; hidden is `[sequences, features]`.
    public func run<Q: AttentionElement, O: AttentionElement>(
        query: Tensor<Q>, hidden: Tensor<Float>, cache: PagedKVCache, sequences: [PagedKVCache.SequenceID], layer: Int,
        into output: inout Tensor<O>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query, hidden: hidden.matrixView(named: "hidden"), cache: cache, sequences: sequences, layer: layer,
            into: &output, on: pool)
    }

    /// The heads of a step; nil in dense layers.
    public func select(
        hidden: Tensor<Float>, layer: Int, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> HeadSelection? {
        try select(hidden: hidden.matrixView(named: "hidden"), layer: layer, on: pool)
    }
}

extension RouterFitting {
    /// A router of heads.
    public func headRouter(
        inputs: Tensor<Float>, activity: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> HeadRouter {
        try headRouter(
            inputs: inputs.matrixView(named: "inputs"), activity: activity.matrixView(named: "activity"), on: pool)
    }

    /// A router of channels, of two factors.
    public func neuronRouter(
        inputs: Tensor<Float>, activity: Tensor<Float>, rank: Int, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> NeuronRouter {
        try neuronRouter(
            inputs: inputs.matrixView(named: "inputs"), activity: activity.matrixView(named: "activity"), rank: rank,
            on: pool)
    }
}

extension RouterCalibration {
    /// The least number of selected heads or channels per token that reaches a recall.
    public static func count(
        scores: Tensor<Float>, activity: Tensor<Float>, recall: Double = 0.99
    ) throws(SparseKernelsError) -> Int {
        try count(
            scores: scores.matrixView(named: "scores"), activity: activity.matrixView(named: "activity"), recall: recall)
    }

    /// The recall of so many selected heads or channels per token.
    public static func recall(
        scores: Tensor<Float>, activity: Tensor<Float>, count: Int
    ) throws(SparseKernelsError) -> Double {
        try recall(
            scores: scores.matrixView(named: "scores"), activity: activity.matrixView(named: "activity"), count: count)
    }
}

extension HeadActivity {
    /// The norms, `[tokens, heads]`, of outputs `[queryHeads, tokens, headDim]`.
    public static func norms(of output: Tensor<Float>, heads: Int? = nil) throws(SparseKernelsError) -> Tensor<Float> {
        try norms(of: output.view(named: "output"), heads: heads)
    }
}

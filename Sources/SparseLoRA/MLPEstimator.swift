public import SparseKernels

/// Chooses the channels of a gated feed-forward layer from its input, by estimated hidden values.
///
///     s = ‖ f(X̂_gate) ⊙ X̂_up ‖ per channel,   norms over the tokens
///
/// - Source: SparseLoRA (arXiv 2506.16500), section 3.2; `FFNPredictor` in `spft/modules/pred.py`.
public struct MLPEstimator: Sendable {
    /// Which tokens the norms are over.
    public enum Tokens: Hashable, Sendable {
        /// The mean token of each sequence, which is the released default: almost free.
        case sequenceMeans
        /// All tokens, as in the paper.
        case all
        /// Every n-th token of the batch, from the first on.
        case every(Int)
    }

    public let gate: ChannelEstimator
    public let up: ChannelEstimator
    /// f.
    public let function: GatedActivation.Function
    /// The two `down` factors on top of each other.
    private let down: Tensor<Float>
    private let norms: HiddenNorms

    /// Channels of the input.
    public var width: Int { gate.inFeatures }
    /// Hidden channels.
    public var channelCount: Int { gate.outFeatures }

    /// The estimator of a layer's weights, `[channels, width]` each.
    /// - Throws: the errors of ``ChannelEstimator``; `.invalidShape` for weights of different extents.
    public init(
        gate: Tensor<Float>, up: Tensor<Float>, rank: Int = 8, function: GatedActivation.Function = .silu,
        method: SVDMethod = ChannelEstimator.defaultMethod, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            gate: ChannelEstimator(weight: gate, rank: rank, method: method, on: pool),
            up: ChannelEstimator(weight: up, rank: rank, method: method, on: pool), function: function)
    }

    /// - Throws: `.invalidShape` for estimators of different extents or ranks.
    public init(
        gate: ChannelEstimator, up: ChannelEstimator, function: GatedActivation.Function = .silu
    ) throws(SparseKernelsError) {
        func text(_ e: ChannelEstimator) -> String { "\(e.inFeatures) inputs, \(e.outFeatures) outputs, rank \(e.rank)" }
        try require(
            up.down.shape == gate.down.shape && up.up.shape == gate.up.shape, .invalidShape, "up", expected: text(gate),
            actual: text(up))
        self.gate = gate
        self.up = up
        self.function = function
        down = try stacked([gate.down, up.down])
        norms = try HiddenNorms(gate: gate.up, up: up.up, function: function)
    }

    /// The scores of all channels.
    ///
    /// - Parameters:
    ///   - x: batch · length × width, the input of the layer, sequence by sequence.
    ///   - batch: number of sequences, which matters for their means only.
    ///   - tokens: which tokens the norms are over.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Complexity: rows · width multiply-adds for means, and 2 · rank · (width + channels) of them and an exponential per channel for
    ///   each token that is estimated.
    /// - Throws: `.invalidShape` for another width, or rows that are not `batch` equal sequences; `.invalidArgument` for a stride below 1.
    public func scores(
        _ x: MatrixView<Float>, batch: Int = 1, tokens: Tokens = .sequenceMeans, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> [Float] {
        try require(x.columns == width, .invalidShape, "x", expected: "\(width) columns", actual: "\(x.columns)")
        let set = try InstructionSet.resolve(instructionSet)
        switch tokens {
        case .sequenceMeans:
            try require(batch >= 0, .invalidShape, "batch", expected: "0 or more", actual: "\(batch)")
            try require(
                batch == 0 ? x.rows == 0 : x.rows % batch == 0, .invalidShape, "x.rows",
                expected: "\(batch) sequences of equal length", actual: "\(x.rows)")
            if x.rows == 0 { return Array(repeating: 0, count: channelCount) }
            let means = try sequenceMeans(x, batch: batch, set, on: pool)
            return try scores(projected: projected(means.matrixView(), by: down, set, on: pool), set, on: pool)
        case .all:
            return try scores(projected: projected(x, by: down, set, on: pool), set, on: pool)
        case .every(let stride):
            try require(stride >= 1, .invalidArgument, "tokens", expected: "every 1st or more", actual: "every \(stride)")
            return try scores(projected: projected(x.rows(every: stride), by: down, set, on: pool), set, on: pool)
        }
    }

    /// The channels that context tokens keep.
    ///
    /// - Parameters:
    ///   - x: batch · length × width, the input of the layer, sequence by sequence.
    ///   - batch: number of sequences.
    ///   - sparsity: the share of channels that are left out, in [0, 1).
    ///   - tokens: which tokens the norms are over.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Throws: the errors of ``scores(_:batch:tokens:instructionSet:on:)``; `.invalidArgument` for a sparsity outside [0, 1) and input that is
    ///   not finite.
    public func channels(
        _ x: MatrixView<Float>, batch: Int = 1, sparsity: Double, tokens: Tokens = .sequenceMeans,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> ChannelSubset {
        let count = try ChannelSubset.count(ofWidth: channelCount, sparsity: sparsity)
        return try .strongest(scores(x, batch: batch, tokens: tokens, instructionSet: instructionSet, on: pool), count: count)
    }

    /// The mean row of each sequence, as a product with a row of 1/length.
    private func sequenceMeans(
        _ x: MatrixView<Float>, batch: Int, _ set: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let length = x.rows / batch
        let weights = try Tensor<Float>([1, length]) { _ in 1 / Float(length) }
        let product = try GEMM(m: 1, n: width, k: length, instructionSet: set)
        var means = try Tensor<Float>(zeros: [batch, width])
        for sample in 0..<batch {
            var target = try means.mutableMatrixView()
            try product.run(
                a: weights.matrixView(), b: x.rows(sample * length..<(sample + 1) * length),
                c: target.rows(sample..<sample + 1), on: pool)
        }
        return means
    }

    /// Norms over the projected tokens, `[tokens, 2 · rank]`.
    private func scores(
        projected t: Tensor<Float>, _ set: InstructionSet, on pool: WorkerPool
    ) throws(SparseKernelsError) -> [Float] {
        try norms(t.matrixView(), instructionSet: set, on: pool)
    }
}

extension MLPEstimator: Equatable {
    public static func == (a: MLPEstimator, b: MLPEstimator) -> Bool {
        a.gate == b.gate && a.up == b.up && a.function == b.function
    }
}

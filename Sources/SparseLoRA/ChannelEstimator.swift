internal import Foundation
public import SparseKernels

/// A cheap estimate of the outputs of a linear layer, from the leading singular vectors of its weight.
///
///     W = U·diag(σ)·Vᵀ,   down = √σ·Vᵀ,   up = U·√σ,   y ≈ (x·downᵀ)·upᵀ
///
/// It is computed once per model, offline, and stored (see ``MLPEstimator`` and ``AttentionEstimator``).
///
/// - Complexity: rank · (in + out) multiply-adds per token.
/// - Source: SparseLoRA (arXiv 2506.16500), section 3.2.
public struct ChannelEstimator: Sendable, Equatable {
    /// `[rank, inFeatures]`.
    public let down: Tensor<Float>
    /// `[outFeatures, rank]`.
    public let up: Tensor<Float>

    public var rank: Int { down.shape[0] }
    public var inFeatures: Int { down.shape[1] }
    public var outFeatures: Int { up.shape[0] }

    /// The estimator of a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - rank: 8 in the paper.
    ///   - method: of the decomposition. `.full`, as in the released code, takes minutes for large weights.
    ///   - pool: the threads to use.
    /// - Throws: the errors of `LowRankFactorization`.
    public init(
        weight: Tensor<Float>, rank: Int = 8, method: SVDMethod = Self.defaultMethod, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let factors = try LowRankFactorization(rank: rank, method: method)(weight, on: pool)
        let roots = factors.singularValues.map { Double($0).squareRoot() }
        let (depth, v, u) = (weight.shape[1], factors.down.elements, factors.up.elements)
        down = try Tensor([rank, depth]) { Float(Double(v[$0]) * roots[$0 / depth]) }
        // `LowRankFactors` has the singular values in `up`.
        up = try Tensor([weight.shape[0], rank]) {
            let root = roots[$0 % rank]
            return root > 0 ? Float(Double(u[$0]) / root) : 0
        }
    }

    /// An estimator of given factors.
    /// - Throws: `.invalidShape` for factors that are not `[rank, inFeatures]` and `[outFeatures, rank]` with a rank of 1 or more.
    public init(down: Tensor<Float>, up: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            down.shape.count == 2 && down.shape[0] >= 1, .invalidShape, "down", expected: "[rank, inFeatures]",
            actual: "\(down.shape)")
        try require(
            up.shape.count == 2 && up.shape[1] == down.shape[0], .invalidShape, "up",
            expected: "[outFeatures, \(down.shape[0])], as down has rank \(down.shape[0])", actual: "\(up.shape)")
        self.down = down
        self.up = up
    }

    /// More oversampling and iterations than for layers that run: channels are ranked by the result.
    public static var defaultMethod: SVDMethod { .randomized(oversampling: 24, powerIterations: 8) }

    /// Estimates outputs.
    ///
    /// - Parameters:
    ///   - x: tokens × inFeatures.
    ///   - y: tokens × outFeatures, overwritten.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` naming the operand; nothing is written then.
    public func estimate(
        _ x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            x.columns == inFeatures, .invalidShape, "x", expected: "\(inFeatures) columns", actual: "\(x.columns)")
        let second = try GEMM(
            m: x.rows, n: outFeatures, k: rank, transposesB: true, instructionSet: instructionSet)
        try require(
            y.rows == x.rows && y.columns == outFeatures, .invalidShape, "y", expected: "\(x.rows) × \(outFeatures)",
            actual: "\(y.rows) × \(y.columns)")
        let t = try projected(x, by: down, instructionSet, on: pool)
        try second.run(a: t.matrixView(), b: up.matrixView(), c: y, on: pool)
    }
}

/// x · weightᵀ.
func projected(
    _ x: MatrixView<Float>, by weight: Tensor<Float>, _ set: InstructionSet?, on pool: WorkerPool
) throws(SparseKernelsError) -> Tensor<Float> {
    let rank = weight.shape[0]
    var t = try Tensor<Float>(zeros: [x.rows, rank])
    let product = try GEMM(m: x.rows, n: rank, k: x.columns, transposesB: true, instructionSet: set)
    try product.run(a: x, b: weight.matrixView(), c: t.mutableMatrixView(), on: pool)
    return t
}

/// Matrices of as many columns, one on top of the other.
func stacked(_ parts: [Tensor<Float>]) throws(SparseKernelsError) -> Tensor<Float> {
    var elements: [Float] = []
    for part in parts { elements += part.elements }
    return try Tensor([parts.reduce(0) { $0 + $1.shape[0] }, parts[0].shape[1]], elements)
}

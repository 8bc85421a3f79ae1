public import SparseKernels

/// Fits routers to recorded activations by ridge regression, so that the method works for models without released routers.
///
/// With inputs X and measured activity Y, a row per token, the weight of a router is
///
///     W = Yᵀ X · H⁻¹,   H = Xᵀ X + λ · 1
///
/// U of `InverseCholesky`, with H⁻¹ = Uᵀ U, makes it two products. For two factors of rank r, what is left of the error is
/// smallest (reduced-rank regression) when Yᵀ X · Uᵀ, not W itself, is cut to rank r, since ‖X · Δᵀ‖² + λ‖Δ‖² = ‖Δ · U⁻¹‖² of an error Δ.
///
/// ```swift
/// let fitting = try RouterFitting()
/// let router = try fitting.headRouter(inputs: x, activity: norms)
/// let count = try RouterCalibration.count(scores: …, activity: norms, recall: 0.99)
/// ```
///
/// Bits depend on the data alone, not on the number of threads.
///
/// - Complexity: T · D · (D + N) + D³/2 + N · D² multiply-adds for T tokens, D features and N heads or channels.
/// - Source: our own, in place of the paper's training of classifiers by gradient descent (arXiv 2505.14884, appendix B).
public struct RouterFitting: Sendable {
    /// λ as a part of the mean of the diagonal of Xᵀ X.
    public let regularization: Double
    /// The seed of the factorisation of neuron routers.
    public let seed: UInt64

    /// - Parameters:
    ///   - regularization: above 0 and finite.
    ///   - seed: that of the random sketch with which a weight is cut to a rank.
    /// - Throws: `.invalidArgument` for a regularisation out of range.
    public init(regularization: Double = 1e-3, seed: UInt64 = 0) throws(SparseKernelsError) {
        try require(
            regularization > 0 && regularization.isFinite, .invalidArgument, "regularization", expected: "above 0, finite",
            actual: "\(regularization)")
        self.regularization = regularization
        self.seed = seed
    }

    /// A router of heads, with a bias: that of a feature which is always 1.
    ///
    /// - Parameters:
    ///   - inputs: `[tokens, inFeatures]`, hidden states that an attention layer saw.
    ///   - activity: `[tokens, heads]`, how much each head did: the norms of its outputs, for instance.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for no tokens, features or heads, or different numbers of tokens; `.invalidArgument` for numbers that
    ///   are not finite or so large that products overflow, and for inputs that are all 0.
    public func headRouter(
        inputs: MatrixView<Float>, activity: MatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> HeadRouter {
        let depth = inputs.columns
        let solution = try solve(inputs, activity, hasConstant: true, on: pool)
        let weight = try solution.weight(on: pool)
        let (rows, wide) = (activity.columns, depth + 1)
        return try HeadRouter(
            weight: Tensor([rows, depth]) { weight[flat: $0 / depth * wide + $0 % depth] },
            bias: Tensor([rows]) { weight[flat: $0 * wide + depth] })
    }

    /// A router of channels, of two factors.
    ///
    /// - Parameters:
    ///   - inputs: `[tokens, inFeatures]`, hidden states that an MLP saw.
    ///   - activity: `[tokens, channels]`: 1 for an active channel and 0 for another, or magnitudes.
    ///   - rank: 1 to the lesser of features and channels.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `headRouter`, and `.invalidArgument` for a rank out of range.
    public func neuronRouter(
        inputs: MatrixView<Float>, activity: MatrixView<Float>, rank: Int, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> NeuronRouter {
        let solution = try solve(inputs, activity, hasConstant: false, on: pool)
        let factors = try LowRankFactorization(rank: rank, seed: seed)(
            solution.product.matrixView(named: "activity"), on: pool)
        var down = try Tensor<Float>(zeros: [rank, inputs.columns])
        try GEMM(m: rank, n: inputs.columns, k: inputs.columns).run(a: factors.down, b: solution.upper, into: &down, on: pool)
        return try NeuronRouter(down: down, up: factors.up)
    }

    /// Yᵀ X · Uᵀ and U.
    private struct Solution {
        let product: Tensor<Float>
        let upper: Tensor<Float>

        /// Yᵀ X · H⁻¹.
        func weight(on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
            let (rows, depth) = (product.shape[0], product.shape[1])
            var result = try Tensor<Float>(zeros: [rows, depth])
            try GEMM(m: rows, n: depth, k: depth).run(a: product, b: upper, into: &result, on: pool)
            return result
        }
    }

    private func solve(
        _ inputs: MatrixView<Float>, _ activity: MatrixView<Float>, hasConstant: Bool, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Solution {
        let tokens = inputs.rows
        try require(
            tokens >= 1 && inputs.columns >= 1, .invalidShape, "inputs", expected: "tokens and features",
            actual: "\(tokens) × \(inputs.columns)")
        try require(
            activity.rows == tokens && activity.columns >= 1, .invalidShape, "activity",
            expected: "\(tokens) rows, as the inputs have", actual: "\(activity.rows) × \(activity.columns)")
        let x = try copy(of: inputs, hasConstant: hasConstant)
        let (columns, targets) = (try transposed(x), try transposed(copy(of: activity, hasConstant: false)))
        try requireFinite(x, named: "inputs")
        try requireFinite(targets, named: "activity")
        let (depth, rows) = (x.shape[1], targets.shape[0])
        var gram = try Tensor<Float>(zeros: [depth, depth])
        try GEMM(m: depth, n: depth, k: tokens, transposesB: true).run(a: columns, b: columns, into: &gram, on: pool)
        let mean = (0..<depth).reduce(0) { $0 + Double(gram[flat: $1 * (depth + 1)]) } / Double(depth)
        // More damping where rounding has made the matrix indefinite.
        var damping = regularization * mean
        var upper: Tensor<Float>?
        for _ in 0..<8 where upper == nil {
            upper = try InverseCholesky(of: gram, damping: Float(damping), on: pool)?.upper
            damping *= 10
        }
        guard let upper else {
            throw SparseKernelsError(
                .invalidArgument, "inputs", expected: "not all 0, and small enough for products in single precision",
                actual: "a mean square of \(mean / Double(tokens))")
        }
        var products = try Tensor<Float>(zeros: [rows, depth])
        try GEMM(m: rows, n: depth, k: tokens).run(a: targets, b: x, into: &products, on: pool)
        var result = try Tensor<Float>(zeros: [rows, depth])
        try GEMM(m: rows, n: depth, k: depth, transposesB: true).run(a: products, b: upper, into: &result, on: pool)
        return Solution(product: result, upper: upper)
    }

    /// The rows of a view, and a 1 behind each.
    private func copy(of view: MatrixView<Float>, hasConstant: Bool) throws(SparseKernelsError) -> Tensor<Float> {
        let width = view.columns + (hasConstant ? 1 : 0)
        var result = try Tensor<Float>(zeros: [view.rows, width])
        var elements = result.mutableSpan
        for row in 0..<view.rows {
            for column in 0..<view.columns { elements[row * width + column] = view[row, column] }
            if hasConstant { elements[row * width + view.columns] = 1 }
        }
        return result
    }

    private func transposed(_ matrix: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        var result = try Tensor<Float>(zeros: [columns, rows])
        let source = matrix.span
        var elements = result.mutableSpan
        for row in 0..<rows {
            for column in 0..<columns { elements[column * rows + row] = source[row * columns + column] }
        }
        return result
    }
}

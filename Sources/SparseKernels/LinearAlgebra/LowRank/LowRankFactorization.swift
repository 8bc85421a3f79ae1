/// The method of a truncated singular value decomposition.
public enum SVDMethod: Hashable, Sendable {
    /// Randomised subspace iteration: `2 · powerIterations + 2` products of the matrix with `rank + oversampling` vectors.
    ///
    /// The defaults are those of deepcompressor's pull request 111, which replaces a full decomposition by it.
    case randomized(oversampling: Int = 10, powerIterations: Int = 4)
    /// All singular vectors in `Double`: LAPACK's divide and conquer (`dgesdd`) when the package was built with the trait
    /// `OpenBLAS`, else one-sided Jacobi rotations, which take up to about fifty times as long. LAPACK is faster at every size,
    /// even with kernels that OpenBLAS chose badly.
    case full
}

/// The best approximation of an N × K matrix by a product of rank r: matrix ≈ up · down.
public struct LowRankFactors: Sendable {
    /// `[rank, K]`: V_rᵀ, with orthonormal rows. If the matrix has a lower rank, some rows are not determined. For these the
    /// randomised method gives any direction that is orthogonal to the others; the full one may give zeros.
    public let down: Tensor<Float>
    /// `[N, rank]`: U_r · diag(σ), with the singular values in this factor as in SVDQuant.
    public let up: Tensor<Float>
    /// σ, descending.
    public let singularValues: [Float]

    public var rank: Int { singularValues.count }

    /// The factors of the matrix times `scale`, a power of two.
    fileprivate func multiplied(by scale: Double) throws(SparseKernelsError) -> LowRankFactors {
        let elements = up.elements
        return LowRankFactors(
            down: down, up: try Tensor(up.shape) { Float(Double(elements[$0]) * scale) },
            singularValues: singularValues.map { Float(Double($0) * scale) })
    }
}

/// Truncated singular value decomposition, which gives the factors of SVDQuant's low-rank branch.
///
///     W ≈ up · down,   down = V_rᵀ,   up = U_r · diag(σ₁ … σ_r)
///
/// The randomised method gives the same bits for a seed on any number of threads. It finds the leading subspace of a spectrum
/// that decays. When the spectrum is flat, the factors are as good as the best ones up to a few per cent of what rank r can
/// explain, which is little then (see `Docs/Operators/LowRank.md`).
///
/// - Complexity: randomised: 2 · (powerIterations + 1) · N · K · (rank + oversampling) multiply-adds. Full: about
///   20 · N · K · min(N, K) in `Double` through LAPACK.
/// - Memory: randomised: three matrices of (rank + oversampling) · max(N, K) floats. Full: about 4 · N · K doubles.
/// - Source: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithms 4.4 and 5.1; Li et al.,
///   "SVDQuant" (arXiv 2411.05007), section 4.2.
public struct LowRankFactorization: Sendable {
    public let rank: Int
    public let method: SVDMethod
    /// The seed of the random sketch.
    public let seed: UInt64

    /// - Throws: `.invalidArgument` for a rank below 1 or negative method options.
    public init(rank: Int, method: SVDMethod = .randomized(), seed: UInt64 = 0) throws(SparseKernelsError) {
        try require(rank >= 1, .invalidArgument, "rank", expected: "at least 1", actual: "\(rank)")
        if case .randomized(let oversampling, let powerIterations) = method {
            try require(oversampling >= 0, .invalidArgument, "oversampling", expected: "0 or more", actual: "\(oversampling)")
            try require(
                powerIterations >= 0, .invalidArgument, "powerIterations", expected: "0 or more", actual: "\(powerIterations)")
        }
        self.rank = rank
        self.method = method
        self.seed = seed
    }

    /// Matrices whose largest element has a magnitude of 2⁻⁴⁰ to 2⁴¹ are factored without scaling.
    private static let largestExponent = 40

    /// The factors of an N × K matrix.
    ///
    /// - Parameters:
    ///   - matrix: N × K, N and K at least `rank`.
    ///   - start: factors of a similar N × K matrix, of any rank. The randomised method starts from their `up` instead of
    ///     random vectors, so that one power iteration is as good as several from random vectors. The full method ignores them.
    ///   - pool: the threads to use. The call blocks until they are done. LAPACK uses as many threads, or one below 512 × 512.
    /// - Throws: `.invalidArgument` for a rank above min(N, K), or elements that are not finite or reach 2¹⁰⁰; `.invalidShape`
    ///   for `start` of another shape.
    public func callAsFunction(
        _ matrix: MatrixView<Float>, startingFrom start: LowRankFactors? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> LowRankFactors {
        try matrix.requireElements(named: "matrix")
        let limit = min(matrix.rows, matrix.columns)
        try require(
            rank <= limit, .invalidArgument, "rank", expected: "at most \(limit) for \(matrix.rows) × \(matrix.columns)",
            actual: "\(rank)")
        if let start {
            try require(
                start.up.shape[0] == matrix.rows && start.down.shape[1] == matrix.columns, .invalidShape, "start",
                expected: "factors of \(matrix.rows) × \(matrix.columns)",
                actual: "factors of \(start.up.shape[0]) × \(start.down.shape[1])")
        }
        let largest = try requireMagnitudes(of: matrix, named: "matrix", on: pool)
        switch method {
        case .randomized(let oversampling, let powerIterations):
            // Squares and reciprocals of lengths must stay in the range of `Float`, so matrices far from 1 are scaled by a
            // power of two, exactly.
            if largest > 0 && abs(largest.exponent) > Self.largestExponent {
                let scale = Double(sign: .plus, exponent: -Int(largest.exponent), significand: 1)
                let scaled = try Tensor<Float>([matrix.rows, matrix.columns]) {
                    Float(Double(matrix[$0 / matrix.columns, $0 % matrix.columns]) * scale)
                }
                return try self(scaled, startingFrom: start, on: pool).multiplied(by: 1 / scale)
            }
            let (vectors, overflow) = rank.addingReportingOverflow(oversampling)
            let iteration = try SubspaceIteration(
                rows: matrix.rows, columns: matrix.columns, vectors: overflow ? limit : min(vectors, limit))
            return try iteration.factors(
                of: matrix, rank: rank, powerIterations: powerIterations, seed: seed, start: start, on: pool)
        case .full:
            return try FullDecomposition.factors(of: matrix, rank: rank, on: pool)
        }
    }

    /// Decomposes a tensor of rank 2. See `callAsFunction(_:startingFrom:on:)` for views.
    /// - Throws: the errors of the call with a view, and `.invalidShape` for a tensor of another rank.
    public func callAsFunction(
        _ matrix: Tensor<Float>, startingFrom start: LowRankFactors? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> LowRankFactors {
        try self(matrix.matrixView(named: "matrix"), startingFrom: start, on: pool)
    }
}

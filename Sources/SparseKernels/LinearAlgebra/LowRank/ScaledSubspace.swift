/// The leading singular subspace of W · diag(s), updated as s changes. That needs few passes over W, where a new factorisation
/// needs many, and W · diag(s) is never stored.
///
/// One sweep of subspace iteration, from r orthonormal rows Uᵀ that span most of the left subspace:
///
///     V ← rows of Uᵀ · W · diag(s), orthonormal        Yᵀ ← V · diag(s) · Wᵀ        Uᵀ ← rows of Yᵀ, orthonormal
///
/// Y · V is the projection of W · diag(s) onto the rows of V, which is the best approximation with that row space. Neither is
/// rotated to singular vectors, because the product does not need it.
///
/// - Source: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithm 4.4, without oversampling and
///   with a start that is better than random.
struct ScaledSubspace: Sendable {
    /// Uᵀ, `[rank, rows]`.
    private var left: Tensor<Float>
    private(set) var sweeps = 0

    /// The most sweeps of one approximation, which a start from random rows needs.
    static let maximumSweeps = 4
    /// A sweep that lowers the squared distance to the matrix by less than this fraction is the last one. 1% of a square is
    /// 0.5% of the distance, a tenth of the difference between neighbouring candidates.
    static let improvement = 0.01

    /// Starts with random rows.
    init(rank: Int, rows: Int, seed: UInt64, on pool: WorkerPool) throws(SparseKernelsError) {
        var generator = SplitMix64(seed: seed)
        left = try Tensor([rank, rows]) { _ in generator.uniform() - 0.5 }
        try Self.orthonormalize(&left, on: pool)
    }

    /// Approximates W · diag(s) by Y · V.
    ///
    /// - Parameters:
    ///   - weight: W, `[rows, columns]`.
    ///   - scales: the vector s.
    ///   - pool: the threads to use.
    /// - Returns: V as `down`, `[rank, columns]`, with orthonormal rows; Y as `up`, `[rows, rank]`.
    /// - Complexity: 2 · rank · rows · columns multiply-adds per sweep.
    mutating func approximate(
        _ weight: Tensor<Float>, scaledBy scales: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> (down: Tensor<Float>, up: Tensor<Float>) {
        let (rows, columns, rank) = (weight.shape[0], weight.shape[1], left.shape[0])
        let total = energy(of: weight, scaledBy: scales, on: pool)
        var down = try Tensor<Float>(zeros: [rank, columns])
        var image = try Tensor<Float>(zeros: [rank, rows])
        for sweep in 1...Self.maximumSweeps {
            try GEMM(m: rank, n: columns, k: rows).run(a: left, b: weight, into: &down, on: pool)
            down = down.multiplyingColumns(by: scales, on: pool)
            let before = energy(of: down, scaledBy: nil, on: pool)
            try Self.orthonormalize(&down, on: pool)
            try GEMM(m: rank, n: rows, k: columns, transposesB: true).run(
                a: down.multiplyingColumns(by: scales, on: pool), b: weight, into: &image, on: pool)
            let after = energy(of: image, scaledBy: nil, on: pool)
            left = image
            try Self.orthonormalize(&left, on: pool)
            sweeps += 1
            if sweep == Self.maximumSweeps || after - before <= Self.improvement * (total - before) { break }
        }
        return (down, try image.transposed(on: pool))
    }

    private static func orthonormalize(_ rows: inout Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) {
        try RowSpace.orthonormalizeFully(&rows, seed: 0, on: pool)
    }

    /// Σ (matrix · diag(s))².
    private func energy(of matrix: Tensor<Float>, scaledBy scales: Tensor<Float>?, on pool: WorkerPool) -> Double {
        let columns = matrix.shape[1]
        return pool.map(matrix.shape[0], work: matrix.count * 4) { row in
            matrix.span.withUnsafeBufferPointer { matrix in
                let row = matrix.baseAddress! + row * columns
                guard let scales else { return sumOfSquares(columns) { row[$0] } }
                return scales.span.withUnsafeBufferPointer { s in sumOfSquares(columns) { row[$0] * s[$0] } }
            }
        }.reduce(0, +)
    }
}

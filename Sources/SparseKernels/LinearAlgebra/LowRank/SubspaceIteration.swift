/// Randomised subspace iteration on an N × K matrix A (Halko, Martinsson and Tropp 2011, algorithm 4.4 on Aᵀ).
///
///     Ω  [l, N]  random, or an earlier U_rᵀ completed
///     W  ← orth(Ω · A)                                   [l, K]
///     repeat:   Q ← orth(W · Aᵀ)   [l, N],    W ← orth(Q · A)
///     Y  ← W · Aᵀ                                        [l, N]
///     Y  = X · Σ · Uᵀ       down = X_rᵀ · W,   up = (X_rᵀ · Y)ᵀ = A · downᵀ
///
/// Vectors are rows throughout. Both products then read A as it is stored, as `B` or `Bᵀ` of `GEMM`, with the few vectors in
/// the packed strips, and nothing is transposed. As the last step is on the side of K, `up` is the exact least-squares factor
/// of `down`.
struct SubspaceIteration {
    private let rows: Int
    private let columns: Int
    private let vectors: Int
    /// [l, N] · A → [l, K].
    private let timesMatrix: GEMM
    /// [l, K] · Aᵀ → [l, N].
    private let timesTranspose: GEMM

    init(rows: Int, columns: Int, vectors: Int) throws(SparseKernelsError) {
        self.rows = rows
        self.columns = columns
        self.vectors = vectors
        timesMatrix = try GEMM(m: vectors, n: columns, k: rows)
        timesTranspose = try GEMM(m: vectors, n: rows, k: columns, transposesB: true)
    }

    func factors(
        of matrix: MatrixView<Float>, rank: Int, powerIterations: Int, seed: UInt64, start: LowRankFactors?,
        on pool: WorkerPool
    ) throws(SparseKernelsError) -> LowRankFactors {
        var left = try sketch(seed: seed, start: start, on: pool)
        var right = try Tensor<Float>(zeros: [vectors, columns])
        for iteration in 0...powerIterations {
            if iteration > 0 {
                try timesTranspose.run(
                    a: right.matrixView(), b: matrix, c: left.mutableMatrixView(), on: pool)
                try RowSpace.orthonormalize(&left, on: pool)
            }
            try timesMatrix.run(a: left.matrixView(), b: matrix, c: right.mutableMatrixView(), on: pool)
            try RowSpace.orthonormalize(&right, on: pool)
        }
        // The first pass is not exact to the last digits. `up · down` is A · WᵀW, so errors of W are errors of the product.
        try RowSpace.orthonormalizeFully(&right, seed: seed, on: pool)
        try timesTranspose.run(a: right.matrixView(), b: matrix, c: left.mutableMatrixView(), on: pool)

        let principal = RowSpace.principalDirections(of: left, on: pool)
        let turn = try Tensor<Float>([rank, vectors], principal.directions.prefix(rank * vectors).map { Float($0) })
        let down = try Self.product(turn, right, on: pool)
        let upTransposed = try Self.product(turn, left, on: pool)
        return LowRankFactors(
            down: down, up: try Self.transposed(upTransposed), singularValues: Array(principal.values.prefix(rank)))
    }

    /// The vectors with which the iteration starts, `[l, N]`.
    private func sketch(seed: UInt64, start: LowRankFactors?, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        var seeds = SplitMix64(seed: seed)
        let rowSeeds = (0..<vectors).map { _ in seeds.next() }
        let up = start?.up.elements ?? []
        let lines = pool.map(vectors, work: vectors * rows * 12) { vector in
            // A direction of the earlier matrix, of unit length. Where it had none, the direction is random like the rest.
            if let start, vector < start.rank, start.singularValues[vector] > 0 {
                let length = start.singularValues[vector]
                return (0..<rows).map { up[$0 * start.rank + vector] / length }
            }
            var generator = SplitMix64(seed: rowSeeds[vector])
            return (0..<rows).map { _ in generator.normal() }
        }
        return try Tensor([vectors, rows], lines.flatMap { $0 })
    }

    private static func product(_ a: Tensor<Float>, _ b: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError)
        -> Tensor<Float>
    {
        var result = try Tensor<Float>(zeros: [a.shape[0], b.shape[1]])
        let gemm = try GEMM(m: a.shape[0], n: b.shape[1], k: b.shape[0])
        try gemm.run(a: a, b: b, into: &result, on: pool)
        return result
    }

    private static func transposed(_ matrix: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        let elements = matrix.elements
        return try Tensor([columns, rows]) { elements[$0 % rows * columns + $0 / rows] }
    }
}

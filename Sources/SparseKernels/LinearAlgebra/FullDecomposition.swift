/// All singular vectors of a matrix in `Double`, of which the leading ones are kept.
package enum FullDecomposition {
    static func factors(
        of matrix: MatrixView<Float>, rank: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> LowRankFactors {
        if OpenBLAS.isAvailable { return try OpenBLAS.factors(of: matrix, rank: rank, threads: pool.threads) }
        return try jacobiFactors(of: matrix, rank: rank, on: pool)
    }

    /// The factors through one-sided Jacobi rotations of the rows of A, or of Aᵀ when it has fewer.
    ///
    /// - Complexity: about 50 · N · K · min(N, K) multiply-adds, memory-bound: seconds for 512 × 512, hours for 4096 × 4096.
    package static func jacobiFactors(
        of matrix: MatrixView<Float>, rank: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> LowRankFactors {
        let (n, k) = (matrix.rows, matrix.columns)
        let isWide = n <= k
        let (count, length) = (min(n, k), max(n, k))
        let rows = (0..<count * length).map { index in
            let (row, column) = (index / length, index % length)
            return Double(isWide ? matrix[row, column] : matrix[column, row])
        }
        let jacobi = OneSidedJacobi(rows: rows, count: count, length: length, on: pool)
        let values = jacobi.values.prefix(rank).map { Float($0) }
        // Wide: A = rotationᵀ · Σ · Vᵀ with Σ · Vᵀ in the rows. Tall: Aᵀ = rotationᵀ · Σ · Uᵀ.
        let down: Tensor<Float>
        let up: Tensor<Float>
        if isWide {
            down = try Tensor([rank, k]) {
                let value = jacobi.values[$0 / k]
                return value > 0 ? Float(jacobi.rows[$0] / value) : 0
            }
            up = try Tensor([n, rank]) { Float(jacobi.rotation[$0 % rank * n + $0 / rank] * jacobi.values[$0 % rank]) }
        } else {
            down = try Tensor([rank, k]) { Float(jacobi.rotation[$0]) }
            up = try Tensor([n, rank]) { Float(jacobi.rows[$0 % rank * n + $0 / rank]) }
        }
        return LowRankFactors(down: down, up: up, singularValues: values)
    }
}

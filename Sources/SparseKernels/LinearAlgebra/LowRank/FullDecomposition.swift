/// Decomposes a matrix completely in `Double` and returns the leading singular vectors.
package enum FullDecomposition {
    static func factors(
        of matrix: MatrixView<Float>, rank: Int, on pool: WorkerPool
    ) throws(SparseKernelsError) -> LowRankFactors {
        guard OpenBLAS.isAvailable else { return try jacobiFactors(of: matrix, rank: rank, on: pool) }
        let threads = lapackThreads(rows: matrix.rows, columns: matrix.columns, of: pool.threads)
        return try OpenBLAS.factors(of: matrix, rank: rank, threads: threads)
    }

    /// The N · K · min(N, K) of 512 × 512, from which on LAPACK gets more than one thread.
    ///
    /// Below it, threads of OpenBLAS cost more than they gain, and their spinning costs a lot where cores are shared. Measured
    /// with 0.3.21 on Zen 3, one thread against two: 64 × 512 takes 1.5 ms against 2.5 ms, 128 × 128 2.6 against 8.0, 256 × 256
    /// 27 against 41, 512 × 512 the same. The Jacobi rotations take 8.8, 18 and 167 ms for the first three. With two threads on
    /// busy cores, and the Prescott kernels, LAPACK took 30 ms for the first, which is more than without OpenBLAS.
    private static let threadedWork = 1 << 27

    /// The number of threads that LAPACK may use of those that the caller has.
    package static func lapackThreads(rows: Int, columns: Int, of threads: Int) -> Int {
        let (area, overflow) = rows.multipliedReportingOverflow(by: columns)
        let (work, overflowed) = area.multipliedReportingOverflow(by: min(rows, columns))
        return overflow || overflowed || work >= threadedWork ? threads : 1
    }

    /// Computes the factors by one-sided Jacobi rotations of the rows of A, or of those of Aᵀ if there are fewer.
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

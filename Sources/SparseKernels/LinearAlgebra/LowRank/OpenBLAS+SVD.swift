#if OpenBLAS && os(Linux)
    internal import COpenBLAS
#endif

extension OpenBLAS {
    /// The leading singular vectors by LAPACK's `dgesdd` on the matrix in `Double`, as in deepcompressor.
    ///
    /// Memory: about 2 · (N · K + (N + K) · min(N, K)) doubles. The last bits may depend on OpenBLAS's number of threads.
    static func factors(
        of matrix: MatrixView<Float>, rank: Int, threads: Int
    ) throws(SparseKernelsError) -> LowRankFactors {
        #if OpenBLAS && os(Linux)
            openblas_set_num_threads(Int32(threads))
            let (n, k) = (matrix.rows, matrix.columns)
            let least = min(n, k)
            // LAPACK is column-major and reads the matrix as Aᵀ = V · Σ · Uᵀ, which is K × N. Its left vectors are the rows of
            // Vᵀ, one after the other, and its right factor is U, row by row.
            var a = [Double](unsafeUninitializedCapacity: n * k) { buffer, count in
                for row in 0..<n {
                    for column in 0..<k { buffer[row * k + column] = Double(matrix[row, column]) }
                }
                count = n * k
            }
            var values = [Double](repeating: 0, count: least)
            var right = [Double](repeating: 0, count: least * k)
            var left = [Double](repeating: 0, count: n * least)
            let info = LAPACKE_dgesdd(
                LAPACK_COL_MAJOR, CChar(UInt8(ascii: "S")), numericCast(k), numericCast(n), &a, numericCast(k), &values, &right,
                numericCast(k), &left, numericCast(least))
            try require(
                info == 0, .invalidArgument, "matrix", expected: "a matrix whose decomposition LAPACK finds",
                actual: "info \(info) from dgesdd")
            let down = try Tensor<Float>([rank, k]) { Float(right[$0]) }
            let up = try Tensor<Float>([n, rank]) { Float(left[$0 / rank * least + $0 % rank] * values[$0 % rank]) }
            return LowRankFactors(down: down, up: up, singularValues: values.prefix(rank).map { Float($0) })
        #else
            throw SparseKernelsError(
                .invalidArgument, "OpenBLAS", expected: "built in (package trait OpenBLAS)", actual: "not built in")
        #endif
    }
}

extension OpenBLAS {
    /// C = A·B or A·Bᵀ of tensors of rank 2 by `cblas_sgemm`. See `multiply` with views.
    /// - Throws: the errors of `multiply` with views, and `.invalidShape` for another rank.
    public static func multiply(
        a: Tensor<Float>, b: Tensor<Float>, into c: inout Tensor<Float>, transposesB: Bool = false, threads: Int = 1
    ) throws(SparseKernelsError) {
        try multiply(
            a: a.matrixView(named: "a"), b: b.matrixView(named: "b"), c: c.mutableMatrixView(named: "c"),
            transposesB: transposesB, threads: threads)
    }

    /// y = A·x of tensors by `cblas_sgemv`. `a` has rank 2, and the elements of `x` and `y` count in memory order.
    /// - Throws: the errors of `multiplyVector` with views, and `.invalidShape` for another rank of `a`.
    public static func multiplyVector(
        a: Tensor<Float>, x: Tensor<Float>, into y: inout Tensor<Float>, threads: Int = 1
    ) throws(SparseKernelsError) {
        var result = y.mutableSpan
        try multiplyVector(a: a.matrixView(named: "a"), x: x.span, y: &result, threads: threads)
    }
}

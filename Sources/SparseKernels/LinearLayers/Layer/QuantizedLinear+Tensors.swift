extension QuantizedLinear {
    /// The codes and scales that the rows of x, `[tokens, inFeatures]`, have in the product.
    /// - Throws: the errors of `quantized` with a view, and `.invalidShape` for another rank.
    public func quantized<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedActivations {
        try quantized(x.matrixView(named: "x"), on: pool)
    }
}

extension HadamardRotation {
    /// Rotates the rows of a tensor `[rows, count]` in place: x ← x · Q, or its inverse x ← x · Qᵀ.
    ///
    /// - Parameters:
    ///   - rows: any number of rows of `count` channels.
    ///   - inverse: whether to multiply by Qᵀ.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for another rank or number of channels; nothing is written then.
    public func run(
        rows: inout Tensor<Float>, inverse: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(rows: rows.mutableMatrixView(named: "rows"), inverse: inverse, on: pool)
    }
}

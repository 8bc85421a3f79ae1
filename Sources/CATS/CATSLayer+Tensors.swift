public import SparseKernels

extension CATSLayer {
    /// Computes y for the rows of x into a tensor that is reused from call to call. See ``run(_:into:workspace:on:)``.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    @discardableResult
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, workspace: inout CATSWorkspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Int {
        try run(x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), workspace: &workspace, on: pool)
    }

    /// Adds what the layer's threshold would meet to a histogram. See ``record(_:into:workspace:on:)``.
    /// - Throws: the errors of `record` with a view, and `.invalidShape` for another rank.
    public func record(
        _ x: Tensor<Float>, into histogram: inout ActivationHistogram, workspace: inout CATSWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try record(x.matrixView(named: "x"), into: &histogram, workspace: &workspace, on: pool)
    }
}

extension ActivationHistogram {
    /// Adds the entries of activations, `[tokens, channels]`.
    /// - Throws: `.invalidArgument` naming an entry that is not finite, `.invalidShape` for another rank; nothing is added then.
    public mutating func add(_ activations: Tensor<Float>) throws(SparseKernelsError) {
        try add(activations.matrixView(named: "activations"))
    }
}

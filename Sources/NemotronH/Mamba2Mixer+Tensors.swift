public import SparseKernels

// The form of a mixer that takes tensors.

extension Mamba2Mixer {
    /// Mixes the tokens of a packed batch, into a tensor that is reused from call to call. See `run` with views.
    ///
    /// - Parameters:
    ///   - projected: `[tokens, projectedWidth]`.
    ///   - output: `[tokens, innerWidth]`, overwritten.
    ///   - batch: the tokens of each sequence, and its slot.
    ///   - states: of the layer; those of the batch's slots go on.
    ///   - workspace: grows to the largest batch.
    ///   - pool: the threads to use.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run(
        projected: Tensor<Float>, into output: inout Tensor<Float>, batch: PackedSequences, states: Mamba2States,
        workspace: inout Mamba2Workspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            projected: projected.matrixView(named: "projected"), into: output.mutableMatrixView(named: "output"), batch: batch,
            states: states, workspace: &workspace, on: pool)
    }
}

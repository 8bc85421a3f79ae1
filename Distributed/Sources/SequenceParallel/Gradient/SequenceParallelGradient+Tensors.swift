public import SparseKernels

extension SequenceParallelGradient {
    /// The gradients of a rank's own operands.
    public struct Gradients: Sendable, Equatable {
        /// `[queryHeads, own tokens, headDim]`.
        public var query: Tensor<Float>
        /// `[kvHeads, own tokens, headDim]`, summed over the queries of all ranks.
        public var key: Tensor<Float>
        /// `[kvHeads, own tokens, valueDim]`, summed over the queries of all ranks.
        public var value: Tensor<Float>
    }

    /// Computes the gradients of tensors `[heads, own tokens, channels]` into new memory. Every rank calls it.
    ///
    /// - Parameters:
    ///   - query: what this rank gave the forward pass, and so are `key` and `value`.
    ///   - state: what the forward pass computed for its tokens.
    ///   - outputGradient: the gradient of its output.
    ///   - pool: the threads of this rank.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction(
        query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, state: AttentionState, outputGradient: Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Gradients {
        let own = ownCount
        var queryGradient = try Tensor<Float>(zeros: [heads.queryHeads, own, heads.headDim])
        var keyGradient = try Tensor<Float>(zeros: [heads.kvHeads, own, heads.headDim])
        var valueGradient = try Tensor<Float>(zeros: [heads.kvHeads, own, heads.valueDim])
        do {
            let (q, k, v) = (try query.view(named: "query"), try key.view(named: "key"), try value.view(named: "value"))
            let output = try state.output.view(named: "output")
            let gradient = try outputGradient.view(named: "outputGradient")
            let dq = try queryGradient.mutableView(named: "queryGradient")
            let dk = try keyGradient.mutableView(named: "keyGradient")
            let dv = try valueGradient.mutableView(named: "valueGradient")
            try run(
                query: q, key: k, value: v, output: output, logSumExp: state.logSumExp.span, outputGradient: gradient,
                queryGradient: dq, keyGradient: dk, valueGradient: dv, on: pool)
        }
        return Gradients(query: queryGradient, key: keyGradient, value: valueGradient)
    }
}

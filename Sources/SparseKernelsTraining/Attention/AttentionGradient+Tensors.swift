public import SparseKernels

extension AttentionGradient {
    /// The gradients of the operands of attention.
    public struct Gradients: Sendable, Equatable {
        /// `[queryHeads, queryLength, headDim]`.
        public var query: Tensor<Float>
        /// `[kvHeads, keyLength, headDim]`, summed over the query heads of a group.
        public var key: Tensor<Float>
        /// `[kvHeads, keyLength, valueDim]`, summed over the query heads of a group.
        public var value: Tensor<Float>
    }

    /// Computes the gradients of tensors `[heads, tokens, channels]` into new memory.
    ///
    /// - Parameters:
    ///   - query: what the forward pass was given, and so are `key` and `value`.
    ///   - state: what it computed.
    ///   - outputGradient: the gradient of its output.
    ///   - pool: the threads to use.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction(
        query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, state: AttentionState, outputGradient: Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Gradients {
        var queryGradient = try Tensor<Float>(zeros: [shape.queryHeads, shape.queryLength, shape.headDim])
        var keyGradient = try Tensor<Float>(zeros: [shape.kvHeads, shape.keyLength, shape.headDim])
        var valueGradient = try Tensor<Float>(zeros: [shape.kvHeads, shape.keyLength, shape.valueDim])
        try run(
            query: query, key: key, value: value, state: state, outputGradient: outputGradient, queryGradient: &queryGradient,
            keyGradient: &keyGradient, valueGradient: &valueGradient, on: pool)
        return Gradients(query: queryGradient, key: keyGradient, value: valueGradient)
    }

    /// Computes the gradients of tensors `[heads, tokens, channels]` into tensors that are reused from call to call.
    /// - Throws: the errors of `run` with views.
    public func run(
        query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, state: AttentionState, outputGradient: Tensor<Float>,
        queryGradient: inout Tensor<Float>, keyGradient: inout Tensor<Float>, valueGradient: inout Tensor<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"),
            output: state.output.view(named: "output"), logSumExp: state.logSumExp.span,
            outputGradient: outputGradient.view(named: "outputGradient"),
            queryGradient: queryGradient.mutableView(named: "queryGradient"),
            keyGradient: keyGradient.mutableView(named: "keyGradient"),
            valueGradient: valueGradient.mutableView(named: "valueGradient"), on: pool)
    }
}

// The forms of the gated delta rule that take tensors.

extension GatedDeltaRule {
    /// Takes states over the tokens of a batch, with decays per token, `[tokens, valueHeads]`, or per token and channel,
    /// `[valueHeads, tokens, keyDim]`.
    ///
    /// Queries and keys are `[keyHeads, tokens, keyDim]`, values and outputs `[valueHeads, tokens, valueDim]`, β is
    /// `[tokens, valueHeads]`. Operands of rank 3 may have the first two axes in the order of `layout`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, D: AttentionElement, B: AttentionElement, Y: AttentionElement>(
        query: Tensor<X>, key: Tensor<X>, value: Tensor<X>, logDecay: Tensor<D>, beta: Tensor<B>, into output: inout Tensor<Y>,
        layout: TensorLayout = .hnd, batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if logDecay.shape.count == 2 && decay != .perChannel {
            try run(
                query: query.view(layout: layout, named: "query"), key: key.view(layout: layout, named: "key"),
                value: value.view(layout: layout, named: "value"), logDecay: logDecay.matrixView(named: "logDecay"),
                beta: beta.matrixView(named: "beta"), into: output.mutableView(layout: layout, named: "output"), batch: batch,
                states: states, on: pool)
        } else {
            try run(
                query: query.view(layout: layout, named: "query"), key: key.view(layout: layout, named: "key"),
                value: value.view(layout: layout, named: "value"), logDecay: logDecay.view(layout: layout, named: "logDecay"),
                beta: beta.matrixView(named: "beta"), into: output.mutableView(layout: layout, named: "output"), batch: batch,
                states: states, on: pool)
        }
    }

    /// Takes states over the tokens of a batch, without decays. See the form with decays.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, B: AttentionElement, Y: AttentionElement>(
        query: Tensor<X>, key: Tensor<X>, value: Tensor<X>, beta: Tensor<B>, into output: inout Tensor<Y>,
        layout: TensorLayout = .hnd, batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(layout: layout, named: "query"), key: key.view(layout: layout, named: "key"),
            value: value.view(layout: layout, named: "value"), beta: beta.matrixView(named: "beta"),
            into: output.mutableView(layout: layout, named: "output"), batch: batch, states: states, on: pool)
    }
}

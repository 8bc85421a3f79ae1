// The forms of recurrences that take tensors.

extension LinearRecurrence {
    /// Takes states over the tokens of a batch, with decays per head.
    ///
    /// Queries and keys are `[keyHeads, tokens, keyDim]`, values and outputs `[valueHeads, tokens, valueDim]`, or with the first two axes
    /// in the order of `layout`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, Y: AttentionElement>(
        query: Tensor<X>, key: Tensor<X>, value: Tensor<X>, into output: inout Tensor<Y>, layout: TensorLayout = .hnd,
        batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            query: query.view(layout: layout, named: "query"), key: key.view(layout: layout, named: "key"),
            value: value.view(layout: layout, named: "value"), into: output.mutableView(layout: layout, named: "output"),
            batch: batch, states: states, on: pool)
    }

    /// Takes states over the tokens of a batch, with decays per token, `[tokens, valueHeads]`, or per token and channel,
    /// `[heads, tokens, keyDim]`.
    ///
    /// Queries and keys are `[keyHeads, tokens, keyDim]`, values and outputs `[valueHeads, tokens, valueDim]`. These and decays of
    /// channels may have the first two axes in the order of `layout`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, D: AttentionElement, Y: AttentionElement>(
        query: Tensor<X>, key: Tensor<X>, value: Tensor<X>, logDecay: Tensor<D>, into output: inout Tensor<Y>,
        layout: TensorLayout = .hnd, batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        if logDecay.shape.count == 2 && decay != .perChannel {
            try run(
                query: query.view(layout: layout, named: "query"), key: key.view(layout: layout, named: "key"),
                value: value.view(layout: layout, named: "value"), logDecay: logDecay.matrixView(named: "logDecay"),
                into: output.mutableView(layout: layout, named: "output"), batch: batch, states: states, on: pool)
        } else {
            try run(
                query: query.view(layout: layout, named: "query"), key: key.view(layout: layout, named: "key"),
                value: value.view(layout: layout, named: "value"), logDecay: logDecay.view(layout: layout, named: "logDecay"),
                into: output.mutableView(layout: layout, named: "output"), batch: batch, states: states, on: pool)
        }
    }
}

extension StateSpaceDuality {
    /// Takes states over the tokens of a batch.
    ///
    /// x and y are `[heads, tokens, headDim]`, b and c `[groups, tokens, stateSize]`, or with the first two axes in the order of
    /// `layout`; dt is `[tokens, heads]`.
    /// - Throws: the errors of `run` with views, and `.invalidShape` for another rank.
    public func run<X: AttentionElement, D: AttentionElement, Y: AttentionElement>(
        x: Tensor<X>, b: Tensor<X>, c: Tensor<X>, dt: Tensor<D>, into y: inout Tensor<Y>, layout: TensorLayout = .hnd,
        batch: PackedSequences, states: RecurrentStates, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(
            x: x.view(layout: layout, named: "x"), b: b.view(layout: layout, named: "b"),
            c: c.view(layout: layout, named: "c"), dt: dt.matrixView(named: "dt"),
            into: y.mutableView(layout: layout, named: "y"), batch: batch, states: states, on: pool)
    }
}

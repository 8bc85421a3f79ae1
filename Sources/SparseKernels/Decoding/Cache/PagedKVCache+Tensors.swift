// Tensors in the place of views. A view of a temporary, `f().view()` with a throwing `f`, crashes the compiler (Swift 6.3.1), and a view of
// a variable property is an error; a tensor may be either.

extension PagedKVCache {
    /// Appends tokens to one layer of a sequence. See `append` with views.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: gets new pages where its table has none, and copies of shared pages that it writes to.
    ///   - layer: whose keys and values.
    ///   - pool: heads and pages are written in parallel.
    /// - Throws: as `append` with views, and `.invalidShape` for another rank.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, to sequence: SequenceID, layer: Int = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(
            key: key.view(named: "key"), value: value.view(named: "value"), to: sequence, layer: layer, on: pool)
    }

    /// Replaces tokens that one layer of a sequence has already. See `overwrite` with views.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: gets copies of shared pages that it writes to.
    ///   - position: the first of the replaced tokens.
    ///   - layer: whose keys and values.
    ///   - pool: heads and pages are written in parallel.
    /// - Throws: as `overwrite` with views, and `.invalidShape` for another rank.
    public func overwrite<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, in sequence: SequenceID, from position: Int, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try overwrite(
            key: key.view(named: "key"), value: value.view(named: "value"), in: sequence, from: position, layer: layer,
            on: pool)
    }
}

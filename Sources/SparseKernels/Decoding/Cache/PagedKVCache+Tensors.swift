// Overloads for tensors. A view of a temporary, `f().view()` with a throwing `f`, crashes the compiler (Swift 6.3.1), and a
// view of a variable property is an error; a tensor may be either.

extension PagedKVCache {
    /// Appends tokens to one layer of a sequence. See `append(key:value:to:layer:on:)`.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence. It gets new pages where it needs them, and copies of shared pages that it writes to.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `append` with views, and `.invalidShape` for another rank.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, to sequence: SequenceID, layer: Int = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(
            key: key.view(named: "key"), value: value.view(named: "value"), to: sequence, layer: layer, on: pool)
    }

    /// Appends one token to one layer of each of several sequences. See `append(key:value:toEach:layer:on:)`.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, sequences, headDim]`: token i goes to `sequences[i]`.
    ///   - value: `[kvHeads, sequences, valueDim]`.
    ///   - sequences: different sequences.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and sequences in parallel.
    /// - Throws: the errors of `append` with views, and `.invalidShape` for another rank.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, toEach sequences: [SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(
            key: key.view(named: "key"), value: value.view(named: "value"), toEach: sequences, layer: layer, on: pool)
    }

    /// Replaces existing tokens of one layer of a sequence. See `overwrite(key:value:in:from:layer:on:)`.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence. It gets copies of shared pages that it writes to.
    ///   - position: the first of the replaced tokens.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `overwrite` with views, and `.invalidShape` for another rank.
    public func overwrite<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, in sequence: SequenceID, from position: Int, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try overwrite(
            key: key.view(named: "key"), value: value.view(named: "value"), in: sequence, from: position, layer: layer,
            on: pool)
    }
}

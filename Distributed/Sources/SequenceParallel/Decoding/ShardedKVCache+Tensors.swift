// Overloads for tensors. A view of a temporary, `f().view()` with a throwing `f`, crashes the compiler (Swift 6.3.1), and a
// view of a variable property is an error; a tensor may be either.

extension ShardedKVCache {
    /// Appends tokens to one layer of a sequence, of which every rank has its own rows. See
    /// `append(key:value:to:shards:layer:on:)` with views.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, shards.count(of: rank), headDim]`.
    ///   - value: `[kvHeads, shards.count(of: rank), valueDim]`.
    ///   - sequence: the sequence.
    ///   - shards: who owns the new tokens; the same on every rank.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `append` with views, and `.invalidShape` for another rank of a tensor.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, to sequence: SequenceID, shards: TokenShards, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(
            key: key.view(named: "key"), value: value.view(named: "value"), to: sequence, shards: shards, layer: layer,
            on: pool)
    }

    /// Appends tokens to one layer of a sequence, whose rows are on every rank. See `append(key:value:to:layer:on:)` with
    /// views.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, tokens, headDim]`, the same on every rank.
    ///   - value: `[kvHeads, tokens, valueDim]`.
    ///   - sequence: the sequence.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and pages in parallel.
    /// - Throws: the errors of `append` with views, and `.invalidShape` for another rank of a tensor.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, to sequence: SequenceID, layer: Int = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(
            key: key.view(named: "key"), value: value.view(named: "value"), to: sequence, layer: layer, on: pool)
    }

    /// Appends one token to one layer of each of several sequences. See `append(key:value:toEach:layer:on:)` with views.
    ///
    /// - Parameters:
    ///   - key: `[kvHeads, sequences, headDim]`, the same on every rank: token i goes to `sequences[i]`.
    ///   - value: `[kvHeads, sequences, valueDim]`.
    ///   - sequences: different sequences.
    ///   - layer: the layer of the keys and values.
    ///   - pool: the threads that write heads and sequences in parallel.
    /// - Throws: the errors of `append` with views, and `.invalidShape` for another rank of a tensor.
    public func append<Key: AttentionElement, Value: AttentionElement>(
        key: Tensor<Key>, value: Tensor<Value>, toEach sequences: [SequenceID], layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try append(
            key: key.view(named: "key"), value: value.view(named: "value"), toEach: sequences, layer: layer, on: pool)
    }
}

extension AttentionShape {
    /// The shape of tensors `[heads, tokens, channels]`.
    /// - Throws: `.invalidShape` when the tensors disagree with each other or have another rank.
    public init<Q, K, V>(query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>) throws(SparseKernelsError) {
        try self.init(query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"))
    }
}

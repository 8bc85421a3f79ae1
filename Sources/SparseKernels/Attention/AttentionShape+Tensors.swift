extension AttentionShape {
    /// The shape that tensors `[heads, tokens, channels]` have.
    /// - Throws: `.invalidShape` when they disagree with each other, or for another rank.
    public init<Q, K, V>(query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>) throws(SparseKernelsError) {
        try self.init(query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"))
    }
}

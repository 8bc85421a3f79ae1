public import SparseKernels

// Calls with a state, with tensors `[heads, tokens, headDim]`.

extension SVG2Attention {
    /// Clusters from the state's centroids, or anew, selects, and keeps the centroids. See `select` with views.
    /// - Throws: as `select` with views, and `.invalidShape` for another rank.
    public func select<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, continuing state: inout SVG2State, layer: Int = 0, pass: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> SVG2Selection {
        try select(
            query: query.view(named: "query"), key: key.view(named: "key"), continuing: &state, layer: layer, pass: pass,
            on: pool)
    }

    /// Clusters and keeps the centroids, without selecting. See `track` with views.
    /// - Throws: as `track` with views, and `.invalidShape` for another rank.
    public func track<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, in state: inout SVG2State, layer: Int = 0, pass: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try track(
            query: query.view(named: "query"), key: key.view(named: "key"), in: &state, layer: layer, pass: pass, on: pool)
    }
}

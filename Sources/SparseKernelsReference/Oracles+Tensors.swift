public import SparseKernels

// Overloads for tensors `[heads, tokens, channels]`, because a view of a temporary crashes the compiler (Swift 6.3.1).

extension ReferenceAttention {
    /// One row of attention. See `row` with views.
    /// - Throws: `.invalidShape` for a tensor of another rank.
    public func row<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        head: Int, token: Int, query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>,
        bias: (Int) -> Double = { _ in 0 }, hides: (Int) -> Bool = { _ in false }
    ) throws(SparseKernelsError) -> Row {
        let query = try query.view(named: "query")
        let key = try key.view(named: "key")
        let value = try value.view(named: "value")
        return row(head: head, token: token, query: query, key: key, value: value, bias: bias, hides: hides)
    }
}

extension ReferenceAntidiagonalScoring {
    /// The sum along one antidiagonal. See `antidiagonal` with views.
    /// - Throws: `.invalidShape` for a tensor of another rank.
    public func antidiagonal<Q: AttentionElement, K: AttentionElement>(
        head: Int, queryGroup i: Int, keyGroup j: Int, query: Tensor<Q>, key: Tensor<K>
    ) throws(SparseKernelsError) -> Double {
        let query = try query.view(named: "query")
        let key = try key.view(named: "key")
        return antidiagonal(head: head, queryGroup: i, keyGroup: j, query: query, key: key)
    }

    /// The scores of all blocks. See `callAsFunction` with views.
    /// - Throws: `.invalidShape` for a tensor of another rank.
    public func callAsFunction<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>
    ) throws(SparseKernelsError) -> [Double] {
        let query = try query.view(named: "query")
        let key = try key.view(named: "key")
        return self(query: query, key: key)
    }
}

extension ReferenceVerticalSlash {
    /// The scores of one head. See the initialiser with views.
    /// - Throws: `.invalidShape` for a tensor of another rank.
    public init<Q: AttentionElement, K: AttentionElement>(
        _ shape: AttentionShape, head: Int, lastQueries: Int, softmaxScale: Double? = nil, query: Tensor<Q>, key: Tensor<K>
    ) throws(SparseKernelsError) {
        let query = try query.view(named: "query")
        let key = try key.view(named: "key")
        self.init(shape, head: head, lastQueries: lastQueries, softmaxScale: softmaxScale, query: query, key: key)
    }
}

extension ReferenceBlockPrediction {
    /// The mean token of one head. See `tokenMean` of a view.
    /// - Throws: `.invalidShape` for a tensor of another rank.
    public static func tokenMean<Element: AttentionElement>(
        _ rows: Tensor<Element>, head: Int
    ) throws(SparseKernelsError) -> [Double] {
        let rows = try rows.view(named: "rows")
        return tokenMean(rows, head: head)
    }

    /// The blocks of one head. See `blocks` of a view.
    /// - Throws: `.invalidShape` for a tensor of another rank.
    public static func blocks<Element: AttentionElement>(
        _ rows: Tensor<Element>, head: Int, partition: BlockPartition, subtracting mean: [Double]? = nil
    ) throws(SparseKernelsError) -> [Block] {
        let rows = try rows.view(named: "rows")
        return blocks(rows, head: head, partition: partition, subtracting: mean)
    }
}

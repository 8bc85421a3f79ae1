// What calls are refused for, on every rank alike.

extension ShardedPagedAttention {
    /// Throws, on every rank alike, unless cache, sequences and layer fit.
    func check(
        _ cache: ShardedKVCache, _ sequences: [ShardedKVCache.SequenceID], layer: Int
    ) throws(SparseKernelsError) -> [ShardedKVCache.Entry] {
        guard cache.configuration == configuration, cache.communicator === communicator else {
            throw SparseKernelsError(
                .invalidShape, "cache", expected: "of the configuration and the ranks that the operator was made for",
                actual: "another one")
        }
        try cache.requireLayer(layer)
        var entries: [ShardedKVCache.Entry] = []
        entries.reserveCapacity(sequences.count)
        for sequence in sequences { entries.append(try cache.entry(of: sequence)) }
        return entries
    }

    /// The number of queries.
    func check(
        _ query: TensorGeometry, _ sequences: [ShardedKVCache.SequenceID], _ queryLengths: [Int]?,
        _ selector: ShardedPageSelector?
    ) throws(SparseKernelsError) -> Int {
        try check(query: query)
        var count = sequences.count
        if let queryLengths {
            guard queryLengths.count == sequences.count else {
                throw SparseKernelsError(
                    .invalidShape, "queryLengths", expected: "one per sequence (\(sequences.count))",
                    actual: "\(queryLengths.count)")
            }
            count = 0
            for (index, length) in queryLengths.enumerated() {
                guard length >= 0, length <= query.tokens else {
                    throw SparseKernelsError(
                        .invalidShape, "queryLengths[\(index)]",
                        expected: "0 or more queries, and no more than the \(query.tokens) of the call", actual: "\(length)")
                }
                count += length
            }
        }
        guard query.tokens == count else {
            throw SparseKernelsError(
                .invalidShape, "query", expected: "Σ queryLengths = \(count) tokens", actual: "\(query.tokens)")
        }
        guard let selector else { return count }
        guard mask == .causal || mask == .full else {
            throw SparseKernelsError(
                .invalidArgument, "selector", expected: "nil with a mask that is not .causal or .full",
                actual: "a selector with \(mask)")
        }
        guard queryLengths?.allSatisfy({ $0 == 1 }) ?? true else {
            throw SparseKernelsError(
                .invalidShape, "queryLengths", expected: "1 each, with a selector", actual: "others")
        }
        guard selector.communicator === communicator else {
            throw SparseKernelsError(
                .invalidArgument, "selector", expected: "of the ranks of the operator", actual: "one of others")
        }
        return count
    }

    func check(root: Int?) throws(SparseKernelsError) {
        guard let root, root < 0 || root >= ranks else { return }
        throw SparseKernelsError(.invalidArgument, "root", expected: "from 0 to \(ranks - 1)", actual: "\(root)")
    }

    func check(query: TensorGeometry) throws(SparseKernelsError) {
        guard query.heads == queryHeads, query.channels == configuration.headDim else {
            throw SparseKernelsError(
                .invalidShape, "query", expected: "\(queryHeads) heads of \(configuration.headDim) channels",
                actual: "\(query.heads) of \(query.channels)")
        }
    }

    func check(output: TensorGeometry, logSumExp: Int?, count: Int) throws(SparseKernelsError) {
        guard output.heads == queryHeads, output.tokens == count, output.channels == configuration.valueDim else {
            throw SparseKernelsError(
                .invalidShape, "output", expected: "\(queryHeads) heads × \(count) tokens × \(configuration.valueDim) channels",
                actual: "\(output.heads) × \(output.tokens) × \(output.channels)")
        }
        guard logSumExp == nil || logSumExp == queryHeads * count else {
            throw SparseKernelsError(
                .invalidShape, "logSumExp", expected: "queryHeads × queries = \(queryHeads * count) elements",
                actual: "\(logSumExp ?? 0)")
        }
    }
}

extension TensorGeometry {
    /// The same extents in adjacent rows.
    func packed() throws(SparseKernelsError) -> TensorGeometry {
        try TensorGeometry(heads: heads, tokens: tokens, channels: channels, layout: .hnd, named: "query")
    }
}

// Owners of new tokens.

extension ShardedKVCache {
    /// Who owns the next tokens of a layer of a sequence.
    ///
    /// Tokens that another layer has already are where they are. Others continue the page of the last token, and new pages go
    /// to the rank that has the fewest tokens.
    ///
    /// ```swift
    /// let shards = try cache.placement(of: 512, in: sequence)
    /// let own = shards.positions(of: ranks.rank)      // which of the 512 rows this rank passes to `append`
    /// ```
    ///
    /// - Parameters:
    ///   - count: the number of new tokens, 0 or more.
    ///   - sequence: the sequence.
    ///   - layer: the layer that is to get them.
    /// - Returns: shards of the new tokens: token 0 is the first new one.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a layer that the cache does not have, and for a count below 0 or
    ///   above 2³¹.
    /// - Complexity: O(*p* · ranks) for *p* pages, and O(*p* log *p*).
    public func placement(
        of count: Int, in sequence: SequenceID, layer: Int = 0
    ) throws(SparseKernelsError) -> TokenShards {
        let entry = try entry(of: sequence)
        try requireLayer(layer)
        guard count >= 0, count <= 1 << 31 else {
            throw SparseKernelsError(.invalidArgument, "count", expected: "from 0 to 2³¹", actual: "\(count)")
        }
        let start = entry.lengths[layer]
        var (tokens, totals) = (entry.tokens, totals)
        place(start + count - tokens.length, in: &tokens, &totals)
        let ranges = (0..<ranks).map { rank in
            tokens.ranges(of: rank, in: start..<start + count).map { $0.lowerBound - start..<$0.upperBound - start }
        }
        return try TokenShards(length: count, ranges: ranges)
    }

    /// Appends tokens to the owners that `placement` says.
    func place(_ count: Int, in tokens: inout ShardedTokens, _ totals: inout [Int]) {
        let pageSize = configuration.pageSize
        var left = count
        while left > 0 {
            let owner = nextOwner(of: tokens, totals)
            let part = min(left, pageSize - tokens.length % pageSize)
            tokens.append(part, to: owner)
            totals[owner] += part
            left -= part
        }
    }

    /// The rank of the next token of a sequence.
    func nextOwner(of tokens: ShardedTokens, _ totals: [Int]) -> Int {
        tokens.length % configuration.pageSize == 0 ? emptiestRank(tokens, totals) : tokens.owner(of: tokens.length - 1)
    }

    private func emptiestRank(_ tokens: ShardedTokens, _ totals: [Int]) -> Int {
        var best = 0
        for rank in 1..<max(1, ranks)
        where (tokens.count(of: rank), totals[rank]) < (tokens.count(of: best), totals[best]) { best = rank }
        return best
    }
}

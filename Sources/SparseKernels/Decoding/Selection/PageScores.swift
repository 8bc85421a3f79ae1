/// The scores of the pages of one sequence, from which selections are made, for inspection.
public struct PageScores: Sendable, Equatable {
    /// `[queryHeads, logical pages]`, for the logical pages that hold tokens.
    public let logical: Tensor<Float>
    /// `[lists, pages]`, where lists are key/value heads or query heads, as in the selector. All NaN are the same NaN here.
    public let pages: Tensor<Float>
    /// The position of every page in the page table. Logical pages are those of these pages; discarded pages have no scores.
    public let positions: [Int32]
}

extension PageSelector {
    /// Scores the pages for one query token.
    ///
    /// - Parameters:
    ///   - query: `[queryHeads, 1, headDim]`.
    ///   - cache: must not be written during the call.
    ///   - sequence: may have any length.
    ///   - layer: the layer whose keys are scored.
    ///   - pool: the threads to use.
    /// - Throws: as `select`.
    public func pageScores<Q: AttentionElement>(
        query: TensorView<Q>, cache: PagedKVCache, sequence: PagedKVCache.SequenceID, layer: Int = 0,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> PageScores {
        try check(query.geometry, cache, sequences: 1)
        var tables = ScoredPages(try PageTables(of: [sequence], in: cache, layer: layer), rows: [0])
        let scorer = PageScorer(self, query: AttentionOperand(query), cache: cache, layer: layer)
        tables.cut(chunkPages: scorer.chunkPages, lists: lists) { _ in true }
        let placement = tables.sequences[0]
        let positions = tables.positions(of: placement)
        let logicalPages = positions.reduce(0) { $0 + scorer.logicalPages(at: $1, length: placement.length) }
        var logical = try Tensor<Float>(zeros: [queryHeads, logicalPages])
        var pages = try Tensor<Float>(zeros: [lists, positions.count])
        var keys = [Int32](repeating: 0, count: tables.keyCount)
        let logicalBase = logical.mutableAddress()
        keys.withUnsafeMutableBufferPointer { keys in
            guard let base = keys.baseAddress else { return }
            tables.withAddresses { scored in
                PageScoringCall(
                    scorer: scorer, scored: scored, listsPerHead: lists / configuration.kvHeads, keys: base,
                    logical: logicalBase, logicalStride: logicalPages
                ).run(on: pool)
            }
        }
        var target = pages.mutableSpan
        for index in keys.indices { target[index] = ScoreOrder.score(keys[index]) }
        return PageScores(logical: logical, pages: pages, positions: positions)
    }
}

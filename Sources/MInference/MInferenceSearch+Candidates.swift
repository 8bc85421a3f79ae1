internal import Foundation

extension MInferenceSearch {
    /// The candidates, each with its pattern for every query head.
    func candidates<Q: AttentionElement, K: AttentionElement>(
        query: Tensor<Q>, key: Tensor<K>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> [[MInferenceHead]] {
        switch mode {
        case .released:
            let blocks = (shape.queryLength - 1) / 32 + 1
            let heads: [MInferenceHead] = [
                .aShape(initial: 100, local: 800), .verticalSlash(vertical: 30, slash: 800),
                .verticalSlash(vertical: 100, slash: 750), .verticalSlash(vertical: 500, slash: 700),
                .verticalSlash(vertical: 3500, slash: 100), .blockSparse(topK: max(1, blocks / 8), blockSize: 32),
            ]
            return heads.map { Array(repeating: $0, count: shape.queryHeads) }
        case .paper(let initial, let local, let verticals):
            let aShape = MInferenceHead.aShape(initial: initial, local: local)
            let oneHead = try AttentionShape(
                queryLength: shape.queryLength, keyLength: shape.keyLength, queryHeads: 1, kvHeads: 1, headDim: shape.headDim)
            let budget = try BlockSparseAttention(
                oneHead, heads: [.streaming(sink: initial, local: local)], isCausal: true
            ).visiblePairs
            let blockSparse = try MInferenceHead.blockSparse(topK: blocks(within: budget))
            let scores = try VerticalSlashScoring(shape, softmaxScale: softmaxScale, instructionSet: instructionSet)(
                query: query, key: key, on: pool)
            var candidates = [aShape, blockSparse].map { Array(repeating: $0, count: shape.queryHeads) }
            for vertical in verticals {
                let fitted = pool.map(shape.queryHeads, work: .max) { head in
                    Result { () throws(SparseKernelsError) -> MInferenceHead in
                        let slash = try slashes(within: budget, vertical: vertical, scores, head: head, oneHead)
                        return .verticalSlash(vertical: vertical, slash: slash)
                    }
                }
                var heads: [MInferenceHead] = []
                for head in fitted { heads.append(try head.get()) }
                candidates.append(heads)
            }
            return candidates
        }
    }

    /// The largest number of blocks of 64 per row whose pairs, counted in whole blocks, stay within the budget; at least 1.
    private func blocks(within budget: Int) throws(SparseKernelsError) -> Int {
        let grid = try BlockGrid(shape, blockSize: 64, isCausal: true)
        func pairs(_ count: Int) -> Int {
            (0..<grid.blockRows).reduce(0) {
                $0 + grid.query[$1].count * min(count, grid.reachableColumns(ofRow: $1).count) * 64
            }
        }
        var (low, high) = (1, grid.blockColumns)
        while low < high {
            let middle = (low + high + 1) / 2
            if pairs(middle) <= budget { low = middle } else { high = middle - 1 }
        }
        return low
    }

    /// The largest number of slashes whose index, with the verticals, stays within the budget; at least the released minimum.
    private func slashes(
        within budget: Int, vertical: Int, _ scores: VerticalSlashScores, head: Int, _ oneHead: AttentionShape
    ) throws(SparseKernelsError) -> Int {
        var (low, high) = (VerticalSlashSelection.minimumSlash, max(VerticalSlashSelection.minimumSlash, shape.keyLength))
        while low < high {
            let middle = (low + high + 1) / 2
            let lines = try VerticalSlashSelection(vertical: vertical, slash: middle)(scores, head: head)
            let runs = try VerticalSlashIndex(lines, queryLength: shape.queryLength, keyLength: shape.keyLength).keyRuns
            let pairs = try BlockSparseAttention(oneHead, heads: [.runs(runs)], isCausal: true).visiblePairs
            if pairs <= budget { low = middle } else { high = middle - 1 }
        }
        return low
    }
}

extension AttentionState {
    /// The fraction of a query's attention mass over all keys that is on the keys of this state: min(1, e^(LSE − LSE_all)).
    func keptMass(of all: AttentionState, row: Int) -> Double {
        min(1, exp(Double(logSumExp[flat: row]) - Double(all.logSumExp[flat: row])))
    }
}

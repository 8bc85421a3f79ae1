import Communication
import SequenceParallel
import SparseKernels

extension RankChecks {
    /// Rows that move between shards, and the backward pass of attention, against one rank's.
    static let sharding = [
        RankCheck("rows of frames and text on their way to the model's shards") { (ranks) throws(SparseKernelsError) in
            let stages = try TwoStageSharding(
                promptLength: 40, placeholders: [3, 4, 5, 17, 18], frameTokens: [19, 19, 19, 7, 0], ulysses: 1,
                ring: ranks.count)
            let exchange = try stages.exchange(rowByteCount: 8, on: ranks)
            let rows = stages.encoded.positions(of: ranks.rank)
            let moved = try exchange(Tensor([rows.count, 2], rows.flatMap { [Float($0), -Float($0)] }))
            let expected = stages.model.positions(of: ranks.rank).flatMap { [Float($0), -Float($0)] }
            return moved.elements == expected ? nil : "has rows \(moved.elements), not \(expected)"
        },
        RankCheck("gradients of attention over every grid of the ranks") { (ranks) throws(SparseKernelsError) in
            let (heads, kvHeads, headDim, length) = (12, 6, 8, 61)
            let whole = try Operands(heads: heads, kvHeads: kvHeads, headDim: headDim, queries: length, keys: length)
            let shape = try AttentionShape(
                queryLength: length, keyLength: length, queryHeads: heads, kvHeads: kvHeads, headDim: headDim)
            let state = try DenseAttention(shape, mask: .causal)(
                query: whole.query, key: whole.key, value: whole.value, on: .serial)
            func gradients(
                _ shards: TokenShards, ulysses: Int, _ ranks: any Communicator
            ) throws(SparseKernelsError) -> SequenceParallelGradient.Gradients {
                let tokens = shards.positions(of: ranks.rank)
                let plan = try SequenceParallelGradient(
                    shards, queryHeads: heads, kvHeads: kvHeads, headDim: headDim, mask: .causal, ulysses: ulysses, on: ranks)
                let logs = state.logSumExp
                let own = try AttentionState(
                    output: state.output.tokens(tokens),
                    logSumExp: Tensor([heads, tokens.count]) { index in
                        logs[index / max(1, tokens.count), tokens[index % max(1, tokens.count)]]
                    })
                return try plan(
                    query: whole.query.tokens(tokens), key: whole.key.tokens(tokens), value: whole.value.tokens(tokens),
                    state: own, outputGradient: whole.query.tokens(tokens), on: .serial)
            }
            let expected = try gradients(.contiguous(length: length, ranks: 1), ulysses: 1, LocalCommunicator.alone())
            for ulysses in 1...ranks.count where ranks.count % ulysses == 0 && kvHeads % ulysses == 0 {
                let shards = try TokenShards.zigzag(length: length, ulysses: ulysses, ring: ranks.count / ulysses)
                let tokens = shards.positions(of: ranks.rank)
                let own = try gradients(shards, ulysses: ulysses, ranks)
                for (name, part, all) in [
                    ("queries", own.query, expected.query), ("keys", own.key, expected.key),
                    ("values", own.value, expected.value),
                ] {
                    let difference = part.largestDifference(try all.tokens(tokens))
                    guard difference <= largestError else { return "groups of \(ulysses): \(name) differ by \(difference)" }
                }
            }
            return nil
        },
    ]
}

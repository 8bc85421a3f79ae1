import SequenceParallel
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/SequenceParallel.md, with checks of their comments.
@Suite("Snippets: SequenceParallel")
struct SequenceParallelSnippets {
    @Test("attention on four ranks")
    func attention() throws {
        let scene = try AttentionScene<Float>(length: 96, queryHeads: 8, kvHeads: 2, headDim: 64, seed: 21)
        @Sendable func rows(
            _ tokens: [Int]
        ) throws(SparseKernelsError) -> (Tensor<Float>, Tensor<Float>, Tensor<Float>) {
            (try scene.query.tokens(tokens), try scene.key.tokens(tokens), try scene.value.tokens(tokens))
        }

        let shards = try TokenShards.zigzag(length: 96, ulysses: 2, ring: 2)
        let outputs = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            // Every rank makes the same plan, and calls it with the rows of its own tokens.
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 8, kvHeads: 2, headDim: 64, mask: .causal, ulysses: 2, on: ranks)
            let (q, k, v) = try rows(shards.positions(of: ranks.rank))  // [heads, 24, 64]
            let state = try attention(query: q, key: k, value: v, on: .serial)
            return state.output  // of these rows, as if one machine had attended all 96
        }

        let dense = try DenseAttention(scene.shape, mask: .causal)(query: scene.query, key: scene.key, value: scene.value)
        for rank in 0..<4 {
            let expected = try dense.output.tokens(shards.positions(of: rank)).elements
            #expect(outputs[rank].shape == [8, 24, 64])
            for (actual, value) in zip(outputs[rank].elements, expected) { #expect(abs(actual - value) < 1e-5) }
        }
    }

    @Test("16-bit elements, statistics")
    func statistics() throws {
        let scene = try AttentionScene<BFloat16>(length: 96, queryHeads: 4, kvHeads: 2, headDim: 64, seed: 22)
        let shards = try TokenShards.zigzag(length: 96, ulysses: 2, ring: 2)
        let (sent, balance) = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            let attention = try SequenceParallelAttention(
                shards, queryHeads: 4, kvHeads: 2, headDim: 64, mask: .causal, ulysses: 2, on: ranks)
            let tokens = shards.positions(of: ranks.rank)
            let (q, k, v) = (
                try scene.query.tokens(tokens), try scene.key.tokens(tokens), try scene.value.tokens(tokens)
            )
            var output = try Tensor<BFloat16>(zeros: [4, tokens.count, 64])
            let pool = WorkerPool.serial

            // Half the bytes on the way, and into the caller's memory; what happened to time and messages.
            try attention.run(query: q, key: k, value: v, into: &output, on: pool)
            let done = attention.statistics
            print(done.sentBytes, done.expectedSentBytes)  // 30720 30720
            let work = try ranks.gather([attention.visiblePairs]).map { $0[0] }
            print(work)  // [4656, 4656, 4656, 4656]

            return ([done.sentBytes, done.expectedSentBytes], work)
        }[0]
        #expect(sent == [30720, 30720])
        #expect(balance == [4656, 4656, 4656, 4656])
    }
}

import SequenceParallel
import SparseKernelsReference
import Testing

@Suite("Snippets of the guide to the gradient over ranks")
struct SequenceParallelGradientSnippets {
    @Test func gradients() throws {
        let shards = try TokenShards.zigzag(length: 64, ulysses: 2, ring: 2)
        let shapes = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            // 16 tokens of this rank, 4 query heads, 2 key/value heads, 8 channels.
            let (q, k) = (try Tensor<Float>.normal([4, 16, 8], seed: 1), try Tensor<Float>.normal([2, 16, 8], seed: 2))
            let forward = try SequenceParallelAttention(
                shards, queryHeads: 4, kvHeads: 2, headDim: 8, mask: .causal, ulysses: 2, on: ranks)
            let state = try forward(query: q, key: k, value: k)
            let backward = try SequenceParallelGradient(
                shards, queryHeads: 4, kvHeads: 2, headDim: 8, mask: .causal, ulysses: 2, on: ranks)
            let gradients = try backward(query: q, key: k, value: k, state: state, outputGradient: q)
            return gradients.key.shape
        }

        #expect(shapes == Array(repeating: [2, 16, 8], count: 4))
    }
}

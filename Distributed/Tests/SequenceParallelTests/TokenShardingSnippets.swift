import SequenceParallel
import Testing

@Suite("Snippets of the guide to shards")
struct TokenShardingSnippets {
    @Test func layouts() throws {
        let shards = try TokenShards.zigzag(length: 48, ulysses: 2, ring: 2)
        print(shards.ranges)  // [[0..<12], [36..<48], [12..<24], [24..<36]]
        print(shards.owner(of: 40), shards.row(of: 40))  // 1 4

        #expect(shards.ranges == [[0..<12], [36..<48], [12..<24], [24..<36]])
        #expect(shards.owner(of: 40) == 1 && shards.row(of: 40) == 4)
    }

    @Test func stages() throws {
        // Three frames of 64 tokens in a prompt of 20 tokens, where each frame has a placeholder.
        let stages = try TwoStageSharding(
            promptLength: 20, placeholders: [4, 5, 6], frameTokens: [64, 64, 64], ulysses: 2, ring: 1)
        print(stages.frames, stages.prompt)  // [0..<2, 2..<3] [0..<6, 6..<20]
        print(stages.encoded.ranges)  // [[0..<132], [132..<209]]
        print(stages.model.ranges)  // [[0..<105], [105..<209]]

        #expect(stages.frames == [0..<2, 2..<3] && stages.prompt == [0..<6, 6..<20])
        #expect(stages.encoded.ranges == [[0..<132], [132..<209]])
        #expect(stages.model.ranges == [[0..<105], [105..<209]])

        let rows = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            // Each rank has the rows that it encoded, here of two channels, and gets those of its shard of the model.
            let exchange = try stages.exchange(rowByteCount: 8, on: ranks)
            let own = stages.encoded.positions(of: ranks.rank)
            let embeddings = try exchange(Tensor([own.count, 2], own.flatMap { [Float($0), 0] }))
            return embeddings.shape[0]
        }
        print(rows)  // [105, 104]

        #expect(rows == [105, 104])
    }
}

import SparseKernels
import TestSupport
import Testing

/// The snippets of Docs/Operators/RecurrentStates.md, with checks of their comments.
@Suite("Snippets: recurrent states")
struct RecurrentStatesSnippets {
    @Test("a pool of states")
    func pool() throws {
        let pool = try RecurrentStatePool(
            layers: [[.convolution(channels: 96, width: 4), RecurrentStateShape(heads: 4, rows: 16, columns: 16)]], capacity: 8)
        let sequence = try pool.makeSequence()
        // A layer runs on these states and the sequence's slot. When all layers have run on 20 tokens:
        let batch = try pool.batch([sequence], lengths: [20])
        let states = try pool.states(layer: 0, index: 1)
        try pool.advance(sequence, by: 20)
        try pool.checkpoint(sequence)
        let child = try pool.fork(sequence)
        print(batch.slots, states.rows, pool.usedByteCount == 3 * pool.bytesPerSlot)  // [0] 16 true

        #expect(batch.slots == [0] && states.rows == 16 && pool.usedByteCount == 3 * pool.bytesPerSlot)
        #expect(try pool.length(of: child) == 20)
    }

    @Test("a hybrid cache")
    func hybrid() throws {
        let directory = try TemporaryDirectory()
        let path = "\(directory.path)/cache"
        let (keys, values) = (try Tensor<Float>(zeros: [4, 20, 64]), try Tensor<Float>(zeros: [4, 20, 64]))

        let cache = try HybridCache(
            attention: KVCacheConfiguration(layers: 2, kvHeads: 4, headDim: 64, pageCapacity: 256),
            recurrent: [[.convolution(channels: 96, width: 4), RecurrentStateShape(heads: 4, rows: 16, columns: 16)]],
            stateCapacity: 8)
        let sequence = try cache.makeSequence()
        // Attention layers append to the pages; recurrent layers run on cache.states. When all have run:
        for layer in 0..<2 { try cache.attention?.append(key: keys, value: values, to: sequence, layer: layer) }
        try cache.advance(sequence, by: 20)
        try cache.checkpoint(sequence)
        // After some more tokens, back to the checkpoint.
        try cache.truncate(sequence, to: 20)
        try cache.save(to: path)
        let restored = try HybridCache(contentsOf: path)
        try print(restored.length(of: sequence), restored.checkpoints(of: sequence))  // 20 [20]

        #expect(try restored.length(of: sequence) == 20 && restored.checkpoints(of: sequence) == [20])
    }
}

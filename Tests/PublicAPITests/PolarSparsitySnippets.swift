import PolarSparsity
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/PolarSparsity.md, with checks of their comments.
@Suite("Snippets: Polar Sparsity")
struct PolarSparsitySnippets {
    @Test("a router of heads, a step, and a list of one's own")
    func heads() throws {
        let configuration = try KVCacheConfiguration(layers: 2, kvHeads: 4, headDim: 16, pageCapacity: 8)
        let cache = try PagedKVCache(configuration)
        let sequences = [cache.makeSequence(), cache.makeSequence()]
        for sequence in sequences {
            for layer in 0..<2 {
                let rows = try Tensor<Float>.normal([4, 50, 16], seed: UInt64(layer))
                try cache.append(key: rows, value: rows, to: sequence, layer: layer)
            }
        }
        let attention = try PagedAttention(queryHeads: 8, configuration: configuration)
        let query = try Tensor<Float>.normal([8, 2, 16], seed: 3)
        let outputs = try Tensor<Float>.normal([8, 100, 16], seed: 4)
        let hidden = try Tensor<Float>.normal([100, 24], seed: 5)
        let step = try Tensor<Float>.normal([2, 24], seed: 6)

        // A router of 4 key/value heads, fitted to what the heads did for recorded tokens.
        let activity = try HeadActivity.norms(of: outputs, heads: 4)  // outputs: [queryHeads, tokens, headDim]
        let router = try RouterFitting().headRouter(inputs: hidden, activity: activity)

        // The first layer is dense, the second attends with 2 of 4 groups of query heads.
        let polar = try PolarDecode(attention: attention, routers: [nil, router], counts: [4, 2])
        var output = try Tensor<Float>(zeros: [8, 2, 16])
        try polar.run(
            query: query, hidden: step, cache: cache, sequences: sequences, layer: 1, into: &output)

        // The first sequence attends with key/value heads 0 and 3, the second with head 1.
        let heads = try HeadSelection(sequences: 2, heads: 4, offsets: [0, 2, 3], indices: [0, 3, 1])
        let state = try attention(query: query, cache: cache, sequences: sequences, layer: 1, heads: heads)

        for token in 0..<2 { #expect((0..<8).count { output[$0, token, 0] != 0 } == 4) }
        #expect((0..<8).map { state.output[$0, 0, 0] != 0 } == [true, true, false, false, false, false, true, true])
        #expect(state.logSumExp[flat: 4] == -.infinity)
    }

    @Test("an MLP of the channels that a fitted router chooses")
    func neurons() throws {
        let (fc1, fc2) = try (Tensor<Float>.normal([96, 24], seed: 1), Tensor<Float>.normal([24, 96], seed: 2))
        let hidden = try Tensor<Float>.normal([100, 24], seed: 5)
        let step = try Tensor<Float>.normal([2, 24], seed: 6)

        let mlp = try PolarMLP(up: fc1, down: fc2, function: .relu)
        var workspace = PolarMLP.Workspace()
        let active = try mlp.hidden(of: hidden, workspace: &workspace)
        let neuronRouter = try RouterFitting().neuronRouter(inputs: hidden, activity: active, rank: 8)
        let scores = try neuronRouter(hidden)
        let count = try RouterCalibration.count(scores: scores, activity: active, recall: 0.99)
        let neurons = try neuronRouter.select(step, .strongest(count))
        var y = try Tensor<Float>(zeros: [2, 24])
        try mlp.run(step, neurons: neurons, into: &y, workspace: &workspace)

        #expect(count > 48 && neurons.count >= count)
        #expect(y.elements.allSatisfy { $0.isFinite })
    }
}

import SparseKernels
import SparseKernelsReference
import Testing

/// The snippets of Docs/Operators/MixtureOfExperts.md, with checks of their comments.
@Suite("Snippets: mixture of experts")
struct MixtureOfExpertsSnippets {
    private typealias Matrix = Tensor<Float16>

    @Test("router, routing and layer")
    func layer() throws {
        let w1 = try (0..<8).map { try Matrix.normal([96, 64], seed: UInt64(3 * $0), scale: 0.1) }
        let w3 = try (0..<8).map { try Matrix.normal([96, 64], seed: UInt64(3 * $0 + 1), scale: 0.1) }
        let w2 = try (0..<8).map { try Matrix.normal([64, 96], seed: UInt64(3 * $0 + 2), scale: 0.1) }
        let gateWeight = try Tensor<Float>.normal([8, 64], seed: 40)
        let x = try Tensor<Float>.normal([5, 64], seed: 41)

        let experts = try (0..<8).map { try GatedExpert(gate: w1[$0], up: w3[$0], down: w2[$0]) }
        let layer = try ExpertLayer(experts)
        let router = try ExpertRouter(experts: 8, expertsPerToken: 2)
        let logits = try FloatLinear(weight: gateWeight)(x)  // [tokens, 8]
        let y = try layer(x, routing: router(logits))  // [tokens, 64]
        #expect(y.shape == [5, 64])

        // In a loop nothing is allocated when the routing and the output are reused.
        var routing = try ExpertRouting(experts: 8, expertsPerToken: 2)
        var output = try Tensor<Float>(zeros: [5, 64])
        try router.run(logits, into: &routing)
        try layer.run(x, routing: routing, into: &output)
        print(routing.counts, routing.activeExperts)  // tokens of every expert; experts that have any
        #expect(output == y && routing.counts.reduce(0, +) == 10)
    }

    @Test("routers of models")
    func routers() throws {
        let bias = try Tensor<Float>.normal([256], seed: 1, scale: 0.01)
        let mixtral = try ExpertRouter(experts: 8, expertsPerToken: 2)
        let qwen3 = try ExpertRouter(experts: 128, expertsPerToken: 8)
        let deepSeekV2Lite = try ExpertRouter(experts: 64, expertsPerToken: 6, renormalizes: false)
        let deepSeekV3 = try ExpertRouter(
            experts: 256, expertsPerToken: 8, scores: .sigmoid, correctionBias: bias, scale: 2.5,
            groups: ExpertGroups(count: 8, kept: 4))
        #expect([mixtral, qwen3, deepSeekV2Lite, deepSeekV3].map(\.expertsPerToken) == [2, 8, 6, 8])
    }

    @Test("a choice of one's own, quantised and shared experts")
    func own() throws {
        let ids = try Tensor<Int32>([2, 2], [0, 2, 2, 1])
        let weights = try Tensor<Float>([2, 2], [0.75, 0.25, 0.5, 0.5])
        let routing = try ExpertRouting(ids: ids, weights: weights, experts: 3)
        print(routing.sortedSlots)  // [0, 3, 1, 2]: slots of expert 0, of 1 and of 2
        #expect(routing.sortedSlots == [0, 3, 1, 2])

        func matrix(_ seed: UInt64) throws -> Tensor<Float> { try Tensor<Float>.normal([128, 128], seed: seed, scale: 0.1) }
        let quantizer = try WeightQuantizer(WeightFormat(.uint4, groupSize: 128))
        func linear(_ weight: Tensor<Float>) throws -> QuantizedLinear {
            try QuantizedLinear(PackedWeight(quantizer(weight)), activation: .int8PerToken)
        }
        let experts = try (0..<3).map { index in
            let seed = UInt64(3 * index)
            return try GatedExpert(
                gate: linear(matrix(seed)), up: linear(matrix(seed + 1)), down: linear(matrix(seed + 2)))
        }
        let always = try GatedExpert(gate: matrix(20), up: matrix(21), down: matrix(22))
        let layer = try ExpertLayer(experts, shared: [always], activation: .silu)
        #expect(layer.sharedExperts.count == 1 && layer.byteCount > 0)
        #expect(try layer(Tensor<Float>.normal([2, 128], seed: 3), routing: routing).shape == [2, 128])
    }
}

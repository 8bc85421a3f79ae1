import SparseKernels
import Testing

/// The snippets of Docs/Operators/QuantizingWeights.md.
@Suite("Snippets: quantising weights")
struct QuantizingWeightsSnippets {
    static func pattern(_ shape: [Int], _ seed: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float(($0 * 7919 + seed) % 1009) / 1009 - 0.5 }
    }

    @Test("a layer, from calibration to its output")
    func layer() throws {
        let (weight, bias, tokens) = try (Self.pattern([48, 96], 1), Self.pattern([48], 2), Self.pattern([40, 96], 3))
        let x = tokens

        // weight: [outFeatures, inFeatures]; tokens: [count, inFeatures], what the layer gets to see.
        let quantizer = try LowRankQuantizer()
        let result = try quantizer(weight: weight, bias: bias, calibration: tokens)
        print(result.outputError < 0.2)  // relative, over the tokens
        let layer = try QuantizedLinear(
            PackedWeight(result.weight), activation: .int4, smooth: result.smooth, lowRank: result.lowRank, bias: result.bias)
        let y = try layer(x)

        #expect(result.outputError < 0.2)
        #expect(y.shape == [40, 48])
        #expect(result.trials.count == 39)
    }

    @Test("another configuration")
    func configuration() throws {
        let (weight, tokens) = try (Self.pattern([48, 96], 1), Self.pattern([120, 96], 3))

        var configuration = LowRankQuantizer.Configuration()
        configuration.rank = 16  // 0: no branch
        configuration.smoothing = .fixed(.init(alpha: 0.5, beta: 0))  // .none, .search(grids: 20)
        configuration.iterations = 10
        configuration.residual = .gptq
        let refined = try LowRankQuantizer(configuration)(weight: weight, calibration: tokens)
        print(refined.splitErrors.count)  // iterations that ran

        #expect((1...10).contains(refined.splitErrors.count))
        #expect(refined.lowRank?.rank == 16)
    }

    @Test("layers that share their smoothing")
    func sharedSmoothing() throws {
        let (gate, up, tokens) = try (Self.pattern([48, 64], 1), Self.pattern([32, 64], 2), Self.pattern([40, 64], 3))

        let search = try SmoothingSearch(candidates: SmoothingFamily.balanced.candidates(grids: 10), rank: 16)
        let found = try search(weights: [gate, up], calibration: tokens) { trial in
            print(trial.candidate, trial.error)
        }

        #expect(found.trials.count == 10)
        #expect(found.smooth.shape == [64])
    }
}

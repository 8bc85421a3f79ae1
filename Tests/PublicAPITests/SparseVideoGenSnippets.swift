import SparseVideoGen
import Testing

/// The snippets of Docs/Papers/SparseVideoGen.md, with checks of their comments.
@Suite("Snippets: SparseVideoGen")
struct SparseVideoGenSnippets {
    static func pattern(_ shape: [Int], _ step: Int) throws -> Tensor<Float> {
        try Tensor(shape) { Float($0 * step % 31) / 16 - 1 }
    }

    @Test("profiling and attention")
    func svg() throws {
        let (query, key) = try (Self.pattern([2, 396, 16], 7), Self.pattern([2, 396, 16], 11))
        let value = try Self.pattern([2, 396, 16], 13)

        // 5 frames of 8 × 9 tokens, then 36 text tokens of which 20 are the prompt.
        let geometry = try VideoGeometry(
            frames: 5, height: 8, width: 9, textTokens: 36, textPlacement: .after, promptTokens: 20)
        let shape = try AttentionShape(queryLength: 396, keyLength: 396, queryHeads: 2, kvHeads: 2, headDim: 16)
        let svg = try SVGAttention(shape, geometry: geometry, SVGConfiguration(density: 0.4))
        let result = try svg(query: query, key: key, value: value)
        print(result.patterns, result.errors)  // spatial or temporal by head, and why

        let released = SVGConfiguration(released: .hunyuanVideo, density: 0.4, sampledRows: 64)
        let official = try SVGAttention(shape, geometry: geometry, released)
        print(official.masks[0].multiplier, official.masks[0].width)  // frames and tokens

        // Another sample in every call, and a selection that serves several.
        let rows = svg.sampledRows(call: 7)
        let selection = try svg.select(query: query, key: key, value: value, sampledRows: rows)
        let state = try svg.attention(over: selection)(query: query, key: key, value: value)

        #expect(result.patterns.count == 2 && result.errors.shape == [2, 2])
        #expect(official.masks[0].width % 128 == 0 && rows != svg.sampledRows())
        #expect(state.output.shape == [2, 396, 16])
    }

    @Test("warm-up")
    func warmUp() throws {
        let warmUp = try SVGWarmUp(layers: 40, steps: 50, layerRatio: 0.03, stepRatio: 0.25)
        print(warmUp.isDense(layer: 3, step: 11), warmUp.isDense(layer: 3, step: 12))  // true false
        let timesteps = (0..<50).map { 1000 - 20 * Double($0) }
        let cog = try SVGWarmUp(
            released: .cogVideoX, layers: 42, timesteps: timesteps, layerRatio: 0.025, stepRatio: 0.2)
        print(cog.denseLayers, cog.denseSteps)  // 2 10

        #expect(warmUp.isDense(layer: 3, step: 11) && !warmUp.isDense(layer: 3, step: 12))
        #expect(cog.denseLayers == 2 && cog.denseSteps == 10)
    }

    @Test("clusters over the steps of a video")
    func svg2() throws {
        let (query, key) = try (Self.pattern([2, 396, 16], 7), Self.pattern([2, 396, 16], 11))
        let value = try Self.pattern([2, 396, 16], 13)
        let geometry = try VideoGeometry(
            frames: 5, height: 8, width: 9, textTokens: 36, textPlacement: .after, promptTokens: 20)
        let shape = try AttentionShape(queryLength: 396, keyLength: 396, queryHeads: 2, kvHeads: 2, headDim: 16)

        let configuration = SVG2Configuration(queryClusters: 12, keyClusters: 30, mass: 0.9)
        let svg2 = try SVG2Attention(shape, geometry: geometry, configuration)
        var state = SVG2State()  // of all layers and steps of one video
        var output = try Tensor<Float>(zeros: [2, 396, 16])
        for step in 0..<3 {
            for layer in 0..<2 {
                let selected = try svg2.run(
                    query: query, key: key, value: value, into: &output, state: &state, layer: layer)
                print(step, layer, selected.density, selected.query.iterations)  // up to 50, then up to 2
            }
        }
        state.reset()  // before the next video

        #expect(state.count == 0 && output.elements.allSatisfy { -1...1 ~= $0 })
    }

    @Test("dense steps, guidance and stages")
    func stages() throws {
        let (query, key) = try (Self.pattern([2, 396, 16], 7), Self.pattern([2, 396, 16], 11))
        let value = try Self.pattern([2, 396, 16], 13)
        let geometry = try VideoGeometry(frames: 5, height: 8, width: 9, textTokens: 36)
        let shape = try AttentionShape(queryLength: 396, keyLength: 396, queryHeads: 2, kvHeads: 2, headDim: 16)
        let svg2 = try SVG2Attention(shape, geometry: geometry, SVG2Configuration(queryClusters: 12, keyClusters: 30))

        // A dense step that keeps clusters up to date, in the second pass of guidance.
        var guided = SVG2State(guidance: .separate)
        let dense = try DenseAttention(shape)(query: query, key: key, value: value)
        try svg2.track(query: query, key: key, in: &guided, layer: 0, pass: 1)

        // The stages of a call without a state.
        let selected = try svg2.select(query: query, key: key)
        print(selected.key.sizes[0], selected.density(head: 0))  // keys by cluster; kept pairs of all pairs
        let sparse = try svg2.attention(over: selected)(query: query, key: key, value: value)
        print(try AttentionComparison(sparse, with: dense).recall)  // the attention mass that is kept

        #expect(guided.count == 1 && selected.key.sizes[0].reduce(0, +) == 360)
        #expect(selected.density > 0 && selected.density <= 1)
    }
}

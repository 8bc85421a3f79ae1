import PS3
import SparseKernelsReference
import Testing

/// The snippets of Docs/Papers/PS3.md, with checks of their comments.
@Suite("Snippets: PS3")
struct PS3Snippets {
    /// A checkpoint of a tiny encoder without a detail network.
    static func file() throws -> SafetensorsFile {
        var writer = SafetensorsWriter()
        var seed: UInt64 = 0
        func add(_ name: String, _ shape: [Int]) throws {
            seed += 1
            try writer.add("vision_model." + name, Tensor<Float>.normal(shape, seed: seed, scale: 0.3))
        }
        try add("trunk.patch_embed.proj.weight", [8, 3, 14, 14])
        try add("trunk.pos_embed", [1, 9, 8])
        for (name, shape) in [
            ("norm1", [8]), ("attn.qkv", [24, 8]), ("attn.proj", [8, 8]), ("norm2", [8]), ("mlp.fc1", [16, 8]),
            ("mlp.fc2", [8, 16]),
        ] {
            try add("trunk.blocks.0.\(name).weight", shape)
            try add("trunk.blocks.0.\(name).bias", [shape[0]])
        }
        for (name, shape) in [("fc1", [8, 8]), ("norm", [8]), ("fc2", [16, 8])] {
            try add("selection_feature_proj.\(name).weight", shape)
        }
        try add("prior_prompt", [8])
        return try SafetensorsFile(bytes: writer.encoded())
    }

    @Test("encoding")
    func encode() throws {
        let scales = try PS3Scales([42, 84, 168])
        let configuration = PS3Configuration(
            scales: scales, budget: try PS3Budget(40, scales), heads: 2, selectionLayers: [0])
        let file = try Self.file()
        let pixels = try Tensor<Float>.normal([3, 150, 150], seed: 5)
        let question = try Tensor<Float>.normal([8], seed: 6)

        let encoder = try PS3Encoder(PS3Weights(file), configuration)
        let picture = try encoder.look(at: pixels)  // [3, rows, columns], once per picture
        let encoding = try encoder.encode(picture, prompt: question)  // once per prompt
        let tokens = try encoding.tokens()  // those of low resolution, then those of the selected patches

        #expect(tokens.shape == [9 + 40, 8] && encoding.selection.perScale == [8, 32])
    }

    @Test("sizes and budgets")
    func sizes() throws {
        let configuration = try PS3Configuration.so400m(sides: [378, 756, 1512, 3780], budget: 2560)
        print(configuration.budget.perScale)  // [85, 341, 2134]
        let grids = try configuration.scales.highGrids(of: GridSize(rows: 1080, columns: 1920))
        print(grids[2])  // 150 × 270

        #expect(configuration.budget.perScale == [85, 341, 2134])
        #expect("\(grids[2])" == "150 × 270")
    }

    @Test("maps of one's own")
    func maps() throws {
        let scales = try PS3Scales([378, 756, 1512, 3780])
        let scores = try Tensor<Float>.normal([27, 27], seed: 7)

        // Scores of your own, such as those of a detector, on any grid.
        let map = try PS3ScoreMap(probabilities: scores)
        var selector = try PS3Selector(map, scales, picture: GridSize(rows: 4000, columns: 3000))
        let first = try selector.next(PS3Budget(2560, scales))
        let second = try selector.next(PS3Budget(2560, scales))  // the next best, none twice
        print(first.perScale, second.count)  // [85, 341, 2134] 2560

        #expect(first.perScale == [85, 341, 2134] && second.count == 2560)
    }
}

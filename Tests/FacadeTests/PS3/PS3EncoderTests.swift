import PS3
import SparseKernelsReference
import TestSupport
import Testing

/// A small encoder with random weights. What released code computes is replayed in `GoldenReplayTests`.
@Suite("PS3: the encoder")
struct PS3EncoderTests {
    @Test("threads do not change bits, and passes only read the picture", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let encoder = try PS3Problem().encoder(set)
        #expect(encoder.instructionSet == set)
        let pixels = try PS3Problem.pixels(100, 160)
        func run(_ threads: Int) throws -> (tokens: Tensor<Float>, PS3Selection) {
            let pool = WorkerPool(threads: threads)
            let picture = try encoder.look(at: pixels, on: pool)
            let before = picture.keys.map { $0.keys.bits + $0.values.bits }
            let encoding = try encoder.encode(picture, request: PS3Request(.passes(2)), on: pool)
            #expect(picture.keys.map { $0.keys.bits + $0.values.bits } == before)
            return (try encoding.tokens(), encoding.selection)
        }
        let (first, selection) = try run(1)
        #expect(first.shape == [9 + 60, 12] && selection.count == 60)
        for threads in [2, 7] {
            let (tokens, cells) = try run(threads)
            #expect(tokens.bits == first.bits && cells == selection, "\(set), \(threads) threads")
        }
    }

    @Test("a pass does not depend on other passes, and tokens are in raster order, scale by scale")
    func passes() throws {
        let encoder = try PS3Problem().encoder()
        let picture = try encoder.look(at: PS3Problem.pixels(90, 168))
        let encoding = try encoder.encode(picture, request: PS3Request(.all), keeping: [0])
        let cells = picture.highPatches
        // 378 / 168 · … at these sides: 90 of 168 is 22 of 42 pixels, one patch of three.
        #expect(picture.grids == [GridSize(rows: 2, columns: 6), GridSize(rows: 4, columns: 12)] && cells == 60)
        #expect(encoding.passes.count == 2 && encoding.selection.perScale == [12, 48])
        let tokens = try encoding.tokens()
        #expect(tokens.shape == [9 + 60, 12])
        #expect((0..<9 * 12).allSatisfy { tokens[flat: $0] == picture.tokens[flat: $0] })
        for pass in encoding.passes {
            let alone = try encoder.encode(pass.selection, of: picture, keeping: [0, 1])
            #expect(alone.tokens.bits == pass.tokens.bits)
            #expect(alone.hiddenStates[0]?.bits == pass.hiddenStates[0]?.bits && pass.hiddenStates[1] == nil)
            #expect(alone.hiddenStates[1]?.bits == alone.tokens.bits)
            var row = 0
            for (scale, list) in pass.selection.cells.enumerated() {
                for cell in list {
                    let place = 9 + (scale == 0 ? 0 : 12) + Int(cell)
                    #expect((0..<12).allSatisfy { tokens[place, $0] == pass.tokens[row, $0] })
                    row += 1
                }
            }
        }
    }

    @Test("tokens of selected patches are those of the whole grid", arguments: InstructionSet.available)
    func embedding(_ set: InstructionSet) throws {
        for (rows, columns) in [(168, 168), (300, 120), (20, 168)] {
            let encoder = try PS3Problem().encoder(set)
            let picture = try encoder.look(at: PS3Problem.pixels(rows, columns))
            let all = try PS3Selection(cells: picture.grids.map { grid in (0..<Int32(grid.count)).map { $0 } })
            let whole = try encoder.embed(all, of: picture)
            let some = try PS3Selection(
                cells: picture.grids.map { grid in
                    (0..<Int32(grid.count)).filter { $0 % 3 == 1 }
                })
            let part = try encoder.embed(some, of: picture)
            var (row, first) = (0, 0)
            for (scale, grid) in picture.grids.enumerated() {
                for cell in some.cells[scale] {
                    for channel in 0..<12 {
                        #expect(
                            abs(part[row, channel] - whole[first + Int(cell), channel]) <= 1e-5, "\(set), \(rows) × \(columns)")
                    }
                    row += 1
                }
                first += grid.count
            }
        }
    }

    /// What a user would state: patches are selected where the picture has what the prompt asks for.
    @Test("the prompt of a region selects its patches", arguments: InstructionSet.available)
    func prompts(_ set: InstructionSet) throws {
        var problem = PS3Problem()
        problem.hasDetail = false
        let encoder = try problem.encoder(set)
        // Noise, flat but for the lower right third.
        let noise = try PS3Problem.pixels(168, 168)
        let pixels = try Tensor<Float>([3, 168, 168]) {
            $0 / 168 % 168 >= 112 && $0 % 168 >= 112 ? noise[flat: $0] * 3 : 0.1
        }
        let picture = try encoder.look(at: pixels)
        // The feature of the last of 3 × 3 cells.
        let prompt = try Tensor<Float>([12]) { picture.selectionFeatures[8, $0] }
        let map = try encoder.scoreMap(of: picture, prompt: prompt)
        let best = (0..<9).max { map.probabilities[flat: $0] < map.probabilities[flat: $1] }
        #expect(best == 8 && abs(map.probabilities[flat: 8] - 0.9933071) < 1e-5)
        var selector = try encoder.selector(for: picture, map)
        let selection = try selector.next(PS3Budget(perScale: [4, 16], encoder.configuration.scales))
        #expect(selection.cells[0] == [28, 29, 34, 35])
        #expect(selection.cells[1].allSatisfy { $0 / 12 >= 8 && $0 % 12 >= 8 })
    }

    @Test("numbers of patches and scales are kept to")
    func requests() throws {
        let encoder = try PS3Problem().encoder()
        let picture = try encoder.look(at: PS3Problem.pixels(84, 84))
        #expect(picture.highPatches == 36 + 144)
        func counts(_ request: PS3Request) throws -> [[Int]] {
            try encoder.encode(picture, request: request).passes.map(\.selection.perScale)
        }
        #expect(try counts(PS3Request()) == [[6, 24]])
        #expect(try counts(PS3Request(.patches(7))) == [[1, 6]])
        #expect(try counts(PS3Request(.patches(67))) == [[6, 24], [6, 24], [1, 6]])
        #expect(try counts(PS3Request(.all)).reduce(0) { $0 + $1.reduce(0, +) } == 180)
        #expect(try counts(PS3Request(.passes(1000))).count == 6)
        #expect(try counts(PS3Request(.all, firstScales: 1)) == [[30, 0], [6, 24]])
        #expect(try counts(PS3Request(.passes(2), smooths: true)) == [[6, 24], [6, 24]])
        for passes in [0, -3] {
            expectError(.invalidArgument, "passes", containing: "\(passes)") {
                _ = try encoder.encode(picture, request: PS3Request(.passes(passes)))
            }
        }
        for patches in [0, 181] {
            expectError(.invalidArgument, "patches", containing: "180", "\(patches)") {
                _ = try encoder.encode(picture, request: PS3Request(.patches(patches)))
            }
        }
    }

    @Test("pictures of no pixels, of other channels and with NaN are refused, and what belongs to another encoder")
    func errors() throws {
        let encoder = try PS3Problem().encoder()
        for shape in [[3, 0, 5], [3, 5, 0]] {
            expectError(.invalidShape, "picture") { _ = try encoder.look(at: Tensor(zeros: shape)) }
        }
        for shape in [[1, 8, 8], [3, 64], [1, 3, 8, 8]] {
            expectError(.invalidShape, "pixels", containing: "[3, rows, columns]", "\(shape)") {
                _ = try encoder.look(at: Tensor(zeros: shape))
            }
        }
        var pixels = try PS3Problem.pixels(84, 84)
        let picture = try encoder.look(at: pixels)
        pixels[1, 40, 40] = .nan
        let spoiled = try encoder.look(at: pixels)
        expectError(.invalidArgument, "cosines", containing: "nan") { _ = try encoder.scoreMap(of: spoiled) }
        expectError(.invalidShape, "prompt", containing: "[12]", "[11]") {
            _ = try encoder.scoreMap(of: picture, prompt: Tensor(zeros: [11]))
        }
        expectError(.invalidArgument, "vector", containing: "nan") {
            _ = try encoder.scoreMap(of: picture, prompt: Tensor([12]) { _ in .nan })
        }
        expectError(.invalidShape, "selection", containing: "2 scales", "1") {
            _ = try encoder.encode(PS3Selection(cells: [[0]]), of: picture)
        }
        expectError(.invalidArgument, "selection.cells[1]", containing: "144", "144") {
            _ = try encoder.encode(PS3Selection(cells: [[], [143, 144]]), of: picture)
        }
        var other = PS3Problem()
        other.depth = 3
        let deeper = try other.encoder()
        expectError(.invalidShape, "picture.keys", containing: "3 layers", "2") {
            _ = try deeper.encode(PS3Selection(cells: [[0], [1]]), of: picture)
        }
    }
}

@Suite("PS3: files")
struct PS3WeightsTests {
    @Test("a file names its layers, residuals and detail network by what it has")
    func reading() throws {
        let weights = try PS3Weights(PS3Problem().file())
        #expect(weights.layers.count == 2 && weights.positionResiduals.count == 2 && weights.detail?.blocks.count == 1)
        var problem = PS3Problem()
        (problem.hasDetail, problem.hasResiduals) = (false, false)
        let plain = try PS3Weights(problem.file(prefix: ""), prefix: "")
        #expect(plain.detail == nil && plain.positionResiduals.isEmpty)
        let encoder = try PS3Encoder(plain, problem.configuration)
        #expect(try encoder.look(at: PS3Problem.pixels(84, 84)).detailFeatures == nil)
    }

    @Test("a tensor that is missing is named")
    func missing() throws {
        let problem = PS3Problem()
        // Biases, gammas, residuals and whole layers may be missing; everything else may not.
        let optional = ["pos_emb_residual.0", "pos_emb_residual.1"]
        for (name, _) in try problem.tensors() where !name.hasSuffix(".bias") && !optional.contains(name) {
            let file = try problem.file(omitting: name)
            // These say whether there is a layer, a block or a detail network.
            if name.hasSuffix(".1.norm1.weight") || name.hasSuffix("stem.0.weight") || name.hasSuffix("conv_dw.weight")
                || name == "highres_selection_feature_module.blocks.0.weight"
            {
                _ = try PS3Weights(file)
                continue
            }
            expectError(.notFound, describing: "vision_model.\(name)") { _ = try PS3Weights(file) }
        }
        expectError(.notFound, describing: "trunk.patch_embed.proj.weight") {
            _ = try PS3Weights(problem.file(), prefix: "other.")
        }
    }

    @Test("tensors and settings that do not fit are named")
    func misfits() throws {
        let problem = PS3Problem()
        let (good, configuration) = (try PS3Weights(problem.file()), try problem.configuration)
        func expect(
            _ argument: String, _ code: SparseKernelsError.Code = .invalidShape,
            sourceLocation: SourceLocation = #_sourceLocation, _ change: (inout PS3Weights) throws -> Void
        ) throws {
            var weights = good
            try change(&weights)
            expectError(code, argument, sourceLocation: sourceLocation) { _ = try PS3Encoder(weights, configuration) }
        }
        let wrong = try Tensor<Float>(zeros: [5, 7])
        try expect("patches.weight") { $0.patches.weight = wrong }
        try expect("positions") { $0.positions = wrong }
        try expect("positionResiduals") { $0.positionResiduals.removeLast() }
        try expect("positionResiduals[1]") { $0.positionResiduals[1] = wrong }
        try expect("layers") { $0.layers = [] }
        try expect("layers[1].queryKeyValue.weight") { $0.layers[1].queryKeyValue.weight = wrong }
        try expect("layers[0].mlpNorm.weight") { $0.layers[0].mlpNorm.weight = wrong }
        try expect("patches.bias") { $0.patches.bias = wrong }
        try expect("prompt") { $0.prompt = wrong }
        try expect("selection.first.bias") { $0.selection.first.bias = wrong }
        try expect("selection.norm.weight") { $0.selection.norm.weight = wrong }
        try expect("selection.first.weight") { $0.selection.first.weight = wrong }
        try expect("selection.second.weight") { $0.selection.second.weight = wrong }
        try expect("detail.stem.weight") { $0.detail?.stem.weight = wrong }
        try expect("detail.blocks[0].expansion.weight") { $0.detail?.blocks[0].expansion.weight = wrong }
        try expect("detail.blocks[0].contraction.weight") { $0.detail?.blocks[0].contraction.weight = wrong }
        try expect("detail.blocks[0].convolution.weight") { $0.detail?.blocks[0].convolution.weight = wrong }
        try expect("detail.blocks[0].gamma") { $0.detail?.blocks[0].gamma = wrong }
        try expect("detail.blocks[0].norm.bias") { $0.detail?.blocks[0].norm.bias = wrong }
        try expect("detail.stemNorm.weight") { $0.detail?.stemNorm.weight = wrong }
        try expect("detail.output.weight") { $0.detail?.output.weight = wrong }
        try expect("detail.prompt.weight") { $0.detail?.prompt.weight = wrong }
        try expect("positions", .invalidArgument) { $0.positions[flat: 3] = .nan }
        var settings = configuration
        settings.selectionLayers = [2]
        expectError(.invalidArgument, "selectionLayers", containing: "0 to 1", "2") { _ = try PS3Encoder(good, settings) }
        settings.selectionLayers = []
        expectError(.invalidArgument, "selectionLayers", containing: "none") { _ = try PS3Encoder(good, settings) }
        settings = configuration
        settings.heads = 5
        expectError(.invalidShape, "heads", containing: "12", "5") { _ = try PS3Encoder(good, settings) }
        settings = configuration
        settings.budget = try PS3Budget(3, PS3Scales([42, 84]))
        expectError(.invalidShape, "budget", containing: "2 scales", "1") { _ = try PS3Encoder(good, settings) }
    }

    @Test("the configuration of a checkpoint is read, and what is missing is named")
    func configuration() throws {
        let file = #"{"vision_config": {"model_name": "vit_so400m_patch14_siglip_378", "ps3_scales": [378, 1512, 756],"#
        let released = try PS3Configuration(json: file + #" "max_select_num": 2560, "select_based_on_layer": [0, 9, 18, 26]}}"#)
        #expect(try released == .so400m())
        let plain = try PS3Configuration(json: #"{"ps3_scales": [28, 56], "max_select_num_each_scale": [7]}"#, heads: 3)
        #expect(plain.heads == 3 && plain.budget.perScale == [7] && plain.selectionLayers == [0, 9, 18, 26])
        #expect(try PS3Configuration(json: file + "\"x\": null}}").budget.total == 1280)
        for text in ["", "[]", "3", #"{"ps3_scales": "a"}"#, file] {
            expectError(.malformedFile, "json") { _ = try PS3Configuration(json: text) }
        }
        expectError(.notFound, "json", containing: "ps3_scales") { _ = try PS3Configuration(json: "{}") }
        expectError(.notFound, "heads", containing: "vit_huge") {
            _ = try PS3Configuration(json: #"{"ps3_scales": [14, 28], "model_name": "vit_huge"}"#)
        }
        expectError(.invalidArgument, "radio") { _ = try PS3Configuration(json: file + #" "radio": true}}"#) }
        expectError(.invalidArgument, "scales") { _ = try PS3Configuration(json: #"{"ps3_scales": [5]}"#, heads: 1) }
        expectError(.invalidArgument, "budget", containing: "4") {
            _ = try PS3Configuration(json: #"{"ps3_scales": [14, 28], "max_select_num": 5}"#, heads: 1)
        }
    }
}

internal import PS3
internal import SparseKernels

/// `ps3.encode`: a whole encoder: resized pictures, position tables, low resolution, score maps, passes.
///
/// Tokens and hidden states are those of the recorded patches, because the order of equal probabilities is not defined; the patches that the
/// encoder itself selects are compared as those of `ps3.select`.
///
/// Tolerance, as recorded with the cases: tokens and hidden states 2·10⁻⁵ against float64, probabilities 2·10⁻⁶. Resized pictures and
/// position tables 10⁻⁵, as all resizes.
func replayPS3Encode(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var depth: Int
        var heads: Int
        var epsilon: Float
        var perScale: [Int]
        var passes: Int
        var patch: Int
        var scales: [Int]
        var selectionLayers: [Int]

        enum CodingKeys: String, CodingKey {
            case epsilon = "layernorm_eps"
            case perScale = "max_select_num_each_scale"
            case selectionLayers = "select_based_on_layer"
            case depth, heads, passes, patch, scales
        }
    }
    let (file, parameters) = (golden.file, try golden.parameters(Parameters.self))
    let scales = try PS3Scales(parameters.scales, patch: parameters.patch)
    let weights = try PS3Weights(file, prefix: "in.param.")
    let encoder = try PS3Encoder(
        weights,
        PS3Configuration(
            scales: scales, budget: PS3Budget(perScale: parameters.perScale, scales), heads: parameters.heads,
            selectionLayers: parameters.selectionLayers, epsilon: parameters.epsilon),
        instructionSet: instructionSet, on: pool)
    let pixels = try file.floatTensor("in.image")
    let prompt = file["in.prompt"] == nil ? nil : try file.floatTensor("in.prompt")
    let layers = Set(0..<parameters.depth)
    var comparison = GoldenComparison()

    let picture = try encoder.look(at: pixels, keeping: layers, on: pool)
    try comparison.compareResizes(of: picture, weights, scales, in: file, instructionSet, pool)
    try comparison.compareLayers(picture.hiddenStates, "aux.f64_low_hidden", in: file)
    var cache: [Float] = []
    for keys in picture.keys { cache += keys.keys.elements + keys.values.elements }
    try comparison.compare(Tensor([cache.count], cache), "out.low_kv_cache", in: file, bound: 2e-5)
    try comparison.compare(picture.selectionFeatures, "aux.f64_selection_feature", in: file, bound: 2e-5)
    if let features = picture.detailFeatures {
        let (cells, channels) = (features.shape[0], features.shape[1])
        let planes = try Tensor<Float>([channels, cells]) { features[flat: $0 % cells * channels + $0 / cells] }
        try comparison.compare(planes, "aux.f64_highres_feature", in: file, bound: 2e-5)
    }

    let encoding = try encoder.encode(picture, prompt: prompt, request: PS3Request(.passes(parameters.passes)), on: pool)
    for (scale, grid) in picture.grids.enumerated() {
        let map = try encoding.map.resized(to: grid, instructionSet: instructionSet, on: pool)
        try comparison.compare(map, "out.prob_scale\(scale + 1)", in: file, bound: 2e-6)
    }
    comparison.compare(
        "passes", actual: Double(encoding.passes.count), expected: Double(parameters.passes), bound: 0)
    var recorded: [PS3Pass] = []
    for (pass, own) in encoding.passes.enumerated() {
        try comparison.compare(own.selection, pass: pass, "", in: file, bound: 4e-6)
        var cells: [[Int32]] = []
        for scale in 1...scales.highScales {
            let map = try file.tensor("out.pass\(pass).map_scale\(scale)", as: UInt8.self)
            cells.append((0..<Int32(map.count)).filter { map[flat: Int($0)] != 0 })
        }
        let selection = try PS3Selection(cells: cells)
        let tokens = try encoder.embed(selection, of: picture, on: pool)
        try comparison.compare(tokens, "aux.f64_pass\(pass).tokens", in: file, bound: 2e-5)
        let result = try encoder.encode(selection, of: picture, keeping: layers, on: pool)
        try comparison.compareLayers(result.hiddenStates, "aux.f64_pass\(pass).hidden", in: file)
        recorded.append(result)
    }
    let all = try PS3Encoding(picture: picture, map: encoding.map, passes: recorded)
    try comparison.compare(all.tokens(), "out.all_hidden_last", in: file, bound: 2e-5)
    return comparison.result(golden)
}

extension GoldenComparison {
    /// Compares the outputs of all layers with a recorded `[layer, token, width]`.
    fileprivate mutating func compareLayers(
        _ states: [Int: Tensor<Float>], _ name: String, in file: SafetensorsFile
    ) throws(SparseKernelsError) {
        var elements: [Float] = []
        for layer in states.keys.sorted() { elements += states[layer]?.elements ?? [] }
        try compare(Tensor([elements.count], elements), name, in: file, bound: 2e-5)
    }

    /// Compares resized pictures and position tables.
    fileprivate mutating func compareResizes(
        of picture: PS3Picture, _ weights: PS3Weights, _ scales: PS3Scales, in file: SafetensorsFile,
        _ instructionSet: InstructionSet, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let width = weights.prompt.count
        for scale in 0...scales.highScales {
            let target = try scales.pixels(scale, of: picture.size)
            let pixels = try ImageResize(picture.size, to: target, filter: .bicubic, instructionSet: instructionSet)(
                picture.pixels, on: pool)
            if scale == 0 {
                try compare(pixels, "out.resized_scale0", in: file, bound: 1e-5)
                continue
            }
            let name = "out.resized_scale\(scale)_corner"
            let corner = try file.floatTensor(name)
            let side = corner.shape[1]
            let actual = try Tensor<Float>(corner.shape) {
                pixels[$0 / (side * side), $0 / side % side, $0 % side]
            }
            try compare(actual, name, in: file, bound: 1e-5)
            let (low, square, grid) = (scales.squareGrid(0), scales.squareGrid(scale), picture.grids[scale - 1])
            let positions = try ImageResize(
                low, to: square, filter: .bicubic, antialias: true, instructionSet: instructionSet
            )(Tensor([low.rows, low.columns, width], weights.positions.elements), layout: .interleaved, on: pool)
            let table = try Tensor<Float>([grid.count, width]) {
                positions[$0 / width / grid.columns, $0 / width % grid.columns, $0 % width]
            }
            try compare(table, "out.pos_table_scale\(scale)", in: file, bound: 1e-5)
        }
    }
}

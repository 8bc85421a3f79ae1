internal import PS3
internal import SparseKernels

/// `ps3.select`: score maps with and without detail features, and the patches of several passes.
///
/// Tolerance, as recorded with the cases: probabilities 10⁻⁶, also against float64; numbers of patches exact. See
/// `compare(_:pass:_:in:bound:)` for the patches.
func replayPS3Select(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        struct Variant: Decodable {
            var imageH: Int
            var imageW: Int
            var firstScales: Int?
            var firstPass: Int?
            var passes: [[Int]]
            var smooth: Bool

            enum CodingKeys: String, CodingKey {
                case imageH = "image_h"
                case imageW = "image_w"
                case firstScales = "only_first_n_scale"
                case firstPass = "num_select_token_first_pass"
                case passes = "selected_per_pass_and_scale"
                case smooth
            }
        }
        var perScale: [Int]
        var detailWidth: Int
        var patch: Int
        var scales: [Int]
        var width: Int
        var variants: [String: Variant]

        enum CodingKeys: String, CodingKey {
            case perScale = "max_select_num_each_scale"
            case detailWidth = "highres_dim"
            case patch, scales, width, variants
        }
    }
    let (file, parameters) = (golden.file, try golden.parameters(Parameters.self))
    let scales = try PS3Scales(parameters.scales, patch: parameters.patch)
    let whole = try PS3Budget(perScale: parameters.perScale, scales)
    let projection = try FloatLinear(
        weight: file.floatTensor("in.prompt_proj_weight"), bias: file.floatTensor("in.prompt_proj_bias"),
        instructionSet: instructionSet)
    var comparison = GoldenComparison()
    /// The first scale's map of cosines, from planar features.
    func cosines(_ feature: Tensor<Float>, channels: Int, _ vector: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (rows, columns) = (feature.shape[feature.shape.count - 2], feature.shape[feature.shape.count - 1])
        let x = try Tensor<Float>([rows * columns, channels]) {
            feature[flat: $0 % channels * rows * columns + $0 / channels]
        }
        let scores = try CosineScores(channels: channels, instructionSet: instructionSet)(x, vector, on: pool)
        return try Tensor([rows, columns], scores.elements)
    }
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let picture = GridSize(rows: variant.imageH, columns: variant.imageW)
        let prompt = try file.floatTensor("in.\(name).prompt")
        let low = try cosines(file.floatTensor("in.\(name).feature"), channels: parameters.width, prompt)
        let projected = try projection(Tensor([1, parameters.width], prompt.elements), on: pool)
        let high = try cosines(
            file.floatTensor("in.\(name).highres_feature"), channels: parameters.detailWidth,
            Tensor([parameters.detailWidth]) { projected[flat: $0] })
        let map = try PS3ScoreMap(cosines: low, detail: high, instructionSet: instructionSet, on: pool)
        let plain = try PS3ScoreMap(cosines: low, instructionSet: instructionSet, on: pool)
        let exact = try file.tensor("aux.\(name).f64_prob_first_scale", as: Double.self)
        for index in 0..<exact.count {
            comparison.compare(
                "aux.\(name).f64_prob_first_scale[\(index)]", actual: Double(map.probabilities[flat: index]),
                expected: exact[flat: index], bound: 1e-6)
        }
        var selector = try PS3Selector(
            map, scales, picture: picture, smooths: variant.smooth, instructionSet: instructionSet, on: pool)
        for scale in 1...scales.highScales {
            try comparison.compare(selector.maps[scale - 1], "out.\(name).prob_scale\(scale)", in: file, bound: 1e-6)
            let grid = try scales.grid(scale, of: picture)
            let resized = try plain.resized(to: grid, smooths: variant.smooth, instructionSet: instructionSet, on: pool)
            try comparison.compare(resized, "out.\(name).prob_without_highres_scale\(scale)", in: file, bound: 1e-6)
        }
        for (pass, counts) in variant.passes.enumerated() {
            var budget = whole
            if pass == 0, let tokens = variant.firstPass { budget = try budget.reduced(to: tokens) }
            if let firstScales = variant.firstScales { budget = try budget.limited(toFirst: firstScales) }
            let selection = try selector.next(budget)
            for (scale, count) in counts.enumerated() {
                comparison.compare(
                    "selected_per_pass_and_scale[\(pass)][\(scale)] of \(name)",
                    actual: Double(selection.perScale[scale]), expected: Double(count), bound: 0)
            }
            try comparison.compare(selection, pass: pass, "\(name).", in: file, bound: 2e-6)
        }
    }
    return comparison.result(golden)
}

internal import SparseKernels
internal import SparseVideoGen

/// `svg.spatial_temporal_attention`: masks, sampled errors, placement and attention of Sparse VideoGen, under the released rules
/// of the model of the case.
///
/// Tolerances, as recorded: masks, placement and the multiplier exact; errors within 1e-5 of those in float64 and 3e-2 of the
/// 16-bit ones, relative; outputs within 1e-5 of float64, and 2e-2 (bfloat16) or 2e-3 (half) of the 16-bit ones. A kind may
/// differ only where the errors that decide agree within their tolerance.
func replaySparseVideoGen(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let type = try golden.file.entry(named: "in.q").elementType
    switch type {
    case .bfloat16:
        var replay = try SVGReplay<BFloat16>(golden, instructionSet, pool, outputTolerance: 2e-2)
        return try replay.run()
    case .float32:
        var replay = try SVGReplay<Float>(golden, instructionSet, pool, outputTolerance: 1e-5)
        return try replay.run()
    #if !(os(macOS) && arch(x86_64))
        case .float16:
            var replay = try SVGReplay<Float16>(golden, instructionSet, pool, outputTolerance: 2e-3)
            return try replay.run()
    #endif
    default:
        throw SparseKernelsError(
            .invalidElementType, "in.q of \(golden.name)", expected: "F32, F16 or BF16", actual: type.rawValue)
    }
}

private struct SVGParameters: Decodable {
    var cfg: Int
    var contextLength: Int
    var density: Double
    var frames: Int
    var heads: Int
    var headDim: Int
    var model: String
    var multiplier: Double
    var promptLength: Int
    var sampledRows: Int
    var sampleLimit: Int?
    var tokensPerFrame: Int
    var videoStart: Int

    enum CodingKeys: String, CodingKey {
        case cfg, frames, heads, model, multiplier
        case contextLength = "context_length"
        case density = "sparsity_arg_is_density"
        case headDim = "head_dim"
        case promptLength = "prompt_length"
        case sampledRows = "num_sampled_rows"
        case sampleLimit = "sample_mse_max_row"
        case tokensPerFrame = "tokens_per_frame"
        case videoStart = "video_start"
    }

    /// The rules of the model. Cosmos has those of Wan.
    func released(_ golden: GoldenCase) throws(SparseKernelsError) -> SVGModel {
        switch model {
        case "cog": return .cogVideoX
        case "hunyuan": return .hunyuanVideo
        case "wan", "cosmos": return .wan
        default:
            throw SparseKernelsError(
                .malformedFile, "model of \(golden.name)", expected: "cog, hunyuan, wan or cosmos", actual: model)
        }
    }
}

private struct SVGReplay<Element: AttentionElement> {
    let golden: GoldenCase
    let pool: WorkerPool
    let outputTolerance: Double
    let parameters: SVGParameters
    let geometry: VideoGeometry
    let svg: SVGAttention
    let query: Tensor<Element>
    let key: Tensor<Element>
    let value: Tensor<Element>
    var comparison = GoldenComparison()

    /// Guidance passes are heads: `[cfg · heads, tokens, headDim]`.
    private var heads: Int { parameters.cfg * parameters.heads }
    private var tokens: Int { geometry.tokens }

    init(
        _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool, outputTolerance: Double
    ) throws(SparseKernelsError) {
        self.golden = golden
        self.pool = pool
        self.outputTolerance = outputTolerance
        parameters = try golden.parameters(SVGParameters.self)
        let parameters = parameters
        geometry = try VideoGeometry(
            frames: parameters.frames, tokensPerFrame: parameters.tokensPerFrame, textTokens: parameters.contextLength,
            textPlacement: parameters.videoStart > 0 ? .before : .after, promptTokens: parameters.promptLength)
        let (count, tokens) = (parameters.cfg * parameters.heads, geometry.tokens)
        func operand(_ name: String) throws(SparseKernelsError) -> Tensor<Element> {
            let tensor = try golden.file.tensor(name, as: Element.self)
            try golden.check(name, tensor.shape, [parameters.cfg, parameters.heads, tokens, parameters.headDim])
            return try Tensor([count, tokens, parameters.headDim], tensor.elements)
        }
        query = try operand("in.q")
        key = try operand("in.k")
        value = try operand("in.v")
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: count, kvHeads: count, headDim: parameters.headDim)
        svg = try SVGAttention(
            shape, geometry: geometry,
            SVGConfiguration(
                released: parameters.released(golden), density: parameters.density, sampledRows: parameters.sampledRows,
                sampleLimit: parameters.sampleLimit), instructionSet: instructionSet)
    }

    mutating func run() throws(SparseKernelsError) -> GoldenResult {
        comparison.compare(
            "multiplier", actual: svg.masks[0].multiplier, expected: parameters.multiplier, bound: 1e-12 * parameters.multiplier
        )
        let pairs = try compareAttentionMask()
        try compareProfileMasks()
        let rows = try golden.file.tensor("in.sampled_rows", as: Int64.self)
        let selection = try svg.select(
            query: query, key: key, value: value, sampledRows: rows.elements.map { Int($0) }, on: pool)
        try compareErrors(selection)

        let forced = try kinds("in.forced_mask_idx")
        let plan = try svg.attention(patterns: forced)
        comparison.compare(
            "pairs of the plan", actual: Double(plan.attention.visiblePairs), expected: Double(pairs * heads), bound: 0)
        try comparePlacement(plan)
        try compareOutput("out.forced.attention_output", kinds: forced, tolerance: outputTolerance)
        try compareOutput("out.best.attention_output", kinds: kinds("out.best_mask_idx"), tolerance: outputTolerance)
        try compareOutput("aux.f64_best_attention_output", kinds: kinds("aux.f64_best_mask_idx"), tolerance: 1e-5)
        return comparison.result(golden)
    }

    // MARK: - Masks

    /// A recorded mask: bit j % 8 of byte j / 8 is column j.
    private func bits(_ name: String, rows: Int) throws(SparseKernelsError) -> [[Bool]] {
        let packed = try golden.file.tensor(name, as: UInt8.self)
        let width = (tokens + 7) / 8
        try golden.check(name, packed.shape, [rows, width])
        let bytes = packed.elements
        return (0..<rows).map { row in
            (0..<tokens).map { bytes[row * width + $0 / 8] >> UInt8($0 % 8) & 1 == 1 }
        }
    }

    private mutating func compare(_ name: String, row: Int, _ actual: [Bool], _ expected: [Bool]) {
        if actual == expected { return comparison.compare(name, actual: 0, expected: 0, bound: 0) }
        for column in 0..<tokens {
            comparison.compare(
                "\(name)[\(row), \(column)]", actual: actual[column] ? 1 : 0, expected: expected[column] ? 1 : 0, bound: 0)
        }
    }

    /// The mask is the same for both kinds. Returns the number of its pairs.
    private mutating func compareAttentionMask() throws(SparseKernelsError) -> Int {
        let name = "out.attention_mask_bits"
        let expected = try bits(name, rows: tokens)
        for mask in svg.masks {
            for row in 0..<tokens {
                compare("\(name), \(mask.kind)", row: row, (0..<tokens).map { mask.keeps(query: row, key: $0) }, expected[row])
            }
        }
        return expected.reduce(0) { $0 + $1.reduce(0) { $0 + ($1 ? 1 : 0) } }
    }

    /// The masks have the rows that may be sampled.
    private mutating func compareProfileMasks() throws(SparseKernelsError) {
        for mask in svg.profileMasks {
            let name = "out.profile_mask_\(mask.kind)_bits"
            let rows = try golden.file.entry(named: name).shape.first ?? 0
            try golden.check("rows of \(name)", [min(rows, tokens)], [rows])
            let expected = try bits(name, rows: rows)
            for row in 0..<rows {
                var actual = [Bool](repeating: false, count: tokens)
                for run in mask.runs(of: row) { for column in run { actual[column] = true } }
                compare(name, row: row, actual, expected[row])
            }
        }
    }

    // MARK: - Profiling

    private func kinds(_ name: String) throws(SparseKernelsError) -> [SVGHeadKind] {
        let indices = try golden.file.tensor(name, as: Int64.self)
        try golden.check(name, indices.shape, [parameters.cfg, parameters.heads])
        var kinds: [SVGHeadKind] = []
        for index in indices.elements {
            guard let kind = SVGHeadKind(rawValue: Int(index)) else {
                throw SparseKernelsError(
                    .malformedFile, "\(name) of \(golden.name)", expected: "0 or 1", actual: "\(index)")
            }
            kinds.append(kind)
        }
        return kinds
    }

    private mutating func compareErrors(_ selection: SVGSelection) throws(SparseKernelsError) {
        let exact = try golden.file.tensor("aux.f64_sampled_mse", as: Double.self)
        let official = try golden.file.floatTensor("out.sampled_mse")
        for (name, shape) in [("aux.f64_sampled_mse", exact.shape), ("out.sampled_mse", official.shape)] {
            try golden.check(name, shape, [2, parameters.cfg, parameters.heads])
        }
        let actual = selection.errors.elements.map { Double($0) }
        for (name, tolerance, expected) in [
            ("aux.f64_sampled_mse", 1e-5, exact.elements), ("out.sampled_mse", 3e-2, official.elements.map { Double($0) }),
        ] {
            for index in actual.indices {
                comparison.compare(
                    "\(name)[\(index)]", actual: actual[index], expected: expected[index],
                    bound: tolerance * abs(expected[index]))
            }
        }
        for (name, tolerance) in [("aux.f64_best_mask_idx", 1e-5), ("out.best_mask_idx", 3e-2)] {
            let expected = try kinds(name)
            for head in 0..<heads where selection.patterns[head] != expected[head] {
                let (spatial, temporal) = (actual[head], actual[heads + head])
                // No rounding explains another kind where an error is NaN.
                comparison.compare(
                    "\(name)[\(head)], relative difference of its errors", actual: abs(spatial - temporal), expected: 0,
                    bound: spatial.isNaN || temporal.isNaN ? 0 : tolerance * max(spatial, temporal))
            }
        }
    }

    // MARK: - Attention

    private mutating func comparePlacement(_ plan: PermutedAttention) throws(SparseKernelsError) {
        let name = "out.forced.q_placed"
        let expected = try golden.file.floatTensor(name)
        try golden.check(name, expected.shape, [parameters.cfg, parameters.heads, tokens, parameters.headDim])
        let placed = try plan.query?.gathered(query.view(named: "in.q"), on: pool) ?? query.converted(to: Float.self)
        let (actual, wanted) = (placed.elements, expected.elements)
        for index in actual.indices where actual[index] != wanted[index] {
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[index]), expected: Double(wanted[index]), bound: 0)
        }
    }

    private mutating func compareOutput(
        _ name: String, kinds: [SVGHeadKind], tolerance: Double
    ) throws(SparseKernelsError) {
        let expected = try golden.file.floatTensor(name)
        try golden.check(name, expected.shape, [parameters.cfg, parameters.heads, tokens, parameters.headDim])
        let output = try svg.attention(patterns: kinds)(query: query, key: key, value: value, on: pool).output
        let (actual, wanted) = (output.elements, expected.elements)
        for index in actual.indices {
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[index]), expected: Double(wanted[index]), bound: tolerance)
        }
    }
}

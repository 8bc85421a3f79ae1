internal import SLA
internal import SparseKernels

/// `sla.sparse_linear_attention`: block means, block map, exact branch, linear branch and output of both released branches.
///
/// Tolerances, as recorded with the cases: block means one unit in the last place of the element type; 10⁻⁵ against the float64
/// results, which have no 16-bit rounding; against the released results the largest deviation of these from float64, and 10⁻⁵.
/// The outputs are sums of three terms, so 2⁻²² of the largest expected value is added for single precision.
///
/// The released map ranks 16-bit scores, ours those scores in single precision. With u the unit roundoff of the type, two scores of
/// magnitude up to M may be ranked either way when they are within 2·u·M, and a block on whose place the maps differ must be that
/// close to a block on the other side. Attention then starts from the released map.
func replaySLA(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let type = try golden.file.entry(named: "in.q").elementType
    switch type {
    case .bfloat16: return try SLAReplay<BFloat16>(golden, instructionSet, pool, unitRoundoff: 0x1p-8).run()
    #if !(os(macOS) && arch(x86_64))
        case .float16: return try SLAReplay<Float16>(golden, instructionSet, pool, unitRoundoff: 0x1p-11).run()
    #endif
    case .float32: return try SLAReplay<Float>(golden, instructionSet, pool, unitRoundoff: 0x1p-24).run()
    default:
        throw SparseKernelsError(
            .invalidElementType, "in.q of \(golden.name)", expected: "F16, BF16 or F32", actual: type.rawValue)
    }
}

private struct SLAParameters: Decodable {
    struct Deviations: Decodable {
        var output: Double
        var linear: Double
        var sparse: Double

        enum CodingKeys: String, CodingKey {
            case output = "o"
            case linear = "o_linear"
            case sparse = "o_sparse"
        }
    }
    struct Variant: Decodable {
        var branch: String
        var keyBlocks: Int
        var criticalBlocks: Int
        var deviations: Deviations

        enum CodingKeys: String, CodingKey {
            case branch
            case keyBlocks = "key_blocks"
            case criticalBlocks = "real_topk"
            case deviations = "max_abs"
        }
    }
    var queryBlockSize: Int
    var keyBlockSize: Int
    var featureMap: LinearFeatureMap
    var topK: Double
    var variants: [String: Variant]

    enum CodingKeys: String, CodingKey {
        case queryBlockSize = "blk_q"
        case keyBlockSize = "blk_k"
        case featureMap = "feature_map"
        case topK = "topk"
        case variants
    }
}

private struct SLAReplay<Element: AttentionElement> {
    let golden: GoldenCase
    let instructionSet: InstructionSet
    let pool: WorkerPool
    let unitRoundoff: Double
    let parameters: SLAParameters
    let query: Tensor<Element>
    let key: Tensor<Element>
    let value: Tensor<Element>
    let projection: SparseLinearProjection
    var comparison = GoldenComparison()

    init(
        _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool, unitRoundoff: Double
    ) throws(SparseKernelsError) {
        self.golden = golden
        self.instructionSet = instructionSet
        self.pool = pool
        self.unitRoundoff = unitRoundoff
        parameters = try golden.parameters(SLAParameters.self)
        query = try golden.file.tensor("in.q", as: Element.self)
        key = try golden.file.tensor("in.k", as: Element.self)
        value = try golden.file.tensor("in.v", as: Element.self)
        projection = try SparseLinearProjection(
            weight: golden.file.floatTensor("in.proj_weight"), bias: golden.file.floatTensor("in.proj_bias"))
    }

    consuming func run() throws(SparseKernelsError) -> GoldenResult {
        let shape = try AttentionShape(query: query, key: key, value: value)
        for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
            let rule: SparseLinearRule
            switch variant.branch {
            case "SLA-1": rule = .releasedSLA1(topK: parameters.topK)
            case "main": rule = .releasedMain(topK: parameters.topK)
            default:
                throw SparseKernelsError(
                    .malformedFile, "params of \(golden.name), variants.\(name).branch", expected: "SLA-1 or main",
                    actual: variant.branch)
            }
            let sla = try SparseLinearAttention(
                shape,
                SparseLinearConfiguration(
                    rule: rule, featureMap: parameters.featureMap, queryBlockSize: parameters.queryBlockSize,
                    keyBlockSize: parameters.keyBlockSize),
                projection: projection, instructionSet: instructionSet)
            comparison.compare(
                "variants.\(name).key_blocks", actual: Double(sla.grid.blockColumns), expected: Double(variant.keyBlocks),
                bound: 0)
            comparison.compare(
                "variants.\(name).real_topk", actual: Double(rule.criticalBlocks(of: variant.keyBlocks)),
                expected: Double(variant.criticalBlocks), bound: 0)
            let blocks = try compareSelection(sla)
            try compareAttention(name, variant.deviations, sla.attention(over: blocks))
        }
        return comparison.result(golden)
    }

    /// Compares means and map, and returns the recorded map.
    private mutating func compareSelection(_ sla: SparseLinearAttention) throws(SparseKernelsError) -> SparseLinearBlocks {
        let grid = sla.grid
        let queries = try golden.file.floatTensor("out.pooled_q")
        let keys = try golden.file.floatTensor("out.pooled_k_minus_mean")
        try compareMeans("out.pooled_q", sla.pooledQuery(query.view(named: "in.q"), on: pool), queries)
        try compareMeans("out.pooled_k_minus_mean", sla.pooledKey(key.view(named: "in.k"), on: pool), keys)
        let shape = [sla.shape.queryHeads, grid.blockRows, grid.blockColumns]
        let official = try checked(golden.file.tensor("out.sparse_map", as: UInt8.self), "out.sparse_map", shape)
        let map = try BlockMask(grid: grid, booleans: official)
        let own = try sla.select(query: query, key: key, on: pool).critical
        let channels = sla.shape.headDim
        for head in 0..<map.heads {
            let kvHead = head / sla.shape.queryHeadsPerKVHead
            for row in 0..<grid.blockRows {
                let scores = (0..<grid.blockColumns).map { column in
                    (0..<channels).reduce(0) { sum, channel in
                        sum + Double(queries[flat: (head * grid.blockRows + row) * channels + channel])
                            * Double(keys[flat: (kvHead * grid.blockColumns + column) * channels + channel])
                    }
                }
                let largest = scores.reduce(0) { max($0, abs($1)) }
                for column in 0..<grid.blockColumns where own[head, row, column] != map[head, row, column] {
                    let others = (0..<grid.blockColumns).filter { map[head, row, $0] != map[head, row, column] }
                    let distance = others.map { abs(scores[$0] - scores[column]) }.min() ?? .infinity
                    comparison.compare(
                        "out.sparse_map[\(head), \(row), \(column)], distance from the boundary", actual: distance,
                        expected: 0, bound: 2 * unitRoundoff * largest)
                }
            }
        }
        return try SparseLinearBlocks(critical: map)
    }

    private mutating func compareMeans(
        _ name: String, _ actual: Tensor<Float>, _ expected: Tensor<Float>
    ) throws(SparseKernelsError) {
        let expected = try checked(expected, name, actual.shape)
        for index in 0..<expected.count {
            let value = Double(expected[flat: index])
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[flat: index]), expected: value,
                bound: 2 * unitRoundoff * max(abs(value), 0x1p-14))
        }
    }

    private mutating func compareAttention(
        _ name: String, _ deviations: SLAParameters.Deviations, _ attention: SparseLinearOperator
    ) throws(SparseKernelsError) {
        let sparse = try attention.sparse(query: query, key: key, value: value, on: pool).output
        let linear = try attention.linear(query: query, key: key, value: value, on: pool)
        let output = try attention(query: query, key: key, value: value, on: pool).output
        for (part, actual, deviation) in [
            ("o_sparse", sparse, deviations.sparse), ("o_linear", linear, deviations.linear), ("o", output, deviations.output),
        ] {
            let exact = try checked(
                golden.file.floatTensor("aux.\(name).f64_\(part)"), "aux.\(name).f64_\(part)", actual.shape)
            let official = try checked(golden.file.floatTensor("out.\(name).\(part)"), "out.\(name).\(part)", actual.shape)
            var largest = 0.0
            for index in 0..<exact.count { largest = max(largest, Double(abs(exact[flat: index]))) }
            let bound = 1e-5 + 0x1p-22 * largest
            for index in 0..<exact.count {
                comparison.compare(
                    "aux.\(name).f64_\(part)[\(index)]", actual: Double(actual[flat: index]),
                    expected: Double(exact[flat: index]), bound: bound)
                comparison.compare(
                    "out.\(name).\(part)[\(index)]", actual: Double(actual[flat: index]),
                    expected: Double(official[flat: index]), bound: deviation + bound)
            }
        }
    }

    /// Throws unless a tensor of the file has the shape that the case's other tensors imply.
    private func checked<T>(_ tensor: Tensor<T>, _ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<T> {
        guard tensor.shape == shape else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(shape)", actual: "\(tensor.shape)")
        }
        return tensor
    }
}

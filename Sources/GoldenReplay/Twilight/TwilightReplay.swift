internal import SparseKernels
internal import SparseKernelsReference

/// `twilight.select_prune`: the selector, the estimators of keys, estimated weights, top-p for several p, the union over groups
/// of heads, and attention over the remaining tokens.
///
/// It is replayed twice: by the oracles, and by `PageSelector`, `TokenPruner` and `PagedAttention` on a cache, as far as these
/// follow the released code (see `compareTwilightOperators`). Tolerances as recorded: masks and estimated keys equal, outputs
/// 1e-5. A top-p mask may differ where a sum of the bisection is within 1e-6 of p; no recorded row has one. No tolerance is
/// recorded for weights; 1e-5 relative is used, because the released weights and scores are in single precision.
func replayTwilight(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(TwilightParameters.self)
    let step = try GoldenDecodeStep(golden)
    var comparison = GoldenComparison()
    let estimates = try compareTwilightEstimates(golden, parameters, step, &comparison)
    try compareTwilightOracle(golden, parameters, step, estimates, &comparison)
    let cache = try GoldenDecodeCache(
        step, tokens: step.tokens, pageSize: parameters.pageSize,
        metadata: PageMetadata(logicalPageSize: parameters.pageSize), keepsKeyEstimates: true, instructionSet: instructionSet,
        pool: pool)
    try compareTwilightOperators(golden, parameters, cache, &comparison)
    return comparison.result(golden)
}

/// The prefix of the names of the recorded outputs for a mass.
func twilightVariant(_ mass: Double) -> String {
    let percent = Int((100 * mass).rounded())
    return "out.p\(percent < 100 ? "0" : "")\(percent)"
}

private struct TwilightParameters: Decodable {
    var selector: String
    var pageSize: Int
    /// The budget; −1 means none.
    var tokenBudget: Int
    /// The fraction of all tokens that replaces a budget; −1 means none.
    var sparsityRate: Double
    var bits: Int
    var masses: [Double]
    var epsilon: Double

    func budget(tokens: Int) -> Int { sparsityRate < 0 ? tokenBudget : Int(sparsityRate * Double(tokens)) }

    enum CodingKeys: String, CodingKey {
        case selector
        case pageSize = "chunk"
        case tokenBudget = "B0"
        case sparsityRate = "sparsity_rate"
        case bits = "quant_bits"
        case masses = "p"
        case epsilon = "eps"
    }
}

/// Compares the estimators with the recorded first 200 tokens, and returns the estimated keys by KV head and position.
private func compareTwilightEstimates(
    _ golden: GoldenCase, _ parameters: TwilightParameters, _ step: GoldenDecodeStep, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) -> [[[Double]]] {
    let bits = parameters.bits
    var estimators: [(name: String, rows: [[[Float]]])] = []
    let keys = step.keys.map { $0.map { $0.map { Float($0) } } }
    let minMax = keys.map { $0.map { ReferenceKeyEstimate.minMax($0, bits: bits) } }
    estimators.append(("out.k_int4_dequant_first_200_tokens", minMax))
    if golden.file["out.k_max_quant_4bit"] != nil {
        estimators.append(("out.k_max_quant_4bit", keys.map { $0.map { ReferenceKeyEstimate.absMax($0, bits: bits) } }))
        let smooth = keys.map { rows in
            let minima = rows.dropFirst().reduce(rows[0]) { zip($0, $1).map { min($0, $1) } }
            return rows.map { ReferenceKeyEstimate.absMax($0, bits: bits, subtracting: minima) }
        }
        estimators.append(("out.k_max_quant_4bit_smooth", smooth))
    }
    let count = min(200, step.tokens)
    for (name, rows) in estimators {
        let recorded = try golden.rows(name, [step.kvHeads, count, step.headDim])
        for row in 0..<step.kvHeads * count {
            comparison.compare(
                "oracle: \(name)[\(row)]", rows[row / count][row % count].map { Double($0) }, recorded[row])
        }
    }
    return minMax.map { $0.map { $0.map { Double($0) } } }
}

private func compareTwilightOracle(
    _ golden: GoldenCase, _ parameters: TwilightParameters, _ step: GoldenDecodeStep, _ estimates: [[[Double]]],
    _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let pageSize = parameters.pageSize
    let selectorMask = try golden.rows("out.selector_mask", [step.heads, step.tokens])
    let weights = try golden.rows("out.estimated_weights", [step.heads, step.tokens])
    let bounds = step.keys.map { ReferencePageSelection(keys: $0, pageSize: pageSize) }
    var selected: [[Int]] = []
    for head in 0..<step.heads {
        var positions = Array(0..<step.tokens)
        if parameters.selector == "quest" {
            let chosen = ReferencePageSelection.twilightQuest(
                bounds[step.kvHead(of: head)].scores(query: step.queries[head]), pageSize: pageSize,
                tokenBudget: parameters.budget(tokens: step.tokens))
            positions = ReferencePagedAttention.positions(
                ofPages: chosen.indices, pageSize: pageSize, length: step.tokens)
        }
        selected.append(positions)
        comparison.compare("oracle: out.selector_mask[\(head)]", members: positions, selectorMask[head])
    }
    for mass in parameters.masses {
        let name = twilightVariant(mass)
        let topPMask = try golden.rows("\(name).top_p_mask", [step.heads, step.tokens])
        let finalMask = try golden.rows("\(name).final_mask", [step.heads, step.tokens])
        let unionMask = try golden.rows("\(name).group_union_mask", [step.kvHeads, step.tokens])
        let output = try golden.rows("\(name).attention_output", [step.heads, step.headDim])
        var kept: [[Int]] = []
        for head in 0..<step.heads {
            let pruned = ReferenceTwilight(
                query: step.queries[head], estimates: estimates[step.kvHead(of: head)], selected: selected[head], mass: mass,
                epsilon: parameters.epsilon)
            comparison.compare("oracle: out.estimated_weights[\(head)]", pruned.weights, weights[head], relative: 1e-5)
            let members = pruned.kept.filter(Set(selected[head]).contains)
            kept.append(members)
            if pruned.massMargin <= 1e-6 { continue }
            comparison.compare("oracle: \(name).top_p_mask[\(head)]", members: pruned.kept, topPMask[head])
            comparison.compare("oracle: \(name).final_mask[\(head)]", members: members, finalMask[head])
            comparison.compare(
                "oracle: \(name).attention_output[\(head)]", step.output(head: head, positions: members), output[head],
                absolute: 1e-5)
        }
        for head in 0..<step.kvHeads {
            let group = step.heads / step.kvHeads
            let union = ReferenceTwilight.groupUnion(Array(kept[head * group..<(head + 1) * group]))
            comparison.compare("oracle: \(name).group_union_mask[\(head)]", members: union, unionMask[head])
        }
    }
}

/// Compares the public operators with the released code where they agree, and otherwise with the oracle.
///
/// The selector's masks must be equal, and so must the attention over the recorded final masks. The estimates are LServe's
/// INT4, with half-precision scales and zero points as in the paper's system. The recorded ones have `Float` scales and minima,
/// so other tokens near the threshold are kept, and ours are compared with the oracle on the same INT4 keys. The kernels'
/// scores are off by about 10⁻⁴ (queries are 16-bit codes), and so are weights, relatively, and their sums. Lists whose
/// bisection meets a sum within 10⁻³ of p are therefore left out, and tokens within 10⁻³ of the threshold may be either.
private func compareTwilightOperators(
    _ golden: GoldenCase, _ parameters: TwilightParameters, _ cache: GoldenDecodeCache, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let (step, configuration, pageSize) = (cache.step, cache.cache.configuration, parameters.pageSize)
    let selectorMask = try golden.rows("out.selector_mask", [step.heads, step.tokens])
    var candidates: KVSelection?
    if parameters.selector == "quest" {
        // The released selector rounds a budget up to pages.
        let pages = try BlockPartition(length: parameters.budget(tokens: step.tokens), blockSize: pageSize).count
        let selector = try PageSelector(
            queryHeads: step.heads, configuration: configuration, tokenBudget: pages * pageSize, sharing: .queryHead,
            forcedLast: 0, minimumPages: 1)
        candidates = try selector.select(
            query: step.query.view(named: "in.q"), cache: cache.cache, sequences: [cache.sequence], on: cache.pool)
    }
    var selected: [[Int]] = []
    for head in 0..<step.heads {
        let positions = candidates.map {
            ReferencePagedAttention.positions(ofPages: $0.members(head: head), pageSize: pageSize, length: step.tokens)
        }
        selected.append(positions ?? Array(0..<step.tokens))
        comparison.compare("out.selector_mask[\(head)]", members: selected[head], selectorMask[head])
    }
    let estimates = step.keys.map { $0.map { ReferenceKVQuantization($0, bits: 4).values } }
    for mass in parameters.masses {
        let name = twilightVariant(mass)
        let finalMask = try golden.rows("\(name).final_mask", [step.heads, step.tokens])
        let expected = try golden.rows("\(name).attention_output", [step.heads, step.headDim])
        var offsets = [0]
        var indices: [Int32] = []
        for mask in finalMask {
            indices += mask.indices.filter { mask[$0] != 0 }.map { Int32($0) }
            offsets.append(indices.count)
        }
        let recorded = try KVSelection(unit: 1, sequences: 1, heads: step.heads, offsets: offsets, indices: indices)
        let output = try cache.output(selection: recorded)
        let pruner = try TokenPruner(
            queryHeads: step.heads, configuration: configuration, topP: mass, sharing: .queryHead, upperBound: .firstWeight,
            epsilon: Float(parameters.epsilon))
        let pruning = try pruner.prune(
            query: step.query.view(named: "in.q"), cache: cache.cache, sequences: [cache.sequence], within: candidates,
            on: cache.pool)
        for head in 0..<step.heads {
            comparison.compare("\(name).attention_output[\(head)]", output[head], expected[head], absolute: 1e-5)
            let oracle = ReferenceTwilight(
                query: step.queries[head], estimates: estimates[step.kvHead(of: head)], selected: selected[head], mass: mass,
                epsilon: parameters.epsilon)
            if oracle.massMargin <= 1e-3 { continue }
            let kept = Set(pruning.selection.members(head: head))
            for token in kept.symmetricDifference(oracle.kept) {
                comparison.compare(
                    "\(name): weight of token \(token) of head \(head), which only one side keeps",
                    actual: oracle.weights[token], expected: oracle.threshold, bound: 1e-3 * oracle.threshold + 1e-30)
            }
        }
    }
}

internal import FastDLLM
internal import Foundation
internal import SparseKernels

/// `fastdllm.transfer_index`: chosen tokens, their confidences, and the positions that thresholds, factors and the first step
/// of a schedule commit.
///
/// Positions and tokens are compared exactly, with the confidences as they are after one pass in single precision, of which
/// only those near a decision were computed again; confidences in double precision within 10⁻¹². `aux.*.paper_rule_transfer` is
/// the formula of the paper, `out.factor*` the released code.
func replayFastDLLM(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(FastDLLMParameters.self)
    let logits = try golden.file.floatTensor("in.logits")
    try golden.check("in.logits", logits.shape, [parameters.batch, parameters.length, parameters.vocabulary])
    let shape = [parameters.batch, parameters.length]
    let isMasked = try golden.mask("in.mask_index", shape)
    var comparison = GoldenComparison()
    for sample in 0..<parameters.batch {
        let positions = (0..<parameters.length).filter { isMasked[sample, $0] != 0 }
        var rows: [Float] = []
        for position in positions {
            let start = (sample * parameters.length + position) * parameters.vocabulary
            rows += (start..<start + parameters.vocabulary).map { logits[flat: $0] }
        }
        let predictions = try MaskedPredictions(
            Tensor([positions.count, parameters.vocabulary], rows), excluding: parameters.mask, instructionSet: instructionSet,
            on: pool)
        try comparePredictions(golden, parameters, sample, positions, predictions, &comparison)
        for variant in try parameters.variants(masked: positions.count) {
            let selection = variant.rule.select(predictions, count: variant.count)
            let chosen = Set(selection.indices.map { positions[$0] })
            let recorded = try golden.mask(variant.name, shape)
            for position in 0..<parameters.length {
                comparison.compare(
                    "\(variant.name)[\(sample), \(position)]", actual: chosen.contains(position) ? 1 : 0,
                    expected: recorded[sample, position] == 0 ? 0 : 1, bound: 0)
            }
        }
    }
    return comparison.result(golden)
}

private func comparePredictions(
    _ golden: GoldenCase, _ parameters: FastDLLMParameters, _ sample: Int, _ positions: [Int],
    _ predictions: MaskedPredictions, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let tokens = try golden.file.tensor("out.x0", as: Int64.self)
    let confidences = try golden.file.tensor("out.confidence", as: Double.self)
    let counts = try golden.file.tensor("out.num_transfer_tokens", as: Int64.self)
    try golden.check("out.x0", tokens.shape, [parameters.batch, parameters.length])
    try golden.check("out.confidence", confidences.shape, tokens.shape)
    try golden.check("out.num_transfer_tokens", counts.shape, [parameters.batch, parameters.steps])
    var exact = predictions
    let exactConfidences = exact.exactConfidences()
    for (row, position) in positions.enumerated() {
        comparison.compare(
            "out.x0[\(sample), \(position)]", actual: Double(predictions.tokens[row]),
            expected: Double(tokens[sample, position]),
            bound: 0)
        let expected = confidences[sample, position]
        comparison.compare(
            "out.confidence[\(sample), \(position)]", actual: exactConfidences[row], expected: expected, bound: 1e-12)
        comparison.compare(
            "out.confidence[\(sample), \(position)], single precision", actual: predictions.confidences[row],
            expected: expected, bound: predictions.confidenceErrors[row])
    }
    for (step, count) in try CommitRule.schedule(masked: positions.count, steps: parameters.steps).enumerated() {
        comparison.compare(
            "out.num_transfer_tokens[\(sample), \(step)]", actual: Double(count), expected: Double(counts[sample, step]),
            bound: 0)
    }
}

extension GoldenCase {
    /// A recorded mask, by sample and position.
    fileprivate func mask(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<UInt8> {
        let mask = try file.tensor(name, as: UInt8.self)
        try check(name, mask.shape, shape)
        return mask
    }
}

private struct FastDLLMParameters: Decodable {
    var batch: Int
    var length: Int
    var vocabulary: Int
    var mask: Int
    var thresholds: [Double]
    var factors: [Double]
    var steps: Int

    enum CodingKeys: String, CodingKey {
        case batch = "B"
        case length = "L"
        case vocabulary = "V"
        case mask = "mask_id"
        case thresholds
        case factors
        case steps = "schedule_steps"
    }

    /// Rules by the names of their recorded masks.
    func variants(masked: Int) throws(SparseKernelsError) -> [(name: String, rule: CommitRule, count: Int?)] {
        func digits(_ number: Double, _ factor: Double, _ width: Int) -> String {
            let text = "\(Int((number * factor).rounded()))"
            return String(repeating: "0", count: max(0, width - text.count)) + text
        }
        var variants: [(name: String, rule: CommitRule, count: Int?)] = []
        for threshold in thresholds {
            variants.append(("out.thr\(digits(threshold, 1000, 4)).transfer", .threshold(threshold), nil))
        }
        for factor in factors {
            let name = "factor\(digits(factor, 100, 3))"
            variants.append(("out.\(name).transfer", .factor(factor, form: .released), nil))
            variants.append(("aux.\(name).paper_rule_transfer", .factor(factor), nil))
        }
        let first = try CommitRule.schedule(masked: masked, steps: steps).first
        variants.append(("out.schedule_step0.transfer", .schedule(steps: steps), first))
        return variants
    }
}

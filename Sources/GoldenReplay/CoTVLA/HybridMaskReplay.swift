internal import CoTVLA
internal import SparseKernels

/// `cotvla.hybrid_mask_attention`: causal attention with full attention inside spans of actions.
///
/// Tolerance, as recorded with the cases: limits exact, output 1e-5, LSE 5e-6. LSE values go up to 50, where a unit in the last
/// place is 4e-6, so another one is added: 2⁻²³ relative.
func replayHybridMask(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var spans: [[Int]]

        enum CodingKeys: String, CodingKey { case spans = "action_spans" }
    }
    let parameters = try golden.parameters(Parameters.self)
    let query = try golden.file.floatTensor("in.q")
    let key = try golden.file.floatTensor("in.k")
    let value = try golden.file.floatTensor("in.v")
    let ends = try golden.file.tensor("out.row_limit", as: Int32.self)
    let output = try golden.file.floatTensor("out.o")
    let logSumExp = try golden.file.floatTensor("out.lse")
    let shape = try AttentionShape(
        query: query.view(named: "in.q"), key: key.view(named: "in.k"), value: value.view(named: "in.v"))
    for (name, actual, expected) in [
        ("out.row_limit", ends.shape, [shape.queryLength]),
        ("out.o", output.shape, [shape.queryHeads, shape.queryLength, shape.valueDim]),
        ("out.lse", logSumExp.shape, [shape.queryHeads, shape.queryLength]),
    ] where actual != expected {
        throw SparseKernelsError(
            .invalidShape, "\(name) of \(golden.name)", expected: "\(expected)", actual: "\(actual)")
    }
    var spans: [Range<Int>] = []
    for span in parameters.spans {
        guard span.count == 2, span[0] >= 0, span[0] <= span[1] else {
            throw SparseKernelsError(
                .malformedFile, "params of \(golden.name)", expected: "spans of a first token and an end", actual: "\(span)")
        }
        spans.append(span[0]..<span[1])
    }

    let limits = try CoTVLASequence(length: shape.keyLength, actionSpans: spans).limits(shape)
    let state = try DenseAttention(shape, limits: limits, instructionSet: instructionSet)(
        query: query, key: key, value: value, on: pool)
    var comparison = GoldenComparison()
    for index in 0..<ends.count {
        let keys = limits.ranges[index]
        comparison.compare(
            "out.row_limit[\(index)]", actual: Double(keys.lowerBound == 0 ? keys.upperBound : -1),
            expected: Double(ends[flat: index]), bound: 0)
    }
    for index in 0..<output.count {
        comparison.compare(
            "out.o[\(index)]", actual: Double(state.output[flat: index]), expected: Double(output[flat: index]), bound: 1e-5)
    }
    for index in 0..<logSumExp.count {
        comparison.compare(
            "out.lse[\(index)]", actual: Double(state.logSumExp[flat: index]), expected: Double(logSumExp[flat: index]),
            bound: 5e-6 + 0x1p-23 * abs(Double(logSumExp[flat: index])))
    }
    return comparison.result(golden)
}

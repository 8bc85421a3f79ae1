internal import SparseKernels

/// `moe.grouped_gemm`: ids, sorted slots, counts and offsets, which must be equal; weights; and the outputs of the layer.
///
/// Tolerance, as recorded with the cases: 10⁻⁵ for outputs, against float64. Weights within 10⁻⁶ of the recorded ones, which are
/// rounded to single precision.
func replayExperts(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var experts: Int
        var perToken: Int
        var renormalizes: Bool
        var router: String

        enum CodingKeys: String, CodingKey {
            case experts
            case perToken = "top_k"
            case renormalizes = "renormalise"
            case router
        }
    }
    let file = golden.file
    let parameters = try golden.parameters(Parameters.self)
    let hasBias = (try? file.entry(named: "in.router_bias")) != nil
    let router = try ExpertRouter(
        experts: parameters.experts, expertsPerToken: parameters.perToken,
        scores: parameters.router == "softmax" ? .softmax : .sigmoid,
        correctionBias: hasBias ? try file.floatTensor("in.router_bias") : nil, renormalizes: parameters.renormalizes,
        instructionSet: instructionSet)
    let logits = try file.floatTensor("in.router_logits")
    let routing = try router(logits, on: pool)

    // Widened exactly.
    let (gate, up, down) = try (
        file.floatTensor("in.w_gate"), file.floatTensor("in.w_up"), file.floatTensor("in.w_down")
    )
    var experts: [GatedExpert] = []
    for expert in 0..<parameters.experts {
        func matrix(_ stack: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
            guard stack.shape.count == 3, stack.shape[0] == parameters.experts else {
                throw SparseKernelsError(
                    .invalidShape, "weights of \(golden.name)", expected: "\(parameters.experts) matrices",
                    actual: "\(stack.shape)")
            }
            let size = stack.shape[1] * stack.shape[2]
            return try Tensor(Array(stack.shape.dropFirst())) { stack[flat: expert * size + $0] }
        }
        experts.append(
            try GatedExpert(
                gate: matrix(gate), up: matrix(up), down: matrix(down), instructionSet: instructionSet, on: pool))
    }
    let y = try ExpertLayer(experts)(file.floatTensor("in.x"), routing: routing, on: pool)

    var comparison = GoldenComparison()
    for (name, actual) in [
        ("out.expert_ids", routing.ids), ("out.counts", routing.counts), ("out.offsets", routing.offsets),
        ("out.sorted_slots", routing.sortedSlots),
    ] {
        let expected = try file.tensor(name, as: Int32.self)
        comparison.compare("count of \(name)", actual: Double(actual.count), expected: Double(expected.count), bound: 0)
        for index in 0..<min(actual.count, expected.count) {
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[index]), expected: Double(expected[flat: index]), bound: 0)
        }
    }
    let weights = try file.tensor("out.weights", as: Float.self)
    for (index, weight) in routing.weights.enumerated() {
        comparison.compare(
            "out.weights[\(index)]", actual: Double(weight), expected: Double(weights[flat: index]), bound: 1e-6)
    }
    let expected = try file.tensor("aux.f64_y", as: Double.self)
    for index in 0..<y.count {
        comparison.compare(
            "aux.f64_y[\(index)]", actual: Double(y[flat: index]), expected: expected[flat: index], bound: 1e-5)
    }
    return comparison.result(golden)
}

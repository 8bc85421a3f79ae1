internal import SparseKernels

/// `gated_deltanet.recurrence`: outputs and final states, in chunks of the recorded size and of the default one, and token by token.
///
/// Tolerance, as recorded with the cases: 10⁻⁵ against float64, and against the released results, which are within 3·10⁻⁷ of it.
func replayGatedDeltaRule(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var keyHeads: Int
        var valueHeads: Int
        var keyDim: Int
        var valueDim: Int
        var tokens: Int
        var chunk: Int
        var normalizes: Bool?

        enum CodingKeys: String, CodingKey {
            case keyHeads = "key_heads"
            case valueHeads = "value_heads"
            case keyDim = "key_dim"
            case valueDim = "value_dim"
            case tokens = "L"
            case chunk
            case normalizes = "qk_l2norm"
        }
    }
    let (file, parameters) = (golden.file, try golden.parameters(Parameters.self))
    let shape = try RecurrenceShape(
        keyHeads: parameters.keyHeads, valueHeads: parameters.valueHeads, keyDim: parameters.keyDim,
        valueDim: parameters.valueDim)
    let query = try file.floatTensor("in.q")
    let key = try file.floatTensor("in.k")
    let value = try file.floatTensor("in.v")
    func tokensFirst(_ name: String) throws(SparseKernelsError) -> Tensor<Float> {
        let recorded = try file.floatTensor(name)
        guard recorded.shape == [shape.valueHeads, parameters.tokens] else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\([shape.valueHeads, parameters.tokens])",
                actual: "\(recorded.shape)")
        }
        return try Tensor([parameters.tokens, shape.valueHeads]) {
            recorded[flat: $0 % shape.valueHeads * parameters.tokens + $0 / shape.valueHeads]
        }
    }
    func doubles(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> [Double] {
        let entry = try file.entry(named: name)
        guard entry.shape == shape else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(shape)", actual: "\(entry.shape)")
        }
        return entry.elementType == .float64
            ? try file.tensor(name, as: Double.self).elements : try file.floatTensor(name).elements.map(Double.init)
    }
    let logDecay = try tokensFirst("in.log_decay")
    let beta = try tokensFirst("in.beta")
    let hasState = file.tensors.contains { $0.name == "in.initial_state" }
    let batch = try PackedSequences(lengths: [parameters.tokens])
    var comparison = GoldenComparison()
    for form in [GatedDeltaRule.defaultForm, .chunked(parameters.chunk), .stepwise] {
        let rule = try GatedDeltaRule(
            shape, decay: .perToken, normalizesQueriesAndKeys: parameters.normalizes ?? false, form: form,
            instructionSet: instructionSet)
        let states = try RecurrentStates(slots: 1, shape: shape)
        if hasState {
            let state = try file.floatTensor("in.initial_state")
            try states.setState(state, of: 0)
        }
        var output = try Tensor<Float>(zeros: [shape.valueHeads, parameters.tokens, shape.valueDim])
        try rule.run(
            query: query, key: key, value: value, logDecay: logDecay, beta: beta, into: &output, batch: batch, states: states,
            on: pool)
        let final = try states.state(of: 0)
        for (name, actual) in [
            ("aux.f64_o", output), ("aux.f64_final_state", final), ("out.chunk.o", output),
            ("out.chunk.final_state", final), ("out.recurrent.o", output), ("out.recurrent.final_state", final),
        ] {
            let expected = try doubles(name, actual.shape)
            for index in 0..<actual.count {
                comparison.compare(
                    "\(name)[\(index)], \(form)", actual: Double(actual[flat: index]), expected: expected[index], bound: 1e-5)
            }
        }
    }
    return comparison.result(golden)
}

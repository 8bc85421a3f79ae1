internal import Foundation
internal import SparseKernels

// The forms that every recorded recurrence is run in: chunks of the recorded length and of the usual one, and single steps.
private func forms(_ chunk: Int) -> [RecurrenceForm] { [.chunked(chunk), .automatic, .stepwise] }

/// `lightning.recurrence`: outputs and final state, with decays per head.
///
/// Tolerance: 10⁻⁵ of the largest output and 10⁻⁵ relative, as recorded with the cases.
func replayLightning(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(RecurrenceParameters.self)
    let inputs = try RecurrenceInputs(golden)
    let recorded = try golden.file.tensor("in.log_decay", as: Double.self)
    var comparison = GoldenComparison()
    let decays = try LinearRecurrence.lightningDecays(
        heads: inputs.shape.valueHeads, layer: parameters.layer ?? 0, layers: parameters.layers ?? 1)
    for (head, decay) in decays.enumerated() {
        comparison.compare(
            "in.log_decay[\(head)]", actual: Double(decay), expected: recorded[flat: head],
            bound: 0x1p-24 * abs(recorded[flat: head]))
    }
    for form in forms(parameters.chunk) {
        let recurrence = try LinearRecurrence(
            inputs.shape, decay: .perHead(decays), form: form, instructionSet: instructionSet)
        let states = try inputs.states()
        var output = try Tensor<Float>(zeros: inputs.value.shape)
        try recurrence.run(
            query: inputs.query, key: inputs.key, value: inputs.value, into: &output, batch: inputs.batch, states: states,
            on: pool)
        try compareRecurrence(golden, form, output, states, largest: true, &comparison)
    }
    return comparison.result(golden)
}

/// `gla.recurrence`: outputs and final state, with decays per channel.
///
/// Tolerance: 10⁻⁵ and 10⁻⁵ relative, as recorded with the cases.
func replayGatedLinearAttention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(RecurrenceParameters.self)
    let inputs = try RecurrenceInputs(golden)
    let decays = try golden.file.floatTensor("in.log_alpha")
    var comparison = GoldenComparison()
    for form in forms(parameters.chunk) {
        let recurrence = try LinearRecurrence(
            inputs.shape, decay: .perChannel, scale: 1 / Float(inputs.shape.keyDim).squareRoot(), form: form,
            instructionSet: instructionSet)
        let states = try inputs.states()
        var output = try Tensor<Float>(zeros: inputs.value.shape)
        try recurrence.run(
            query: inputs.query, key: inputs.key, value: inputs.value, logDecay: decays, into: &output, batch: inputs.batch,
            states: states, on: pool)
        try compareRecurrence(golden, form, output, states, largest: false, &comparison)
    }
    return comparison.result(golden)
}

private struct RecurrenceParameters: Decodable {
    var chunk: Int
    var layer: Int?
    var layers: Int?
}

private struct RecurrenceInputs {
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    let initialState: Tensor<Float>?
    let shape: RecurrenceShape
    let batch: PackedSequences

    init(_ golden: GoldenCase) throws(SparseKernelsError) {
        query = try golden.file.floatTensor("in.q")
        key = try golden.file.floatTensor("in.k")
        value = try golden.file.floatTensor("in.v")
        for (name, tensor) in [("in.q", query), ("in.v", value)] {
            try require(
                tensor.shape.count == 3, .invalidShape, "\(name) of \(golden.name)", expected: "rank 3",
                actual: "\(tensor.shape)")
        }
        let isInitial = golden.file.tensors.contains { $0.name == "in.initial_state" }
        initialState = isInitial ? try golden.file.floatTensor("in.initial_state") : nil
        shape = try RecurrenceShape(
            keyHeads: query.shape[0], valueHeads: value.shape[0], keyDim: query.shape[2], valueDim: value.shape[2])
        batch = try PackedSequences(lengths: [query.shape[1]])
    }

    func states() throws(SparseKernelsError) -> RecurrentStates {
        let states = try RecurrentStates(slots: 1, shape: shape)
        if let initialState { try states.setState(initialState, of: 0) }
        return states
    }
}

private func compareRecurrence(
    _ golden: GoldenCase, _ form: RecurrenceForm, _ output: Tensor<Float>, _ states: RecurrentStates, largest: Bool,
    _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let exact = try golden.file.tensor("aux.f64_o", as: Double.self)
    let recorded = try golden.file.floatTensor("out.o")
    let final = try golden.file.floatTensor("out.final_state")
    try golden.check("aux.f64_o", exact.shape, output.shape)
    try golden.check("out.o", recorded.shape, output.shape)
    let state = try states.state(of: 0)
    try golden.check("out.final_state", final.shape, state.shape)
    func scale(_ values: [Double]) -> Double { largest ? values.reduce(0) { max($0, abs($1)) } : 1 }
    let outputScale = scale(exact.elements)
    for index in 0..<output.count {
        let bound = 1e-5 * (outputScale + abs(exact[flat: index]))
        comparison.compare(
            "aux.f64_o[\(index)], \(form)", actual: Double(output[flat: index]), expected: exact[flat: index], bound: bound)
        comparison.compare(
            "out.o[\(index)], \(form)", actual: Double(output[flat: index]), expected: Double(recorded[flat: index]),
            bound: bound)
    }
    let stateScale = scale(final.elements.map { Double($0) })
    for index in 0..<state.count {
        let expected = Double(final[flat: index])
        comparison.compare(
            "out.final_state[\(index)], \(form)", actual: Double(state[flat: index]), expected: expected,
            bound: 1e-5 * (stateScale + abs(expected)))
    }
}

internal import Foundation
internal import SparseKernels

/// `mamba2.ssd`: outputs and final state of state-space duality, by `StateSpaceDuality` and by `LinearRecurrence`.
///
/// The recorded Δ is that after softplus. Its inverse gives Δ back to 10⁻⁶ relative, as Δ is not far below 10⁻³. `LinearRecurrence` gets
/// Δ·A as logarithms and Δ·x as values. Recorded states are `[headDim, stateSize]`, the transpose of ours. Tolerance: 2·10⁻⁵ and
/// 2·10⁻⁵ relative, as recorded with the cases, against the recurrence in `Double`; the released chunked outputs in single precision
/// have that distance from it as well.
func replaySSD(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let parameters = try golden.parameters(SSDParameters.self)
    let sequences = try SSDInputs(golden, parameters)
    var comparison = GoldenComparison()
    for form in [RecurrenceForm.chunked(parameters.chunk), .automatic, .stepwise] {
        let ssd = try StateSpaceDuality(
            heads: parameters.heads, headDim: parameters.headDim, stateSize: parameters.stateSize, groups: parameters.groups,
            aLog: Tensor([parameters.heads], sequences.rates.map { Float(log(Double(-$0))) }), form: form,
            instructionSet: instructionSet)
        var states = try sequences.states(ssd.shape)
        var y = try Tensor<Float>(zeros: sequences.x.shape)
        try ssd.run(
            x: sequences.x, b: sequences.b, c: sequences.c, dt: sequences.rawSteps, into: &y, layout: .nhd,
            batch: sequences.batch, states: states, on: pool)
        try compareSSD(golden, parameters, "SSD, \(form)", y, states, &comparison)

        let linear = try LinearRecurrence(ssd.shape, decay: .perToken, form: form, instructionSet: instructionSet)
        states = try sequences.states(ssd.shape)
        try linear.run(
            query: sequences.c, key: sequences.b, value: sequences.scaledValues, logDecay: sequences.logDecays, into: &y,
            layout: .nhd, batch: sequences.batch, states: states, on: pool)
        try compareSSD(golden, parameters, "linear, \(form)", y, states, &comparison)
    }
    return comparison.result(golden)
}

private struct SSDParameters: Decodable {
    var batch: Int
    var length: Int
    var chunk: Int
    var groups: Int
    var headDim: Int
    var heads: Int
    var stateSize: Int

    enum CodingKeys: String, CodingKey {
        case batch = "B"
        case length = "L"
        case chunk
        case groups
        case headDim = "head_dim"
        case heads
        case stateSize = "state"
    }
}

/// The recorded batch with its sequences one after the other.
private struct SSDInputs {
    let x: Tensor<Float>
    let b: Tensor<Float>
    let c: Tensor<Float>
    let rates: [Float]
    let rawSteps: Tensor<Float>
    let scaledValues: Tensor<Float>
    let logDecays: Tensor<Float>
    let batch: PackedSequences
    private let initialState: Tensor<Float>?

    init(_ golden: GoldenCase, _ parameters: SSDParameters) throws(SparseKernelsError) {
        func packed(_ name: String, _ rows: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
            let tensor = try golden.file.floatTensor(name)
            try golden.check(name, tensor.shape, [parameters.batch, parameters.length] + rows)
            return try Tensor([parameters.batch * parameters.length] + rows, tensor.elements)
        }
        let (heads, headDim) = (parameters.heads, parameters.headDim)
        let x = try packed("in.x", [heads, headDim])
        b = try packed("in.B", [parameters.groups, parameters.stateSize])
        c = try packed("in.C", [parameters.groups, parameters.stateSize])
        let steps = try packed("in.dt", [heads])
        let rates = try golden.file.floatTensor("in.A").elements
        try golden.check("in.A", [rates.count], [heads])
        // softplus⁻¹(Δ) = log(e^Δ − 1)
        rawSteps = try Tensor(steps.shape) { Float(log(expm1(Double(steps[flat: $0])))) }
        scaledValues = try Tensor(x.shape) { steps[flat: $0 / headDim] * x[flat: $0] }
        logDecays = try Tensor(steps.shape) { steps[flat: $0] * rates[$0 % heads] }
        batch = try PackedSequences(lengths: Array(repeating: parameters.length, count: parameters.batch))
        let isInitial = golden.file.tensors.contains { $0.name == "in.initial_state" }
        initialState = isInitial ? try golden.file.floatTensor("in.initial_state") : nil
        (self.x, self.rates) = (x, rates)
    }

    func states(_ shape: RecurrenceShape) throws(SparseKernelsError) -> RecurrentStates {
        let states = try RecurrentStates(slots: batch.lengths.count, shape: shape)
        guard let initialState else { return states }
        let count = shape.valueHeads * shape.keyDim * shape.valueDim
        for slot in 0..<batch.lengths.count {
            try states.setState(
                Tensor([shape.valueHeads, shape.keyDim, shape.valueDim]) { index in
                    let (row, column) = (index / shape.valueDim, index % shape.valueDim)
                    let (head, channel) = (row / shape.keyDim, row % shape.keyDim)
                    return initialState[flat: slot * count + (head * shape.valueDim + column) * shape.keyDim + channel]
                }, of: slot)
        }
        return states
    }
}

private func compareSSD(
    _ golden: GoldenCase, _ parameters: SSDParameters, _ label: String, _ y: Tensor<Float>, _ states: RecurrentStates,
    _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    for (name, factor) in [("recurrent_f64", 1.0), ("chunked", 2.0)] {
        let expected = try golden.file.floatTensor("out.y_\(name)")
        let final = try golden.file.floatTensor("out.final_state_\(name)")
        try golden.check("out.y_\(name)", [expected.count], [y.count])
        try golden.check("out.final_state_\(name)", [final.count], [states.slots * states.heads * states.rows * states.columns])
        for index in 0..<y.count {
            let value = Double(expected[flat: index])
            comparison.compare(
                "out.y_\(name)[\(index)], \(label)", actual: Double(y[flat: index]), expected: value,
                bound: factor * 2e-5 * (1 + abs(value)))
        }
        var index = 0
        for slot in 0..<states.slots {
            let state = try states.state(of: slot)
            for head in 0..<states.heads {
                for column in 0..<states.columns {
                    for row in 0..<states.rows {
                        let value = Double(final[flat: index])
                        comparison.compare(
                            "out.final_state_\(name)[\(index)], \(label)", actual: Double(state[head, row, column]),
                            expected: value, bound: factor * 2e-5 * (1 + abs(value)))
                        index += 1
                    }
                }
            }
        }
    }
}

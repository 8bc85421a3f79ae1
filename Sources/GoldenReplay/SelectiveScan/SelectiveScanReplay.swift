internal import SparseKernels

/// `mamba1.selective_scan`: outputs and last states of the released reference, in one call, and in parts of 1, 2, 3, … tokens.
///
/// Tolerance, as recorded with the cases: 10⁻⁵ and 10⁻⁵ of the value.
func replaySelectiveScan(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var batch: Int
        var channels: Int
        var tokens: Int
        var stateSize: Int
        var appliesSoftplus: Bool
        var groups: Int?
        var isVariable: Bool

        enum CodingKeys: String, CodingKey {
            case batch = "B"
            case channels = "D"
            case tokens = "L"
            case stateSize = "N"
            case appliesSoftplus = "delta_softplus"
            case groups
            case isVariable = "variable_BC"
        }
    }
    let file = golden.file
    let parameters = try golden.parameters(Parameters.self)
    let (tokens, groups) = (parameters.tokens, parameters.groups ?? 1)

    /// A tensor of channels × tokens for every sequence as rows of tokens, or nil when the case does not have it.
    func rows(_ name: String, columns: Int) throws(SparseKernelsError) -> Tensor<Float>? {
        guard (try? file.entry(named: name)) != nil else { return nil }
        let tensor = try file.floatTensor(name)
        guard tensor.count == parameters.batch * columns * tokens else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(parameters.batch * columns * tokens) elements",
                actual: "\(tensor.shape)")
        }
        return try Tensor([parameters.batch * tokens, columns]) { index in
            let (row, column) = index.quotientAndRemainder(dividingBy: columns)
            let (sequence, token) = row.quotientAndRemainder(dividingBy: tokens)
            return tensor[flat: (sequence * columns + column) * tokens + token]
        }
    }
    func parameter(_ name: String) throws(SparseKernelsError) -> Tensor<Float>? {
        (try? file.entry(named: name)) == nil ? nil : try file.floatTensor(name)
    }

    let a = try file.floatTensor("in.A")
    let (skip, bias) = (try parameter("in.D"), try parameter("in.delta_bias"))
    let scan =
        parameters.isVariable
        ? try SelectiveScan(
            a: a, skip: skip, deltaBias: bias, appliesSoftplus: parameters.appliesSoftplus, groups: groups,
            instructionSet: instructionSet)
        : try SelectiveScan(
            a: a, fixedB: file.floatTensor("in.B"), fixedC: file.floatTensor("in.C"), skip: skip, deltaBias: bias,
            appliesSoftplus: parameters.appliesSoftplus, instructionSet: instructionSet)
    let channels = scan.channels
    let none = try Tensor<Float>(zeros: [0, 0])
    let x = try rows("in.u", columns: channels) ?? none
    let delta = try rows("in.delta", columns: channels) ?? none
    let z = try rows("in.z", columns: channels)
    let b = parameters.isVariable ? try rows("in.B", columns: groups * scan.stateSize) : nil
    let c = parameters.isVariable ? try rows("in.C", columns: groups * scan.stateSize) : nil
    let expected = try rows("out.y", columns: channels) ?? none
    let last = try file.floatTensor("out.last_state")
    var comparison = GoldenComparison()

    func run(parts: [Int], _ label: String) throws(SparseKernelsError) {
        let states = try RecurrentStates(slots: parameters.batch, heads: 1, rows: scan.stateSize, columns: channels)
        var y = try Tensor<Float>(zeros: x.shape)
        for sequence in 0..<parameters.batch {
            var start = sequence * tokens
            for count in parts {
                let batch = try PackedSequences(lengths: [count], slots: [sequence])
                func part(_ tensor: Tensor<Float>?) throws(SparseKernelsError) -> Tensor<Float>? {
                    guard let tensor else { return nil }
                    let columns = tensor.shape[1]
                    return try Tensor([count, columns]) { tensor[flat: start * columns + $0] }
                }
                let (input, step, gate) = (try part(x) ?? none, try part(delta) ?? none, try part(z))
                var output = try Tensor<Float>(zeros: [count, channels])
                if let b = try part(b), let c = try part(c) {
                    try scan.run(
                        x: input.matrixView(), delta: step.matrixView(), b: b.matrixView(), c: c.matrixView(),
                        gate: gate?.matrixView(), into: output.mutableMatrixView(), batch: batch, states: states, on: pool)
                } else {
                    try scan.run(
                        x: input.matrixView(), delta: step.matrixView(), gate: gate?.matrixView(),
                        into: output.mutableMatrixView(), batch: batch, states: states, on: pool)
                }
                for index in 0..<output.count { y[flat: start * channels + index] = output[flat: index] }
                start += count
            }
            let state = try states.state(of: sequence)
            for channel in 0..<channels {
                for n in 0..<scan.stateSize {
                    let value = Double(last[flat: (sequence * channels + channel) * scan.stateSize + n])
                    comparison.compare(
                        "out.last_state[\(sequence), \(channel), \(n)], \(label)", actual: Double(state[0, n, channel]),
                        expected: value, bound: 1e-5 + 1e-5 * abs(value))
                }
            }
        }
        for index in 0..<expected.count {
            let value = Double(expected[flat: index])
            comparison.compare(
                "out.y[\(index)], \(label)", actual: Double(y[flat: index]), expected: value, bound: 1e-5 + 1e-5 * abs(value))
        }
    }
    try run(parts: [tokens], "one call")
    var parts: [Int] = []
    while parts.reduce(0, +) < tokens { parts.append(min(parts.count + 1, tokens - parts.reduce(0, +))) }
    try run(parts: parts, "parts")
    return comparison.result(golden)
}

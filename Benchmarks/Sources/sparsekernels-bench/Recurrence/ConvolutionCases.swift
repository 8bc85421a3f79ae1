import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// What stands before and after a recurrence, at the sizes of Nemotron-H 8B: a convolution of 10240 channels with SiLU, and a norm of
/// 8192 channels in 8 groups.
///
/// Both are bound by memory: every call starts with empty caches, and the roof is the memory bandwidth, measured on the same threads right
/// before the call. What a call writes counts once, although memory that is not in the cache is read before it is written.
extension RecurrenceCases {
    func convolutionGroups() -> [CaseGroup] {
        let tokens = isQuick ? [512] : [512, 8192]
        let prompts = tokens.map { tokens in
            memoryGroup(op: "recurrence.convolution", name: "convolution \(tokens)") {
                try ConvolutionProblem(lengths: [tokens])
            }
        }
        let steps = batches.map { batch in
            memoryGroup(op: "recurrence.convolution.step", name: "convolution step b\(batch)") {
                try ConvolutionProblem(lengths: Array(repeating: 1, count: batch))
            }
        }
        let norms = tokens.map { tokens in
            memoryGroup(op: "recurrence.gatednorm", name: "gated norm \(tokens)") { try GatedNormProblem(tokens: tokens) }
        }
        return prompts + steps + norms
    }
}

private final class ConvolutionProblem: RowProblem {
    static let (channels, width) = (10_240, 4)

    private let x: Tensor<Float>
    private var y: Tensor<Float>
    private let weight: Tensor<Float>
    private let bias: Tensor<Float>
    private let batch: PackedSequences
    private let states: RecurrentStates

    init(lengths: [Int]) throws {
        batch = try PackedSequences(lengths: lengths)
        x = try .normal([batch.tokenCount, Self.channels], seed: 1)
        y = try Tensor(zeros: x.shape)
        weight = try .normal([Self.channels, Self.width], seed: 2)
        bias = try .normal([Self.channels], seed: 3)
        states = try RecurrentStates(
            slots: lengths.count, shape: .convolution(channels: Self.channels, width: Self.width))
        reset()
    }

    var elements: Int { x.count }
    /// Inputs and outputs, and states read and written.
    var bytes: Int { x.count * 8 + 2 * states.byteCount }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let plan = try CausalConvolution(weight: weight, bias: bias, activation: .silu, instructionSet: set)
        return { [self] in Self.run(plan, x, &y, batch, states, pool) }
    }

    // Views of properties are errors; those of parameters are not. Shapes agree by construction, so that no `run` can throw.
    private static func run(
        _ plan: CausalConvolution, _ x: Tensor<Float>, _ y: inout Tensor<Float>, _ batch: PackedSequences,
        _ states: RecurrentStates, _ pool: WorkerPool
    ) {
        try! plan.run(x.matrixView(), into: y.mutableMatrixView(), batch: batch, states: states, on: pool)
    }

    func reset() { for slot in 0..<states.slots { try! states.reset(slot) } }

    /// Compares some channels of the first tokens of each sequence with the oracle.
    func check() -> Verification {
        var verification = Verification.none
        var start = 0
        for length in batch.lengths {
            for channel in [0, 17, Self.channels - 1] {
                let inputs = (0..<min(length, 40)).map { [Double(x[start + $0, channel])] }
                let expected = ReferenceConvolution.sums(
                    inputs, weight: [(0..<Self.width).map { Double(weight[channel, $0]) }],
                    bias: [Double(bias[flat: channel])], state: Array(repeating: [0], count: Self.width - 1))
                for token in inputs.indices {
                    let (sum, error) = (expected.values[token][0], expected.errors[token][0])
                    let value = ReferenceRows.activation(.silu, sum)
                    // SiLU's slope is below 1.1.
                    verification.add(
                        error: abs(Double(y[start + token, channel]) - value),
                        bound: 1.1 * error + ReferenceRows.activationError(.silu, sum) + 0x1p-24 * abs(value))
                }
            }
            start += length
        }
        return verification
    }
}

private final class GatedNormProblem: RowProblem {
    static let (channels, groups) = (8192, 8)
    private static let epsilon: Float = 1e-5

    private let x: Tensor<Float>
    private let z: Tensor<Float>
    private let weight: Tensor<Float>
    private var y: Tensor<Float>

    init(tokens: Int) throws {
        x = try .normal([tokens, Self.channels], seed: 1)
        z = try .normal(x.shape, seed: 2)
        weight = try .normal([Self.channels], seed: 3)
        y = try Tensor(zeros: x.shape)
    }

    var elements: Int { x.count }
    var bytes: Int { x.count * 12 }

    func body(_ set: InstructionSet, on pool: WorkerPool) throws -> () -> Void {
        let norm = try GatedRMSNorm(
            weight: weight, groups: Self.groups, epsilon: Self.epsilon, gate: .beforeNorm, instructionSet: set)
        return { [self] in Self.run(norm, x, z, &y, pool) }
    }

    private static func run(
        _ norm: GatedRMSNorm, _ x: Tensor<Float>, _ z: Tensor<Float>, _ y: inout Tensor<Float>, _ pool: WorkerPool
    ) {
        try! norm.run(x.matrixView(), gate: z.matrixView(), into: y.mutableMatrixView(), on: pool)
    }

    func check() -> Verification {
        var verification = Verification.none
        let sums = ReferenceRows.sumError(Self.channels / Self.groups)
        for row in [0, x.shape[0] - 1] {
            func doubles(_ tensor: Tensor<Float>) -> [Double] { (0..<Self.channels).map { Double(tensor[row, $0]) } }
            let gates = doubles(z)
            let expected = ReferenceConvolution.gatedNorm(
                doubles(x), gate: gates, weight: weight.elements.map(Double.init), groups: Self.groups,
                epsilon: Double(Self.epsilon), gatesBefore: true)
            // Twice the largest relative error of silu: of the element, and of the mean.
            let silu = 2 * gates.reduce(0) { max($0, 6e-7 + 1e-7 * abs($1)) }
            for (channel, actual) in doubles(y).enumerated() {
                verification.add(
                    error: abs(actual - expected[channel]),
                    bound: abs(expected[channel]) * (sums / 2 + silu + 10 * 0x1p-24) + 0x1p-36)
            }
        }
        return verification
    }
}

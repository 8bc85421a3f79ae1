import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Linear attention with a constant decay per head, as Lightning attention has it, and with one per channel, as gated linear attention
/// has it: 32 heads of 128 × 128.
extension RecurrenceCases {
    func linearGroups() -> [CaseGroup] {
        LinearProblem.kinds.flatMap { kind, perChannel in
            groups(op: "recurrence.linear", name: kind, heads: LinearProblem.heads) { tokens, part in
                try LinearProblem(tokens: tokens, part: part, perChannel: perChannel).prompt(on: pool)
            } step: { batch, format in
                try LinearProblem(tokens: batch, part: 1, perChannel: perChannel).step(format, on: pool)
            }
        }
    }
}

private final class LinearProblem {
    static let (heads, headDim) = (32, 128)
    static let kinds = [("per head", false), ("per channel", true)]

    let shape: RecurrenceShape
    let tokens: Int
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    /// `[tokens, heads, headDim]`; nil for decays per head.
    let logs: Tensor<Float>?
    let decays: [Float]
    private var y: Tensor<Float>

    init(tokens: Int, part: Int, perChannel: Bool) throws {
        self.tokens = tokens
        let heads = Self.heads / part
        shape = try RecurrenceShape(keyHeads: heads, valueHeads: heads, keyDim: Self.headDim, valueDim: Self.headDim)
        let extents = [tokens, heads, Self.headDim]
        query = try .normal(extents, seed: 1, scale: 0.1)
        key = try .normal(extents, seed: 2, scale: 0.1)
        value = try .normal(extents, seed: 3)
        decays = try LinearRecurrence.lightningDecays(heads: heads, layer: 8, layers: 32)
        if perChannel {
            // As gated linear attention has it: the logarithm of a sigmoid over 16.
            let noise = try Tensor<Float>.normal(extents, seed: 4)
            logs = try Tensor(extents) { -0.04 * (1 + abs(noise[flat: $0])) }
        } else {
            logs = nil
        }
        y = try Tensor(zeros: extents)
    }

    private func plan(_ form: RecurrenceForm, _ set: InstructionSet) throws -> LinearRecurrence {
        try LinearRecurrence(
            shape, decay: logs == nil ? .perHead(decays) : .perChannel, form: form, instructionSet: set)
    }

    /// Runs tokens from `first` on.
    private func run(
        _ plan: LinearRecurrence, first: Int = 0, batch: PackedSequences, _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        let range = first..<first + batch.tokenCount
        if let logs {
            try Self.run(plan, query, key, value, logs, range, into: &y, batch: batch, states, on: pool)
        } else {
            try Self.run(plan, query, key, value, range, into: &y, batch: batch, states, on: pool)
        }
    }

    // Views of properties are errors; those of parameters are not.

    private static func run(
        _ plan: LinearRecurrence, _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>, _ logs: Tensor<Float>,
        _ range: Range<Int>, into y: inout Tensor<Float>, batch: PackedSequences, _ states: RecurrentStates,
        on pool: WorkerPool
    ) throws {
        let (heads, channels) = (plan.shape.valueHeads, plan.shape.valueDim)
        try plan.run(
            query: query.view(layout: .nhd).tokens(range), key: key.view(layout: .nhd).tokens(range),
            value: value.view(layout: .nhd).tokens(range), logDecay: logs.view(layout: .nhd).tokens(range),
            into: MutableTensorView(y.mutableSpan, heads: heads, tokens: range.count, channels: channels, layout: .nhd),
            batch: batch, states: states, on: pool)
    }

    private static func run(
        _ plan: LinearRecurrence, _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>,
        _ range: Range<Int>, into y: inout Tensor<Float>, batch: PackedSequences, _ states: RecurrentStates,
        on pool: WorkerPool
    ) throws {
        let (heads, channels) = (plan.shape.valueHeads, plan.shape.valueDim)
        try plan.run(
            query: query.view(layout: .nhd).tokens(range), key: key.view(layout: .nhd).tokens(range),
            value: value.view(layout: .nhd).tokens(range),
            into: MutableTensorView(y.mutableSpan, heads: heads, tokens: range.count, channels: channels, layout: .nhd),
            batch: batch, states: states, on: pool)
    }

    func prompt(on pool: WorkerPool) throws -> RecurrencePrompt {
        let states = try RecurrentStates(slots: 1, shape: shape)
        return try RecurrencePrompt(
            tokens: tokens, products: Double(tokens) * products, states: states, form: .automatic, plan: plan,
            run: { try self.run($0, first: $1, batch: $2, states, on: pool) }, check: check, heads: shape.valueHeads,
            headDim: Self.headDim)
    }

    /// Multiply-adds of the chunked algorithm per token.
    private var products: Double {
        guard case .chunked(let chunk) = RecurrenceForm.automatic else { return 0 }
        let half = Double(chunk + 1) / 2
        return Double(shape.valueHeads * shape.valueDim) * (2 * Double(shape.keyDim) + half)
            + Double(shape.keyHeads * shape.keyDim) * half
    }

    /// Compares the first tokens of two heads with the oracle.
    private func check() throws -> Verification {
        var verification = Verification.none
        for head in [0, shape.valueHeads - 1] {
            var oracle = ReferenceLinearRecurrence(keyDim: shape.keyDim, valueDim: shape.valueDim)
            for token in 0..<min(tokens, 300) {
                func row(_ tensor: Tensor<Float>) -> [Double] { (0..<Self.headDim).map { Double(tensor[token, head, $0]) } }
                let (expected, bound) = oracle.step(
                    query: row(query), key: row(key), value: row(value),
                    logDecay: logs.map(row) ?? Array(repeating: Double(decays[head]), count: Self.headDim))
                for channel in expected.indices {
                    verification.add(
                        error: abs(Double(y[token, head, channel]) - expected[channel]), bound: bound[channel])
                }
            }
        }
        return verification
    }

    func step(_ format: RecurrentStates.Format, on pool: WorkerPool) throws -> RecurrenceStep {
        let states = try RecurrentStates(slots: tokens, shape: shape, format: format)
        for slot in 0..<tokens {
            try states.setState(.normal([shape.valueHeads, shape.keyDim, shape.valueDim], seed: 5), of: slot)
        }
        let batch = try PackedSequences(stepOf: Array(0..<tokens))
        return RecurrenceStep(stateBytes: states.byteCount) { set in
            let plan = try self.plan(.automatic, set)
            return { try! self.run(plan, batch: batch, states, on: pool) }
        }
    }
}

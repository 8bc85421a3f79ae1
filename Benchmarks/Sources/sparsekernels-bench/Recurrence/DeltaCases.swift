import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// The gated delta rule with the sizes of a layer of Qwen3-Next, 16 heads of keys and 32 of values of 128 × 128, with decays per token,
/// as Gated DeltaNet has them, and per channel, as Kimi Delta Attention has them.
extension RecurrenceCases {
    func deltaGroups() -> [CaseGroup] {
        DeltaProblem.kinds.flatMap { kind, decay in
            groups(op: "recurrence.delta", name: kind, heads: DeltaProblem.valueHeads) { tokens, part in
                try DeltaProblem(tokens: tokens, part: part, decay: decay).prompt(on: pool)
            } step: { batch, format in
                try DeltaProblem(tokens: batch, part: 1, decay: decay).step(format, on: pool)
            }
        }
    }
}

private final class DeltaProblem {
    static let (keyHeads, valueHeads, headDim) = (16, 32, 128)
    static let kinds = [("delta rule", GatedDeltaRule.Decay.perToken), ("delta per channel", .perChannel)]

    let shape: RecurrenceShape
    let tokens: Int
    let decay: GatedDeltaRule.Decay
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    /// `[tokens, valueHeads]`, or `[tokens, valueHeads, headDim]`.
    let logDecay: Tensor<Float>
    let beta: Tensor<Float>
    private var y: Tensor<Float>

    init(tokens: Int, part: Int, decay: GatedDeltaRule.Decay) throws {
        self.tokens = tokens
        self.decay = decay
        let (keyHeads, valueHeads) = (Self.keyHeads / part, Self.valueHeads / part)
        shape = try RecurrenceShape(
            keyHeads: keyHeads, valueHeads: valueHeads, keyDim: Self.headDim, valueDim: Self.headDim)
        query = try .normal([tokens, keyHeads, Self.headDim], seed: 1)
        key = try .normal([tokens, keyHeads, Self.headDim], seed: 2)
        value = try .normal([tokens, valueHeads, Self.headDim], seed: 3)
        let decays = [tokens, valueHeads] + (decay == .perChannel ? [Self.headDim] : [])
        let noise = try Tensor<Float>.normal(decays, seed: 4)
        logDecay = try Tensor(decays) { -0.05 * abs(noise[flat: $0]) }
        let strength = try Tensor<Float>.normal([tokens, valueHeads], seed: 5)
        beta = try Tensor([tokens, valueHeads]) { 1 / (1 + abs(strength[flat: $0])) }
        y = try Tensor(zeros: [tokens, valueHeads, Self.headDim])
    }

    private func plan(_ form: RecurrenceForm, _ set: InstructionSet) throws -> GatedDeltaRule {
        try GatedDeltaRule(shape, decay: decay, normalizesQueriesAndKeys: true, form: form, instructionSet: set)
    }

    /// Runs tokens from `first` on.
    private func run(
        _ plan: GatedDeltaRule, first: Int = 0, batch: PackedSequences, _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        try Self.run(
            plan, query, key, value, logDecay, beta, first..<first + batch.tokenCount, into: &y, batch: batch, states, on: pool)
    }

    private static func run(
        _ plan: GatedDeltaRule, _ query: Tensor<Float>, _ key: Tensor<Float>, _ value: Tensor<Float>, _ logDecay: Tensor<Float>,
        _ beta: Tensor<Float>, _ range: Range<Int>, into y: inout Tensor<Float>, batch: PackedSequences,
        _ states: RecurrentStates, on pool: WorkerPool
    ) throws {
        let (heads, channels, skipped) = (
            plan.shape.valueHeads, plan.shape.valueDim, range.lowerBound * plan.shape.valueHeads
        )
        if plan.decay == .perChannel {
            try plan.run(
                query: query.view(layout: .nhd).tokens(range), key: key.view(layout: .nhd).tokens(range),
                value: value.view(layout: .nhd).tokens(range), logDecay: logDecay.view(layout: .nhd).tokens(range),
                beta: MatrixView(beta.span.extracting(droppingFirst: skipped), rows: range.count, columns: heads),
                into: MutableTensorView(y.mutableSpan, heads: heads, tokens: range.count, channels: channels, layout: .nhd),
                batch: batch, states: states, on: pool)
        } else {
            try plan.run(
                query: query.view(layout: .nhd).tokens(range), key: key.view(layout: .nhd).tokens(range),
                value: value.view(layout: .nhd).tokens(range),
                logDecay: MatrixView(logDecay.span.extracting(droppingFirst: skipped), rows: range.count, columns: heads),
                beta: MatrixView(beta.span.extracting(droppingFirst: skipped), rows: range.count, columns: heads),
                into: MutableTensorView(y.mutableSpan, heads: heads, tokens: range.count, channels: channels, layout: .nhd),
                batch: batch, states: states, on: pool)
        }
    }

    func prompt(on pool: WorkerPool) throws -> RecurrencePrompt {
        let states = try RecurrentStates(slots: 1, shape: shape)
        return try RecurrencePrompt(
            tokens: tokens, products: Double(tokens) * products, states: states, form: GatedDeltaRule.defaultForm, plan: plan,
            run: { try self.run($0, first: $1, batch: $2, states, on: pool) }, check: check, heads: shape.valueHeads,
            headDim: Self.headDim)
    }

    /// Multiply-adds of the chunked algorithm per token: three times with the state, and in the lower half of a chunk twice per channel
    /// of values and twice per channel of keys. Decays per channel leave the heads of a group nothing to share.
    private var products: Double {
        guard case .chunked(let chunk) = GatedDeltaRule.defaultForm else { return 0 }
        let half = Double(chunk + 1) / 2
        let scored = decay == .perChannel ? shape.valueHeads : shape.keyHeads
        return Double(shape.valueHeads * Self.headDim) * (3 * Double(Self.headDim) + 2 * half)
            + Double(scored * Self.headDim) * 2 * half
    }

    /// Compares the first tokens of two heads with the oracle.
    private func check() throws -> Verification {
        var verification = Verification.none
        let plan = try plan(GatedDeltaRule.defaultForm, .portable)
        let count = min(tokens, 100)
        func rows(_ tensor: Tensor<Float>, _ head: Int) -> [[Double]] {
            (0..<count).map { token in (0..<Self.headDim).map { Double(tensor[token, head, $0]) } }
        }
        for head in [0, shape.valueHeads - 1] {
            let keyHead = head / shape.valueHeadsPerKeyHead
            let zeros = Array(repeating: Array(repeating: 0.0, count: Self.headDim), count: Self.headDim)
            let logs =
                decay == .perChannel ? rows(logDecay, head) : (0..<count).map { [Double(logDecay[$0, head])] }
            let expected = ReferenceGatedDeltaRule(plan).run(
                query: rows(query, keyHead), key: rows(key, keyHead), value: rows(value, head), logDecay: logs,
                beta: (0..<count).map { Double(beta[$0, head]) }, from: .init(state: zeros))
            for token in 0..<count {
                for channel in 0..<Self.headDim {
                    verification.add(
                        error: abs(Double(y[token, head, channel]) - expected.outputs[token][channel]),
                        bound: expected.outputBounds[token][channel])
                }
            }
        }
        return verification
    }

    func step(_ format: RecurrentStates.Format, on pool: WorkerPool) throws -> RecurrenceStep {
        let states = try RecurrentStates(slots: tokens, shape: shape, format: format)
        for slot in 0..<tokens {
            try states.setState(.normal([shape.valueHeads, shape.keyDim, shape.valueDim], seed: 6), of: slot)
        }
        let batch = try PackedSequences(stepOf: Array(0..<tokens))
        return RecurrenceStep(stateBytes: states.byteCount) { set in
            let plan = try self.plan(GatedDeltaRule.defaultForm, set)
            return { try! self.run(plan, batch: batch, states, on: pool) }
        }
    }
}

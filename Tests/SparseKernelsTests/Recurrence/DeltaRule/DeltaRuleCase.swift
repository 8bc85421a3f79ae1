import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Random operands of the gated delta rule, and the outputs that are expected of them.
struct DeltaRuleCase {
    let shape: RecurrenceShape
    let decay: GatedDeltaRule.Decay
    let tokens: Int
    var query: Tensor<Float>
    var key: Tensor<Float>
    var value: Tensor<Float>
    /// `[tokens, valueHeads]`, or `[valueHeads, tokens, keyDim]`.
    var logDecay: Tensor<Float>
    var beta: Tensor<Float>

    /// - Parameter strength: the mean of the decays is e^−`strength`.
    init(
        keyHeads: Int = 2, valueHeads: Int = 4, keyDim: Int = 16, valueDim: Int = 16, tokens: Int,
        decay: GatedDeltaRule.Decay = .perToken, strength: Float = 0.1, seed: UInt64 = 1
    ) throws {
        shape = try RecurrenceShape(keyHeads: keyHeads, valueHeads: valueHeads, keyDim: keyDim, valueDim: valueDim)
        self.decay = decay
        self.tokens = tokens
        query = try Tensor<Float>.normal([keyHeads, tokens, keyDim], seed: seed)
        key = try Tensor<Float>.normal([keyHeads, tokens, keyDim], seed: seed + 1)
        value = try Tensor<Float>.normal([valueHeads, tokens, valueDim], seed: seed + 2)
        var random = SplitMix64(seed: seed + 3)
        let decays = decay == .perChannel ? [valueHeads, tokens, keyDim] : [tokens, valueHeads]
        logDecay = try Tensor<Float>(decays) { _ in -abs(random.normal()) * strength }
        beta = try Tensor<Float>([tokens, valueHeads]) { _ in 1 / (1 + abs(random.normal())) }
    }

    func rule(_ set: InstructionSet) throws -> GatedDeltaRule { try rule(GatedDeltaRule.defaultForm, set) }

    func rule(_ form: RecurrenceForm, _ set: InstructionSet) throws -> GatedDeltaRule {
        try GatedDeltaRule(shape, decay: decay, normalizesQueriesAndKeys: true, form: form, instructionSet: set)
    }

    /// Some of the tokens, as a case of its own.
    func part(_ range: Range<Int>) throws -> DeltaRuleCase {
        func cut(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            let (heads, channels) = (tensor.shape[0], tensor.shape[2])
            return try Tensor<Float>([heads, range.count, channels]) { index in
                let (row, channel) = index.quotientAndRemainder(dividingBy: channels)
                let (head, token) = row.quotientAndRemainder(dividingBy: range.count)
                return tensor[head, range.lowerBound + token, channel]
            }
        }
        func cutRows(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            try Tensor<Float>([range.count, shape.valueHeads]) { tensor[flat: range.lowerBound * shape.valueHeads + $0] }
        }
        var part = self
        part.query = try cut(query)
        part.key = try cut(key)
        part.value = try cut(value)
        part.logDecay = try decay == .perChannel ? cut(logDecay) : cutRows(logDecay)
        part.beta = try cutRows(beta)
        return part
    }

    /// Runs a batch of sequences whose tokens are those of this case.
    func run(
        _ rule: GatedDeltaRule, _ batch: PackedSequences? = nil, states: RecurrentStates, on pool: WorkerPool = .serial
    ) throws -> Tensor<Float> {
        let batch = try batch ?? PackedSequences(lengths: [query.shape[1]])
        var output = try Tensor<Float>([shape.valueHeads, query.shape[1], shape.valueDim]) { _ in .nan }
        if decay == .none {
            try rule.run(
                query: query, key: key, value: value, beta: beta, into: &output, batch: batch, states: states, on: pool)
        } else {
            try rule.run(
                query: query, key: key, value: value, logDecay: logDecay, beta: beta, into: &output, batch: batch,
                states: states, on: pool)
        }
        return output
    }

    /// The oracle's heads after all tokens, from states `[valueHeads, keyDim, valueDim]` or zeros.
    func expected(_ rule: GatedDeltaRule, from state: Tensor<Float>? = nil) -> [ReferenceGatedDeltaRule.Head] {
        let reference = ReferenceGatedDeltaRule(rule)
        func rows(_ tensor: Tensor<Float>, _ head: Int) -> [[Double]] {
            let (tokens, channels) = (tensor.shape[1], tensor.shape[2])
            return (0..<tokens).map { token in
                (0..<channels).map { Double(tensor[flat: (head * tokens + token) * channels + $0]) }
            }
        }
        func column(_ tensor: Tensor<Float>, _ head: Int) -> [Double] {
            (0..<tensor.shape[0]).map { Double(tensor[flat: $0 * shape.valueHeads + head]) }
        }
        return (0..<shape.valueHeads).map { head in
            let keyHead = head / shape.valueHeadsPerKeyHead
            let logs: [[Double]] =
                switch decay {
                case .none: query.shape[1] == 0 ? [] : Array(repeating: [], count: query.shape[1])
                case .perToken: column(logDecay, head).map { [$0] }
                case .perChannel: rows(logDecay, head)
                }
            let start =
                state.map { rows($0, head) }
                ?? Array(repeating: Array(repeating: 0, count: shape.valueDim), count: shape.keyDim)
            return reference.run(
                query: rows(query, keyHead), key: rows(key, keyHead), value: rows(value, head), logDecay: logs,
                beta: column(beta, head), from: ReferenceGatedDeltaRule.Head(state: start))
        }
    }

    /// Expects outputs and states within the oracle's bounds.
    func expect(
        _ output: Tensor<Float>, _ state: Tensor<Float>, _ heads: [ReferenceGatedDeltaRule.Head], _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let tokens = query.shape[1]
        for (head, expected) in heads.enumerated() {
            for token in 0..<tokens {
                for column in 0..<shape.valueDim {
                    let actual = Double(output[flat: (head * tokens + token) * shape.valueDim + column])
                    let (value, bound) = (expected.outputs[token][column], expected.outputBounds[token][column])
                    if !(abs(actual - value) <= bound) {
                        Issue.record(
                            "\(label): output \(actual) for \(value) ± \(bound) at head \(head), token \(token), column \(column)",
                            sourceLocation: sourceLocation)
                        return
                    }
                }
            }
            for row in 0..<shape.keyDim {
                for column in 0..<shape.valueDim {
                    let actual = Double(state[flat: (head * shape.keyDim + row) * shape.valueDim + column])
                    let (value, bound) = (expected.state[row][column], expected.stateBounds[column] + 1e-30)
                    if !(abs(actual - value) <= bound) {
                        Issue.record(
                            "\(label): state \(actual) for \(value) ± \(bound) at head \(head), row \(row), column \(column)",
                            sourceLocation: sourceLocation)
                        return
                    }
                }
            }
        }
    }
}

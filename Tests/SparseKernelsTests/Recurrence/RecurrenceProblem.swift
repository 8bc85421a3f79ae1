import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// A recurrence with random operands, and what the oracle makes of it.
///
/// Keys are scaled so that states stay near 1.
struct RecurrenceProblem {
    enum Decay: CaseIterable {
        case perHead
        case perToken
        case perChannel
        case discretized
    }

    let shape: RecurrenceShape
    let decay: Decay
    let lengths: [Int]
    let query: Tensor<Float>
    let key: Tensor<Float>
    let value: Tensor<Float>
    let rates: [Float]
    let biases: [Float]
    let skips: [Float]
    let scale: Float
    /// `[tokens, valueHeads]` or `[valueHeads, tokens, keyDim]`.
    let steps: Tensor<Float>
    let initialStates: [Tensor<Float>]

    init(
        _ shape: RecurrenceShape, _ decay: Decay, lengths: [Int], isFirst: Bool = false, decayScale: Float = 0.3,
        seed: UInt64 = 1
    ) throws {
        let tokens = lengths.reduce(0, +)
        let heads = shape.valueHeads
        (self.shape, self.decay, self.lengths) = (shape, decay, lengths)
        query = try .normal([shape.keyHeads, tokens, shape.keyDim], seed: seed)
        key = try .normal([shape.keyHeads, tokens, shape.keyDim], seed: seed + 1, scale: 0.3)
        value = try .normal([heads, tokens, shape.valueDim], seed: seed + 2)
        scale = decay == .discretized ? 1 : 0.5
        biases = try Tensor<Float>.normal([heads], seed: seed + 3, scale: decay == .discretized ? 0.5 : 0).elements
        skips = try Tensor<Float>.normal([heads], seed: seed + 4, scale: decay == .discretized ? 1 : 0).elements
        switch decay {
        case .perHead:
            rates = (0..<heads).map { -decayScale * Float($0) }
            steps = try Tensor(zeros: [tokens, heads])
        case .perToken, .perChannel:
            rates = Array(repeating: 0, count: heads)
            let noise = try Tensor<Float>.normal(
                decay == .perToken ? [tokens, heads] : [heads, tokens, shape.keyDim], seed: seed + 5, scale: decayScale)
            // Some forget everything.
            steps = try Tensor(noise.shape) { $0 % 61 == 60 ? -.infinity : -abs(noise[flat: $0]) }
        case .discretized:
            rates = (0..<heads).map { -decayScale * Float($0 + 1) }
            steps = try .normal([tokens, heads], seed: seed + 5)
        }
        initialStates = try lengths.indices.map {
            isFirst
                ? try Tensor(zeros: [heads, shape.keyDim, shape.valueDim])
                : try .normal([heads, shape.keyDim, shape.valueDim], seed: seed + 10 + UInt64($0))
        }
    }

    var tokens: Int { lengths.reduce(0, +) }

    func batch(slots: [Int]? = nil) throws -> PackedSequences { try PackedSequences(lengths: lengths, slots: slots) }

    func states(_ format: RecurrentStates.Format = .float32) throws -> RecurrentStates {
        let states = try RecurrentStates(slots: lengths.count, shape: shape, format: format)
        for (slot, state) in initialStates.enumerated() { try states.setState(state, of: slot) }
        return states
    }

    /// The operator's outputs, `[valueHeads, tokens, valueDim]`.
    func run(
        _ form: RecurrenceForm, _ set: InstructionSet, states: RecurrentStates, batch: PackedSequences? = nil,
        on pool: WorkerPool = .serial
    ) throws -> Tensor<Float> {
        var output = try Tensor<Float>(zeros: value.shape)
        let batch = try batch ?? self.batch()
        switch decay {
        case .perHead:
            try LinearRecurrence(shape, decay: .perHead(rates), scale: scale, form: form, instructionSet: set).run(
                query: query, key: key, value: value, into: &output, batch: batch, states: states, on: pool)
        case .perToken, .perChannel:
            try LinearRecurrence(
                shape, decay: decay == .perToken ? .perToken : .perChannel, scale: scale, form: form, instructionSet: set
            ).run(
                query: query, key: key, value: value, logDecay: steps, into: &output, batch: batch, states: states, on: pool)
        case .discretized:
            try ssd(form, set).run(
                x: value, b: key, c: query, dt: steps, into: &output, batch: batch, states: states, on: pool)
        }
        return output
    }

    func ssd(_ form: RecurrenceForm, _ set: InstructionSet?) throws -> StateSpaceDuality {
        let logs = rates.map { Float(Foundation.log(Double(-$0))) }
        return try StateSpaceDuality(
            heads: shape.valueHeads, headDim: shape.valueDim, stateSize: shape.keyDim, groups: shape.keyHeads,
            aLog: Tensor([shape.valueHeads], logs), dtBias: Tensor([shape.valueHeads], biases),
            skip: Tensor([shape.valueHeads], skips), form: form, instructionSet: set)
    }

    /// One of the outputs and the final states beyond its bound, or nil.
    func violation(_ output: Tensor<Float>, _ states: RecurrentStates) throws -> String? {
        var start = 0
        for (sequence, length) in lengths.enumerated() {
            let final = try states.state(of: sequence)
            for head in 0..<shape.valueHeads {
                var oracle = ReferenceLinearRecurrence(
                    state: (0..<shape.keyDim).map { row in
                        (0..<shape.valueDim).map { Double(initialStates[sequence][head, row, $0]) }
                    })
                for token in start..<start + length {
                    let (expected, bound) = step(&oracle, head: head, token: token)
                    for p in expected.indices {
                        let actual = Double(output[head, token, p])
                        if !(abs(actual - expected[p]) <= bound[p]) {
                            return "head \(head), token \(token), channel \(p): \(actual) for \(expected[p]), bound \(bound[p])"
                        }
                    }
                }
                for (n, row) in oracle.stateBound.enumerated() {
                    for p in row.indices {
                        let (actual, expected) = (Double(final[head, n, p]), oracle.state[n][p])
                        if !(abs(actual - expected) <= row[p] + 1e-37) {
                            return "state \(sequence), head \(head), [\(n), \(p)]: \(actual) for \(expected), bound \(row[p])"
                        }
                    }
                }
            }
            start += length
        }
        return nil
    }

    private func step(
        _ oracle: inout ReferenceLinearRecurrence, head: Int, token: Int
    ) -> (output: [Double], bound: [Double]) {
        let keyHead = head / shape.valueHeadsPerKeyHead
        let channels = 0..<shape.keyDim
        let q = channels.map { Double(query[keyHead, token, $0]) }
        let k = channels.map { Double(key[keyHead, token, $0]) }
        let v = (0..<shape.valueDim).map { Double(value[head, token, $0]) }
        switch decay {
        case .perHead:
            let logs = channels.map { _ in Double(rates[head]) }
            return oracle.step(query: q, key: k, value: v, logDecay: logs, scale: Double(scale))
        case .perToken:
            let logs = channels.map { _ in Double(steps[token, head]) }
            return oracle.step(query: q, key: k, value: v, logDecay: logs, scale: Double(scale))
        case .perChannel:
            let logs = channels.map { Double(steps[head, token, $0]) }
            return oracle.step(query: q, key: k, value: v, logDecay: logs, scale: Double(scale))
        case .discretized:
            let raw = Double(steps[token, head]) + Double(biases[head])
            let size = ReferenceLinearRecurrence.softplus(raw)
            return oracle.step(
                query: q, key: k, value: v, logDecay: channels.map { _ in size * Double(rates[head]) }, stepSize: size,
                stepError: ReferenceLinearRecurrence.stepError(raw), skip: Double(skips[head]))
        }
    }
}

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
    var lengths: [Int]
    var query: Tensor<Float>
    var key: Tensor<Float>
    var value: Tensor<Float>
    let rates: [Float]
    let biases: [Float]
    let skips: [Float]
    let scale: Float
    /// `[tokens, valueHeads]` or `[valueHeads, tokens, keyDim]`.
    var steps: Tensor<Float>
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

    /// Some tokens, as one sequence.
    func tokens(_ range: Range<Int>) throws -> RecurrenceProblem {
        func cut(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
            try Tensor(tensor.view(), heads: Array(0..<tensor.shape[0]), tokens: range)
        }
        var part = self
        (part.query, part.key, part.value) = (try cut(query), try cut(key), try cut(value))
        if decay == .perChannel {
            part.steps = try cut(steps)
        } else {
            let columns = shape.valueHeads
            part.steps = try Tensor(
                [range.count, columns], Array(steps.elements[range.lowerBound * columns..<range.upperBound * columns]))
        }
        part.lengths = [range.count]
        return part
    }

    /// The decay of a head per token, for decays per head.
    func decayOfHead(_ head: Int) -> Float { Float(Foundation.exp(Double(rates[head]))) }

    /// What the oracle makes of the problem. It takes much longer than the operators.
    func expected() throws -> Expected {
        let queries = try (0..<shape.keyHeads).map { try query.view().rows(head: $0) }
        let keys = try (0..<shape.keyHeads).map { try key.view().rows(head: $0) }
        let steps = try decay == .perChannel ? (0..<shape.valueHeads).map { try self.steps.view().rows(head: $0) } : []
        let flat = self.steps.elements.map(Double.init)
        var result = Expected()
        for head in 0..<shape.valueHeads {
            let values = try value.view().rows(head: head)
            let keyHead = head / shape.valueHeadsPerKeyHead
            var (outputs, bounds): ([[Double]], [[Double]]) = ([], [])
            var start = 0
            for (sequence, length) in lengths.enumerated() {
                let initial = initialStates[sequence]
                var oracle = ReferenceLinearRecurrence(state: try initial.view().rows(head: head))
                for token in start..<start + length {
                    var (size, error, skip) = (1.0, 0.0, 0.0)
                    var logs: [Double]
                    switch decay {
                    case .perHead: logs = Array(repeating: Double(rates[head]), count: shape.keyDim)
                    case .perToken:
                        logs = Array(repeating: flat[token * shape.valueHeads + head], count: shape.keyDim)
                    case .perChannel: logs = steps[head][token]
                    case .discretized:
                        let raw = flat[token * shape.valueHeads + head] + Double(biases[head])
                        size = ReferenceLinearRecurrence.softplus(raw)
                        (error, skip) = (ReferenceLinearRecurrence.stepError(raw), Double(skips[head]))
                        logs = Array(repeating: size * Double(rates[head]), count: shape.keyDim)
                    }
                    let (output, bound) = oracle.step(
                        query: queries[keyHead][token], key: keys[keyHead][token], value: values[token], logDecay: logs,
                        stepSize: size, stepError: error, scale: Double(scale), skip: skip)
                    outputs.append(output)
                    bounds.append(bound)
                }
                result.states[[sequence, head]] = (oracle.state, oracle.stateBound)
                start += length
            }
            result.outputs.append((outputs, bounds))
        }
        return result
    }

    struct Expected {
        var outputs: [(values: [[Double]], bounds: [[Double]])] = []
        var states: [[Int]: (values: [[Double]], bounds: [[Double]])] = [:]

        /// One of the outputs and the final states beyond its bound, or nil.
        func violation(_ output: Tensor<Float>, _ states: RecurrentStates) throws -> String? {
            for (head, expected) in outputs.enumerated() {
                if let text = Self.compare(try output.view().rows(head: head), expected) { return "head \(head), \(text)" }
            }
            for (place, expected) in self.states {
                let state = try states.state(of: place[0])
                let rows = try state.view().rows(head: place[1])
                if let text = Self.compare(rows, expected) { return "state \(place), \(text)" }
            }
            return nil
        }

        private static func compare(_ rows: [[Double]], _ expected: (values: [[Double]], bounds: [[Double]])) -> String? {
            for (row, actual) in rows.enumerated() {
                for (channel, value) in actual.enumerated() {
                    let (wanted, bound) = (expected.values[row][channel], expected.bounds[row][channel])
                    if !(abs(value - wanted) <= bound) {
                        return "[\(row), \(channel)]: \(value) for \(wanted), bound \(bound)"
                    }
                }
            }
            return nil
        }
    }
}

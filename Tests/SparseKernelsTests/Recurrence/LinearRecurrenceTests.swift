import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Linear recurrences and state-space duality against the oracle, and the ways to cut the same tokens.
@Suite("Linear recurrences")
struct LinearRecurrenceTests {
    static let shapes: [(Int, Int, Int, Int)] = [
        (1, 1, 1, 1), (2, 4, 8, 12), (1, 3, 16, 24), (2, 2, 33, 17), (1, 2, 19, 64), (1, 1, 40, 112),
        // Tasks of several heads.
        (1, 33, 3, 5),
    ]

    @Test("agree with the oracle at all sizes", arguments: InstructionSet.available, RecurrenceProblem.Decay.allCases)
    func agree(_ set: InstructionSet, _ decay: RecurrenceProblem.Decay) throws {
        for (index, shape) in Self.shapes.enumerated() {
            let shape = try RecurrenceShape(keyHeads: shape.0, valueHeads: shape.1, keyDim: shape.2, valueDim: shape.3)
            let problem = try RecurrenceProblem(shape, decay, lengths: [21, 1, 0, 67], seed: UInt64(index) * 100 + 1)
            let expected = try problem.expected()
            for form in [RecurrenceForm.stepwise, .chunked(1), .chunked(7), .chunked(33), .automatic] {
                let states = try problem.states()
                let output = try problem.run(form, set, states: states)
                if let violation = try expected.violation(output, states) {
                    Issue.record("\(set), \(decay), \(shape), \(form): \(violation)")
                }
            }
        }
    }

    @Test("agree with the oracle around the length of a chunk", arguments: InstructionSet.available)
    func lengths(_ set: InstructionSet) throws {
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 2, keyDim: 12, valueDim: 20)
        for decay in RecurrenceProblem.Decay.allCases {
            for chunk in [8, 32] {
                for length in [2, 3, chunk - 1, chunk, chunk + 1, 2 * chunk - 1, 2 * chunk + 1] {
                    let problem = try RecurrenceProblem(shape, decay, lengths: [length], seed: UInt64(length))
                    let states = try problem.states()
                    let output = try problem.run(.chunked(chunk), set, states: states)
                    if let violation = try problem.expected().violation(output, states) {
                        Issue.record("\(set), \(decay), \(length) tokens in chunks of \(chunk): \(violation)")
                    }
                }
            }
        }
    }

    @Test("decays from hardly any to nearly everything stay accurate", arguments: InstructionSet.available)
    func strengths(_ set: InstructionSet) throws {
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 2, keyDim: 16, valueDim: 16)
        for decay in RecurrenceProblem.Decay.allCases {
            for strength: Float in [1e-6, 0.01, 3, 40, 1e4] {
                let problem = try RecurrenceProblem(shape, decay, lengths: [90], decayScale: strength, seed: 9)
                let expected = try problem.expected()
                for form in [RecurrenceForm.automatic, .stepwise] {
                    let states = try problem.states()
                    let output = try problem.run(form, set, states: states)
                    if let violation = try expected.violation(output, states) {
                        Issue.record("\(set), \(decay), \(strength), \(form): \(violation)")
                    }
                }
            }
        }
    }
}

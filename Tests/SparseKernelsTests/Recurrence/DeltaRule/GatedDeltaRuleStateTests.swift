import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// What the state remembers: sequences in parts, rules that a user can state, states of 16 bits.
@Suite("States of the gated delta rule")
struct GatedDeltaRuleStateTests {
    @Test("a prefill, a prefill that continues it and steps are one prefill", arguments: InstructionSet.available)
    func parts(_ set: InstructionSet) throws {
        for decay in GatedDeltaRule.Decay.allCases {
            let operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 2, keyDim: 20, valueDim: 24, tokens: 90, decay: decay)
            let rule = try operands.rule(set)
            let states = try RecurrentStates(slots: 1, shape: operands.shape)
            var outputs: [Tensor<Float>] = []
            for range in [0..<45, 45..<80] + (80..<90).map({ $0..<$0 + 1 }) {
                outputs.append(try operands.part(range).run(rule, states: states))
            }
            let joined = try Tensor<Float>([2, 90, 24]) { index in
                let (row, column) = index.quotientAndRemainder(dividingBy: 24)
                let (head, token) = row.quotientAndRemainder(dividingBy: 90)
                if token < 45 { return outputs[0][head, token, column] }
                if token < 80 { return outputs[1][head, token - 45, column] }
                return outputs[token - 78][head, 0, column]
            }
            operands.expect(joined, try states.state(of: 0), operands.expected(rule), "\(set), \(decay)")
        }
    }

    @Test("sequences of a batch do not see each other, and empty ones keep their state", arguments: InstructionSet.available)
    func batches(_ set: InstructionSet) throws {
        let operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 2, keyDim: 12, valueDim: 16, tokens: 75)
        let rule = try operands.rule(set)
        let lengths = [40, 0, 1, 34]
        let batch = try PackedSequences(lengths: lengths, slots: [3, 1, 4, 0])
        let states = try RecurrentStates(slots: 5, shape: operands.shape)
        let kept = try Tensor<Float>.normal([2, 12, 16], seed: 30)
        for slot in 0..<5 { try states.setState(kept, of: slot) }
        let output = try operands.run(rule, batch, states: states)
        var first = 0
        for (sequence, length) in lengths.enumerated() {
            let part = try operands.part(first..<first + length)
            let alone = try RecurrentStates(slots: 1, shape: operands.shape)
            try alone.setState(kept, of: 0)
            let expected = try part.run(rule, states: alone)
            let actual = try Tensor<Float>(expected.shape) { index in
                let (row, column) = index.quotientAndRemainder(dividingBy: 16)
                return output[row / length, first + row % length, column]
            }
            #expect(actual.bits == expected.bits, "\(set), sequence \(sequence)")
            #expect(try states.state(of: batch.slots[sequence]).bits == alone.state(of: 0).bits)
            first += length
        }
        #expect(try states.state(of: 2).bits == kept.bits)
    }

    @Test("with β = 0 the state only decays", arguments: InstructionSet.available, [RecurrenceForm.stepwise, .chunked(32)])
    func nothingWritten(_ set: InstructionSet, _ form: RecurrenceForm) throws {
        var operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 1, keyDim: 9, valueDim: 7, tokens: 40)
        operands.beta = try Tensor<Float>(zeros: [40, 1])
        let rule = try operands.rule(form, set)
        let states = try RecurrentStates(slots: 1, shape: operands.shape)
        let start = try Tensor<Float>.normal([1, 9, 7], seed: 4)
        try states.setState(start, of: 0)
        _ = try operands.run(rule, states: states)
        let end = try states.state(of: 0)
        let factor = Float(exp((0..<40).reduce(0.0) { $0 + Double(operands.logDecay[flat: $1]) }))
        for index in 0..<start.count {
            #expect(abs(end[flat: index] - start[flat: index] * factor) <= 1e-5 * abs(start[flat: index]))
        }
        // Without decays, too, nothing changes at all.
        operands.logDecay = try Tensor<Float>(zeros: [40, 1])
        try states.setState(start, of: 0)
        _ = try operands.run(rule, states: states)
        #expect(try states.state(of: 0).bits == start.bits, "\(set), \(form)")
    }

    @Test("with β = 1 a unit key reads the value that was written last", arguments: InstructionSet.available)
    func associativeMemory(_ set: InstructionSet) throws {
        // 24 writes to 8 places: every key is an axis, so that writes to different places do not disturb each other.
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 1, keyDim: 8, valueDim: 5)
        let places = (0..<24).map { ($0 * 5 + $0 / 7) % 8 }
        let key = try Tensor<Float>([1, 24, 8]) { places[$0 / 8] == $0 % 8 ? 1 : 0 }
        let value = try Tensor<Float>([1, 24, 5]) { Float($0 * 37 % 64) }
        let ones = try Tensor<Float>([24, 1]) { _ in 1 }
        for form in [RecurrenceForm.stepwise, .chunked(8), .chunked(32)] {
            let rule = try GatedDeltaRule(
                shape, decay: .none, scale: 1, normalizesQueriesAndKeys: false, form: form, instructionSet: set)
            let states = try RecurrentStates(slots: 1, shape: shape)
            var output = try Tensor<Float>(zeros: [1, 24, 5])
            try rule.run(
                query: key, key: key, value: value, beta: ones, into: &output, batch: PackedSequences(lengths: [24]),
                states: states, on: .serial)
            // A token reads what it has just written. Values are integers, so that the differences are exact.
            #expect(output.elements == value.elements, "\(set), \(form)")
            let state = try states.state(of: 0)
            for place in 0..<8 {
                let last = try #require(places.lastIndex(of: place))
                #expect((0..<5).allSatisfy { state[0, place, $0] == value[0, last, $0] }, "\(set), \(form), place \(place)")
            }
        }
    }

    @Test("a decay of 0 forgets what was before, and nothing else", arguments: InstructionSet.available)
    func forgetting(_ set: InstructionSet) throws {
        for decay in [GatedDeltaRule.Decay.perToken, .perChannel] {
            var operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 1, tokens: 50, decay: decay)
            var decays = operands.logDecay
            let width = decay == .perChannel ? 16 : 1
            for index in 0..<width { decays[flat: 20 * width + index] = -.infinity }
            operands.logDecay = decays
            for form in [RecurrenceForm.stepwise, .chunked(32)] {
                let rule = try operands.rule(form, set)
                let states = try RecurrentStates(slots: 1, shape: operands.shape)
                let whole = try operands.run(rule, states: states)
                let part = try operands.part(20..<50)
                let afterwards = try RecurrentStates(slots: 1, shape: operands.shape)
                _ = try part.run(rule, states: afterwards)
                part.expect(
                    try Tensor<Float>([1, 30, 16]) { whole[flat: 20 * 16 + $0] }, try states.state(of: 0), part.expected(rule),
                    "\(set), \(form), \(decay)")
            }
        }
    }

    @Test("what is not finite reaches no earlier token and no other column", arguments: InstructionSet.available)
    func notFinite(_ set: InstructionSet) throws {
        for decay in GatedDeltaRule.Decay.allCases {
            let clean = try DeltaRuleCase(keyHeads: 1, valueHeads: 2, keyDim: 12, valueDim: 20, tokens: 45, decay: decay)
            for form in [RecurrenceForm.stepwise, .chunked(32)] {
                let rule = try clean.rule(form, set)
                let expected = try clean.run(rule, states: RecurrentStates(slots: 1, shape: clean.shape))
                func check(_ label: String, from token: Int, _ change: (inout DeltaRuleCase) -> Void) throws {
                    var operands = clean
                    change(&operands)
                    let output = try operands.run(rule, states: RecurrentStates(slots: 1, shape: clean.shape))
                    for head in 0..<2 {
                        for t in 0..<token {
                            for x in 0..<20 where output[head, t, x].bitPattern != expected[head, t, x].bitPattern {
                                Issue.record("\(set), \(form), \(decay), \(label): token \(t) sees a later one")
                                return
                            }
                        }
                    }
                    #expect((0..<40).contains { output[flat: (($0 / 20) * 45 + token) * 20 + $0 % 20].isNaN }, "\(label)")
                }
                try check("query", from: 5) { $0.query[0, 5, 3] = .nan }
                try check("key", from: 13) { $0.key[0, 13, 3] = .nan }
                try check("β", from: 20) { $0.beta[flat: 20 * 2] = .nan }
                if decay != .none {
                    let width = decay == .perChannel ? 12 : 2
                    try check("decay", from: 33) { $0.logDecay[flat: 33 * width] = .nan }
                }
                var operands = clean
                operands.value[1, 10, 7] = .infinity
                let output = try operands.run(rule, states: RecurrentStates(slots: 1, shape: clean.shape))
                for index in 0..<output.count {
                    let (row, column) = index.quotientAndRemainder(dividingBy: 20)
                    let sees = row / 45 == 1 && row % 45 >= 10 && column == 7
                    #expect(sees || output[flat: index].bitPattern == expected[flat: index].bitPattern)
                    if sees { #expect(!output[flat: index].isFinite) }
                }
            }
        }
    }

    @Test("states of 16 bits drift as their rounding lets them", arguments: InstructionSet.available)
    func drift(_ set: InstructionSet) throws {
        let operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 1, keyDim: 32, valueDim: 40, tokens: 200, strength: 0.05)
        for form in [RecurrenceForm.stepwise, .chunked(32)] {
            let rule = try operands.rule(form, set)
            let exact = try RecurrentStates(slots: 1, shape: operands.shape)
            let short = try RecurrentStates(slots: 1, shape: operands.shape, format: .bfloat16)
            let expected = try operands.run(rule, states: exact)
            let output = try operands.run(rule, states: short)
            func distance(_ a: Tensor<Float>, _ b: Tensor<Float>) -> Double {
                let squares = zip(a.elements, b.elements).reduce(into: (0.0, 0.0)) {
                    $0.0 += Double(($1.0 - $1.1) * ($1.0 - $1.1))
                    $0.1 += Double($1.1 * $1.1)
                }
                return (squares.0 / squares.1).squareRoot()
            }
            // Rounding is by 2⁻⁹ at most and 2⁻⁹/√3 in the mean. Token by token the errors of about 20 tokens, what a decay of
            // e^−0.05·0.8 remembers, add up; a chunked call rounds once.
            let (outputs, states) = (distance(output, expected), distance(try short.state(of: 0), try exact.state(of: 0)))
            #expect(outputs < (form == .stepwise ? 6 * 0x1p-9 : 1e-6), "\(set), \(form): \(outputs)")
            #expect(states > 0x1p-12 && states < (form == .stepwise ? 6 * 0x1p-9 : 0x1p-9), "\(set), \(form): \(states)")
        }
    }
}

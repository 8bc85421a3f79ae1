import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Errors of the gated delta rule")
struct GatedDeltaRuleErrorsTests {
    @Test("options out of range")
    func options() throws {
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 1, keyDim: 4, valueDim: 4)
        for chunk in [0, -1, 257] {
            expectError(.invalidArgument, "form", containing: "1 to 256", "\(chunk)") {
                _ = try GatedDeltaRule(shape, decay: .none, normalizesQueriesAndKeys: true, form: .chunked(chunk))
            }
        }
        for scale: Float in [.infinity, .nan] {
            expectError(.invalidArgument, "scale", containing: "finite", "\(scale)") {
                _ = try GatedDeltaRule(shape, decay: .none, scale: scale, normalizesQueriesAndKeys: true)
            }
        }
        #expect(try GatedDeltaRule(shape, decay: .none, normalizesQueriesAndKeys: true).scale == 0.5)
    }

    @Test("operands that disagree with the plan write nothing")
    func operands() throws {
        let operands = try DeltaRuleCase(keyHeads: 2, valueHeads: 4, keyDim: 6, valueDim: 8, tokens: 5)
        let rule = try operands.rule(.portable)
        let states = try RecurrentStates(slots: 2, shape: operands.shape)
        var output = try Tensor<Float>([4, 5, 8]) { _ in 7 }
        let batch = try PackedSequences(lengths: [5])
        func attempt(
            query: [Int] = [2, 5, 6], key: [Int] = [2, 5, 6], value: [Int] = [4, 5, 8], logDecay: [Int] = [5, 4],
            beta: [Int] = [5, 4], batch: PackedSequences? = nil, states other: RecurrentStates? = nil
        ) throws {
            try rule.run(
                query: Tensor<Float>(zeros: query), key: Tensor<Float>(zeros: key), value: Tensor<Float>(zeros: value),
                logDecay: Tensor<Float>(zeros: logDecay), beta: Tensor<Float>(zeros: beta), into: &output,
                batch: batch ?? PackedSequences(lengths: [5]), states: other ?? states)
        }
        expectError(.invalidShape, "query", containing: "5", "4") { try attempt(query: [2, 4, 6]) }
        expectError(.invalidShape, "query", containing: "2", "3") { try attempt(query: [3, 5, 6]) }
        expectError(.invalidShape, "key", containing: "6", "7") { try attempt(key: [2, 5, 7]) }
        expectError(.invalidShape, "value", containing: "4", "2") { try attempt(value: [2, 5, 8]) }
        expectError(.invalidShape, "logDecay", containing: "5 × 4", "4 × 5") { try attempt(logDecay: [4, 5]) }
        expectError(.invalidShape, "beta", containing: "5 × 4", "5 × 2") { try attempt(beta: [5, 2]) }
        expectError(.invalidArgument, "logDecay", containing: "matrix", "tensor") { try attempt(logDecay: [4, 5, 6]) }
        expectError(.invalidArgument, "slots[0]", containing: "1", "2") {
            try attempt(batch: PackedSequences(lengths: [5], slots: [2]))
        }
        expectError(.invalidShape, "states", containing: "4 × 6 × 8", "4 × 8 × 6") {
            try attempt(states: RecurrentStates(slots: 2, heads: 4, rows: 8, columns: 6))
        }
        expectError(.invalidArgument, "logDecay", containing: "matrix", "no operand") {
            try rule.run(
                query: operands.query, key: operands.key, value: operands.value, beta: operands.beta, into: &output,
                batch: batch, states: states)
        }
        var narrow = try Tensor<Float>(zeros: [4, 5, 7])
        expectError(.invalidShape, "output", containing: "8", "7") {
            try rule.run(
                query: operands.query, key: operands.key, value: operands.value, logDecay: operands.logDecay,
                beta: operands.beta, into: &narrow, batch: batch, states: states)
        }
        #expect(output.elements.allSatisfy { $0 == 7 })
        #expect(try states.state(of: 0).elements.allSatisfy { $0 == 0 })
    }

    @Test("a batch without tokens changes nothing")
    func empty() throws {
        let operands = try DeltaRuleCase(tokens: 0)
        let rule = try operands.rule(.portable)
        let states = try RecurrentStates(slots: 1, shape: operands.shape)
        #expect(try operands.run(rule, PackedSequences(lengths: [0]), states: states).count == 0)
        #expect(try operands.run(rule, PackedSequences(lengths: []), states: states).count == 0)
        #expect(try states.state(of: 0).elements.allSatisfy { $0 == 0 })
    }
}

import SparseKernels
import Testing

/// The snippets of Docs/Operators/GatedDeltaRule.md.
@Suite("Snippets: GatedDeltaRule")
struct GatedDeltaRuleSnippets {
    @Test("a prompt")
    func prompt() throws {
        let shape = try RecurrenceShape(keyHeads: 2, valueHeads: 4, keyDim: 16, valueDim: 24)
        let tokens = 50
        let q = try Tensor<Float>([2, tokens, 16]) { Float($0 % 7) - 3 }
        let k = try Tensor<Float>([2, tokens, 16]) { Float($0 % 5) - 2 }
        let v = try Tensor<Float>([4, tokens, 24]) { Float($0 % 11) - 5 }
        let g = try Tensor<Float>([tokens, 4]) { -Float($0 % 3) * 0.1 }
        let beta = try Tensor<Float>([tokens, 4]) { _ in 0.5 }

        // q, k: [keyHeads, tokens, keyDim]; v: [valueHeads, tokens, valueDim]; g, beta: [tokens, valueHeads].
        let rule = try GatedDeltaRule(shape, decay: .perToken, normalizesQueriesAndKeys: true)
        let states = try RecurrentStates(slots: 1, shape: shape)
        var y = try Tensor<Float>(zeros: [shape.valueHeads, tokens, shape.valueDim])
        try rule.run(
            query: q, key: k, value: v, logDecay: g, beta: beta, into: &y, batch: PackedSequences(lengths: [tokens]),
            states: states)

        #expect(y.elements.allSatisfy(\.isFinite) && y.elements.contains { $0 != 0 })
    }

    @Test("a step of two sequences")
    func step() throws {
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 1, keyDim: 4, valueDim: 3)
        let rule = try GatedDeltaRule(shape, decay: .perToken, normalizesQueriesAndKeys: true)
        let states = try RecurrentStates(slots: 3, shape: shape)
        let q = try Tensor<Float>([1, 2, 4]) { _ in 1 }
        let k = try Tensor<Float>([1, 2, 4]) { _ in 1 }
        let v = try Tensor<Float>([1, 2, 3]) { Float($0) }
        let g = try Tensor<Float>([2, 1]) { _ in 0 }
        let beta = try Tensor<Float>([2, 1]) { _ in 1 }
        var y = try Tensor<Float>(zeros: [1, 2, 3])

        // Sequence 0 has its state in slot 2, sequence 1 in slot 0.
        let step = try PackedSequences(stepOf: [2, 0])
        try rule.run(
            query: q, key: k, value: v, logDecay: g, beta: beta, into: &y, batch: step, states: states)

        // q = k, of length 1 but for ε, so that y is v times the scale, which is ½.
        #expect(y.elements.enumerated().allSatisfy { abs($0.element - Float($0.offset) / 2) < 1e-5 })
        #expect(try states.state(of: 1).elements.allSatisfy { $0 == 0 })
    }

    @Test("a memory")
    func memory() throws {
        let shape = try RecurrenceShape(keyHeads: 1, valueHeads: 1, keyDim: 4, valueDim: 3)
        let states = try RecurrentStates(slots: 1, shape: shape)
        let key = try Tensor<Float>([1, 2, 4]) { $0 % 4 == 2 ? 1 : 0 }
        let value = try Tensor<Float>([1, 2, 3]) { Float($0) }
        let ones = try Tensor<Float>([2, 1]) { _ in 1 }
        var read = try Tensor<Float>(zeros: [1, 2, 3])

        // β = 1 and no decay: the value of the key is replaced.
        let memory = try GatedDeltaRule(shape, decay: .none, scale: 1, normalizesQueriesAndKeys: false)
        try memory.run(
            query: key, key: key, value: value, beta: ones, into: &read, batch: PackedSequences(lengths: [2]), states: states)

        #expect(read == value)
        #expect(try (0..<3).allSatisfy { try states.state(of: 0)[0, 2, $0] == Float(3 + $0) })
    }
}

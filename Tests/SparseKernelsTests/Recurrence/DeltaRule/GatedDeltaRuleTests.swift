import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Gated delta rule")
struct GatedDeltaRuleTests {
    static let forms: [RecurrenceForm] = [.stepwise, .chunked(1), .chunked(7), .chunked(16), .chunked(32), .chunked(64)]

    static func check(_ operands: DeltaRuleCase, _ form: RecurrenceForm, _ set: InstructionSet, _ label: String) throws {
        let rule = try operands.rule(form, set)
        let states = try RecurrentStates(slots: 1, shape: operands.shape)
        let start = try Tensor<Float>.normal(
            [operands.shape.valueHeads, operands.shape.keyDim, operands.shape.valueDim], seed: 9)
        try states.setState(start, of: 0)
        let output = try operands.run(rule, states: states)
        operands.expect(
            output, try states.state(of: 0), operands.expected(rule, from: start),
            "\(set), \(form), \(operands.decay), \(label)")
    }

    @Test("agrees with the oracle at awkward lengths", arguments: InstructionSet.available, GatedDeltaRule.Decay.allCases)
    func lengths(_ set: InstructionSet, _ decay: GatedDeltaRule.Decay) throws {
        for tokens in [1, 2, 7, 8, 9, 31, 32, 33, 65, 100] {
            let operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 2, tokens: tokens, decay: decay)
            for form in Self.forms { try Self.check(operands, form, set, "\(tokens) tokens") }
        }
    }

    @Test("agrees with the oracle at awkward widths", arguments: InstructionSet.available, GatedDeltaRule.Decay.allCases)
    func widths(_ set: InstructionSet, _ decay: GatedDeltaRule.Decay) throws {
        for (keyDim, valueDim) in [(1, 1), (3, 5), (12, 20), (17, 31), (24, 48), (33, 65), (40, 130)] {
            let operands = try DeltaRuleCase(
                keyHeads: 1, valueHeads: 1, keyDim: keyDim, valueDim: valueDim, tokens: 41, decay: decay)
            for form in [RecurrenceForm.stepwise, .chunked(32)] {
                try Self.check(operands, form, set, "\(keyDim) × \(valueDim)")
            }
        }
    }

    @Test("value heads read the key head of their group", arguments: InstructionSet.available, GatedDeltaRule.Decay.allCases)
    func groups(_ set: InstructionSet, _ decay: GatedDeltaRule.Decay) throws {
        for (keyHeads, valueHeads) in [(1, 5), (2, 6), (3, 3)] {
            let operands = try DeltaRuleCase(
                keyHeads: keyHeads, valueHeads: valueHeads, keyDim: 8, valueDim: 12, tokens: 35, decay: decay)
            for form in [RecurrenceForm.stepwise, .chunked(32)] {
                try Self.check(operands, form, set, "\(keyHeads) and \(valueHeads) heads")
            }
        }
    }

    @Test(
        "strong, absent and positive decays", arguments: InstructionSet.available, [GatedDeltaRule.Decay.perToken, .perChannel])
    func strongDecays(_ set: InstructionSet, _ decay: GatedDeltaRule.Decay) throws {
        for strength: Float in [0, 3, 40, 1e4, .infinity] {
            var operands = try DeltaRuleCase(
                keyHeads: 1, valueHeads: 1, keyDim: 12, valueDim: 8, tokens: 70, decay: decay, strength: 0.02)
            // Every fifth logarithm is strong, and the first is a decay above 1, which counts as none.
            var decays = operands.logDecay
            for index in stride(from: 0, to: decays.count, by: 5) { decays[flat: index] = -strength }
            decays[flat: 0] = 2
            operands.logDecay = decays
            for form in [RecurrenceForm.stepwise, .chunked(32), .chunked(64)] {
                try Self.check(operands, form, set, "−\(strength)")
            }
        }
    }

    @Test("16-bit operands are those numbers, and outputs are rounded once", arguments: InstructionSet.available)
    func types(_ set: InstructionSet) throws {
        var operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 2, keyDim: 12, valueDim: 20, tokens: 37)
        let (q, k) = (operands.query.converted(to: BFloat16.self), operands.key.converted(to: BFloat16.self))
        let v = operands.value.converted(to: BFloat16.self)
        let (g, b) = (operands.logDecay.converted(to: Float16.self), operands.beta.converted(to: BFloat16.self))
        operands.query = q.converted(to: Float.self)
        operands.key = k.converted(to: Float.self)
        operands.value = v.converted(to: Float.self)
        operands.logDecay = g.converted(to: Float.self)
        operands.beta = b.converted(to: Float.self)
        for form in [RecurrenceForm.stepwise, .chunked(32)] {
            let rule = try operands.rule(form, set)
            let states = try RecurrentStates(slots: 2, shape: operands.shape)
            let expected = try operands.run(rule, states: states)
            let batch = try PackedSequences(lengths: [37], slots: [1])
            var half = try Tensor<Float16>(zeros: expected.shape)
            try rule.run(
                query: q, key: k, value: v, logDecay: g, beta: b, into: &half, batch: batch, states: states, on: .serial)
            #expect(half.bits == expected.converted(to: Float16.self).bits, "\(set), \(form)")
            #expect(try states.state(of: 1).bits == states.state(of: 0).bits)
        }
    }

    @Test("strided views have the bits of adjacent ones", arguments: InstructionSet.available, GatedDeltaRule.Decay.allCases)
    func strides(_ set: InstructionSet, _ decay: GatedDeltaRule.Decay) throws {
        let operands = try DeltaRuleCase(keyHeads: 2, valueHeads: 4, keyDim: 12, valueDim: 20, tokens: 37, decay: decay)
        let shape = operands.shape
        for form in [RecurrenceForm.stepwise, .chunked(32)] {
            let rule = try operands.rule(form, set)
            let states = try RecurrentStates(slots: 2, shape: shape)
            let expected = try operands.run(rule, states: states)
            // Heads side by side in rows of tokens, with channels of others between them.
            func spread(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
                let (heads, channels) = (tensor.shape[0], tensor.shape[2])
                let width = heads * (channels + 3) + 5
                return try Tensor<Float>([37, width]) { index in
                    let (token, column) = index.quotientAndRemainder(dividingBy: width)
                    let (head, channel) = column.quotientAndRemainder(dividingBy: channels + 3)
                    return head < heads && channel < channels ? tensor[head, token, channel] : .nan
                }
            }
            func geometry(_ heads: Int, _ channels: Int) throws -> TensorGeometry {
                try TensorGeometry(
                    heads: heads, tokens: 37, channels: channels, headStride: channels + 3,
                    tokenStride: heads * (channels + 3) + 5)
            }
            let (q, k, v) = (try spread(operands.query), try spread(operands.key), try spread(operands.value))
            let rows = try Tensor<Float>([37, 7]) { $0 % 7 < 4 ? operands.beta[flat: $0 / 7 * 4 + $0 % 7] : .nan }
            let g =
                decay == .perChannel
                ? try spread(operands.logDecay)
                : try Tensor<Float>([37, 7]) { $0 % 7 < 4 ? operands.logDecay[flat: $0 / 7 * 4 + $0 % 7] : .nan }
            var y = try Tensor<Float>([37, 4 * 23 + 5]) { _ in 7 }
            let batch = try PackedSequences(lengths: [37], slots: [1])
            let query = try TensorView(q.span, geometry: geometry(2, 12))
            let key = try TensorView(k.span, geometry: geometry(2, 12))
            let value = try TensorView(v.span, geometry: geometry(4, 20))
            let beta = try MatrixView(rows.span, rows: 37, columns: 4, rowStride: 7)
            do {
                let output = try MutableTensorView(y.mutableSpan, geometry: geometry(4, 20))
                switch decay {
                case .none:
                    try rule.run(
                        query: query, key: key, value: value, beta: beta, into: output, batch: batch, states: states,
                        on: .serial)
                case .perToken:
                    let decays = try MatrixView(g.span, rows: 37, columns: 4, rowStride: 7)
                    try rule.run(
                        query: query, key: key, value: value, logDecay: decays, beta: beta, into: output, batch: batch,
                        states: states, on: .serial)
                case .perChannel:
                    let decays = try TensorView(g.span, geometry: geometry(4, 12))
                    try rule.run(
                        query: query, key: key, value: value, logDecay: decays, beta: beta, into: output, batch: batch,
                        states: states, on: .serial)
                }
            }
            let wanted = try Tensor<Float>(y.shape) { index in
                let (token, column) = index.quotientAndRemainder(dividingBy: 4 * 23 + 5)
                let (head, channel) = column.quotientAndRemainder(dividingBy: 23)
                return head < 4 && channel < 20 ? expected[head, token, channel] : 7
            }
            #expect(y.bits == wanted.bits, "\(set), \(form), \(decay)")
            #expect(try states.state(of: 1).bits == states.state(of: 0).bits)
        }
    }

    @Test("has equal bits on 1, 2 and 7 threads, and in any batch", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        for decay in GatedDeltaRule.Decay.allCases {
            // Enough work for several threads, in sequences that are cut differently when alone.
            let operands = try DeltaRuleCase(keyHeads: 1, valueHeads: 3, keyDim: 64, valueDim: 100, tokens: 150, decay: decay)
            let rule = try operands.rule(.chunked(32), set)
            let batch = try PackedSequences(lengths: [90, 1, 0, 59], slots: [2, 0, 3, 1])
            var bits: [[UInt32]] = []
            for threads in [1, 2, 7] {
                let states = try RecurrentStates(slots: 4, shape: operands.shape)
                let output = try operands.run(rule, batch, states: states, on: WorkerPool(threads: threads))
                bits.append(try output.bits + (0..<4).flatMap { try states.state(of: $0).bits })
            }
            #expect(bits[0] == bits[1] && bits[0] == bits[2], "\(set), \(decay)")
            let states = try RecurrentStates(slots: 1, shape: operands.shape)
            let alone = try operands.part(91..<150).run(rule, states: states)
            let packed = try Tensor<Float>(alone.shape) { index in
                let (row, column) = index.quotientAndRemainder(dividingBy: 100)
                return Float(bitPattern: bits[0][(row / 59 * 150 + 91 + row % 59) * 100 + column])
            }
            #expect(packed.bits == alone.bits, "\(set), \(decay)")
        }
    }
}

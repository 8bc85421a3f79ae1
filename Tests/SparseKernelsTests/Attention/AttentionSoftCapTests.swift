import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Soft caps far from 1, where the quotient of scale and cap would underflow or overflow.
@Suite("Soft caps of any size")
struct AttentionSoftCapTests {
    static func shape() throws -> AttentionShape {
        try AttentionShape(queryLength: 50, keyLength: 140, queryHeads: 2, kvHeads: 1, headDim: 12, valueDim: 9)
    }

    @Test(
        "a cap far above the scores changes nothing", arguments: InstructionSet.available,
        [1e8, 1e15, 1e30, 1e38, 3e38, Float.greatestFiniteMagnitude])
    func large(_ set: InstructionSet, _ cap: Float) throws {
        let shape = try Self.shape()
        let operands = try BlockSparseOperands(shape)
        for scale in [nil, Float(1e-3), 8] {
            let (plain, capped) = (
                ScoreModifiers(softmaxScale: scale), ScoreModifiers(softmaxScale: scale, logitsSoftCap: cap)
            )
            let plans: [(any AttentionOperator, any AttentionOperator)] = try [
                (
                    DenseAttention(shape, mask: .causal, modifiers: plain, instructionSet: set),
                    DenseAttention(shape, mask: .causal, modifiers: capped, instructionSet: set)
                ),
                (
                    BlockSparseAttention(
                        shape, heads: [.streaming(sink: 2, local: 50)], isCausal: true, modifiers: plain, instructionSet: set),
                    BlockSparseAttention(
                        shape, heads: [.streaming(sink: 2, local: 50)], isCausal: true, modifiers: capped, instructionSet: set)
                ),
            ]
            for (a, b) in plans {
                let expected = try a(query: operands.query, key: operands.key, value: operands.value)
                let actual = try b(query: operands.query, key: operands.key, value: operands.value)
                #expect(expected.output.bits == actual.output.bits && expected.logSumExp.bits == actual.logSumExp.bits)
            }
        }
    }

    @Test("caps on either side of where Q takes the quotient agree with the oracle", arguments: InstructionSet.available)
    func border(_ set: InstructionSet) throws {
        let shape = try Self.shape()
        let operands = try BlockSparseOperands(shape)
        // At a scale of cap / 8 the scores are in the curved part of tanh.
        for cap in [0x1p-24, 0x1p-23, 0x1p-3, Float(1), 30] {
            let modifiers = ScoreModifiers(softmaxScale: cap / 8, logitsSoftCap: cap)
            let state = try DenseAttention(shape, modifiers: modifiers, instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value)
            try expectMatchesReference(
                state, ReferenceAttention(shape, modifiers: modifiers), query: operands.query, key: operands.key,
                value: operands.value, "\(set), cap \(cap)")
        }
    }

    @Test("a cap near the top of Float bends scores near the top of Float", arguments: InstructionSet.available)
    func largeScores(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 3, keyLength: 3, queryHeads: 1, kvHeads: 1, headDim: 1)
        for (cap, query) in [(Float(3e38), Float(1e38)), (3e38, -3e38), (1e30, 1e31), (0x1p24, 1e7), (0x1p25, 1e7)] {
            let modifiers = ScoreModifiers(softmaxScale: 1, logitsSoftCap: cap)
            let operands = try (
                Tensor<Float>([1, 3, 1], [query, 0, query / 2]), Tensor<Float>([1, 3, 1], [1, 0.5, -1]),
                Tensor<Float>([1, 3, 1], [1, 2, 3])
            )
            let state = try DenseAttention(shape, modifiers: modifiers, instructionSet: set)(
                query: operands.0, key: operands.1, value: operands.2)
            for row in [0, 2] {
                let reference = try ReferenceAttention(shape, modifiers: modifiers).row(
                    head: 0, token: row, query: operands.0.view(), key: operands.1.view(), value: operands.2.view())
                // One key has all of the weight, so that the output is its value and the LSE its score.
                #expect(Double(state.output[flat: row]) == reference.output[0])
                let lse = Double(state.logSumExp[flat: row])
                #expect(abs(lse - reference.logSumExp) <= 5e-7 * abs(reference.logSumExp), "\(set): \(cap), \(lse)")
            }
            #expect(abs(state.output[flat: 1] - 2) < 1e-6)
        }
    }

    @Test(
        "a cap near 0 makes all keys alike", arguments: InstructionSet.available, [1e-10, 1e-38, Float.leastNonzeroMagnitude])
    func small(_ set: InstructionSet, _ cap: Float) throws {
        let shape = try Self.shape()
        let operands = try BlockSparseOperands(shape)
        let state = try DenseAttention(shape, modifiers: ScoreModifiers(logitsSoftCap: cap), instructionSet: set)(
            query: operands.query, key: operands.key, value: operands.value)
        for channel in 0..<9 {
            let mean = (0..<140).reduce(0) { $0 + Double(operands.value[flat: $1 * 9 + channel]) } / 140
            for row in 0..<100 { #expect(abs(Double(state.output[flat: row * 9 + channel]) - mean) < 2e-6, "\(set)") }
        }
    }
}

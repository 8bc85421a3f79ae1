import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Sink logits")
struct SinkLogitTests {
    private let sinks: [Float] = [-2, 3.5, -.infinity, 0.25]

    @Test("dense and sparse attention agree with the oracle", arguments: InstructionSet.available)
    func prefill(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 70, keyLength: 150, queryHeads: 4, kvHeads: 2, headDim: 12, valueDim: 9)
        let operands = try BlockSparseOperands(shape)
        for cap: Float? in [nil, 2] {
            let modifiers = ScoreModifiers(logitsSoftCap: cap, sinkLogits: sinks)
            let reference = ReferenceAttention(shape, mask: .causal, modifiers: modifiers)
            let dense = try DenseAttention(shape, mask: .causal, modifiers: modifiers, instructionSet: set)
            try expectMatchesReference(
                dense(query: operands.query, key: operands.key, value: operands.value), reference, query: operands.query,
                key: operands.key, value: operands.value, "\(set), cap \(String(describing: cap))")
            let patterns: [HeadPattern] = [.dense, .streaming(sink: 4, local: 30)]
            let sparse = try BlockSparseAttention(
                shape, heads: [patterns[0], patterns[1], patterns[1], patterns[0]], isCausal: true, modifiers: modifiers,
                instructionSet: set)
            let state = try sparse(query: operands.query, key: operands.key, value: operands.value)
            for (head, token) in [(1, 0), (1, 69), (2, 40), (3, 17)] {
                let position = token + 80
                let row = try reference.row(
                    head: head, token: token, query: operands.query.view(), key: operands.key.view(),
                    value: operands.value.view(),
                    hides: { j in head == 1 || head == 2 ? j >= 4 && j <= position - 30 : false })
                let bound = AttentionErrorBound(row, headDim: 12, logitsSoftCap: cap)
                #expect(abs(Double(state.logSumExp[head, token]) - row.logSumExp) <= bound.logSumExp)
                for c in 0..<9 { #expect(abs(Double(state.output[head, token, c]) - row.output[c]) <= bound.output) }
            }
        }
    }

    @Test("a sink is a key whose value is 0", arguments: InstructionSet.available)
    func asKey(_ set: InstructionSet) throws {
        // With a query of ones, a key of s in one channel has the logit s.
        let shape = try AttentionShape(queryLength: 1, keyLength: 3, queryHeads: 1, kvHeads: 1, headDim: 1)
        let more = try AttentionShape(queryLength: 1, keyLength: 4, queryHeads: 1, kvHeads: 1, headDim: 1)
        let query = try Tensor<Float>([1, 1, 1], [1])
        for sink in [Float(-30), 0, 1.5, 90] {
            let state = try DenseAttention(
                shape, modifiers: ScoreModifiers(softmaxScale: 1, sinkLogits: [sink]), instructionSet: set)(
                    query: query, key: Tensor<Float>([1, 3, 1], [0.5, -1, 2]), value: Tensor<Float>([1, 3, 1], [1, 2, 3]))
            let expected = try DenseAttention(more, modifiers: ScoreModifiers(softmaxScale: 1), instructionSet: set)(
                query: query, key: Tensor<Float>([1, 4, 1], [0.5, -1, 2, sink]),
                value: Tensor<Float>([1, 4, 1], [1, 2, 3, 0]))
            #expect(abs(state.output[flat: 0] - expected.output[flat: 0]) <= 3e-7 * abs(expected.output[flat: 0]))
            #expect(abs(state.logSumExp[flat: 0] - expected.logSumExp[flat: 0]) <= 1e-6 * max(1, abs(sink)))
        }
    }

    @Test("rows that see no key have output 0 and the sink as LSE; −∞ is no sink", arguments: InstructionSet.available)
    func unseen(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 5, keyLength: 2, queryHeads: 4, kvHeads: 2, headDim: 8)
        let operands = try BlockSparseOperands(shape)
        let state = try DenseAttention(
            shape, mask: .causal, modifiers: ScoreModifiers(sinkLogits: sinks), instructionSet: set)(
                query: operands.query, key: operands.key, value: operands.value)
        let plain = try DenseAttention(shape, mask: .causal, instructionSet: set)(
            query: operands.query, key: operands.key, value: operands.value)
        for head in 0..<4 {
            #expect(state.logSumExp[head, 0] == sinks[head])
            #expect((0..<8).allSatisfy { state.output[head, 0, $0] == 0 })
        }
        #expect((0..<8).allSatisfy { state.output[2, 4, $0] == plain.output[2, 4, $0] })
        #expect(state.logSumExp[2, 4] == plain.logSumExp[2, 4])
    }

    @Test("paged attention agrees with the oracle", arguments: InstructionSet.available, KVFormat.allCases)
    func paged(_ set: InstructionSet, _ format: KVFormat) throws {
        let fixture = try PagedAttentionFixture(format, kvHeads: 2, lengths: [1, 40, 1500])
        let query = try PagedAttentionTests.query(heads: 4, [1, 3, 1])
        let configuration = fixture.cache.configuration
        let attention = try PagedAttention(
            queryHeads: 4, configuration: configuration, modifiers: ScoreModifiers(sinkLogits: sinks), instructionSet: set)
        let plain = try PagedAttention(queryHeads: 4, configuration: configuration, instructionSet: set)
        let state = try attention(
            query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 3, 1])
        let without = try plain(
            query: query, cache: fixture.cache, sequences: fixture.sequences, queryLengths: [1, 3, 1])
        // o' = o·e^LSE / (e^LSE + e^sink): the row of the plain call, which has an oracle of its own, with one term more.
        for head in 0..<4 {
            for token in 0..<5 {
                let lse = Double(without.logSumExp[head, token])
                let sink = Double(sinks[head])
                let top = max(lse, sink)
                let total = exp(lse - top) + (sink == -.infinity ? 0 : exp(sink - top))
                let part = exp(lse - top) / total
                let expected = top + log(total)
                #expect(abs(Double(state.logSumExp[head, token]) - expected) <= 1e-5 * max(1, abs(expected)))
                for c in 0..<configuration.valueDim {
                    let value = part * Double(without.output[head, token, c])
                    #expect(abs(Double(state.output[head, token, c]) - value) <= 1e-5 * max(1, abs(value)))
                }
            }
        }
    }

    @Test("errors")
    func errors() throws {
        let shape = try AttentionShape(queryLength: 1, keyLength: 1, queryHeads: 2, kvHeads: 1, headDim: 1)
        expectError(.invalidShape, "sinkLogits") {
            _ = try DenseAttention(shape, modifiers: ScoreModifiers(sinkLogits: [1]))
        }
        for bad in [Float.infinity, .nan] {
            expectError(.invalidArgument, "sinkLogits[1]") {
                _ = try DenseAttention(shape, modifiers: ScoreModifiers(sinkLogits: [1, bad]))
            }
        }
    }
}

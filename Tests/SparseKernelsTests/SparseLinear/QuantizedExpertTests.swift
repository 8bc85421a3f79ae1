import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Layers of quantised experts have the bits of their experts' own layers, which `QuantizedLinearTests` holds to the oracle.
@Suite("Layer of quantised experts")
struct QuantizedExpertTests {
    static let formats: [(WeightFormat, ActivationFormat)] = {
        let uint4 = try! WeightFormat(.uint4, groupSize: 128)
        return [
            (uint4, .int8PerToken), (uint4, .float), (.svdQuantInt4, .int4), (.svdQuantInt4, .float), (.nvfp4, .fp4),
            (.int8PerChannel, .int8PerToken), (.svdQuantInt4, .uint4(shift: 0.25)),
        ]
    }()

    @Test("bits of the experts' layers", arguments: InstructionSet.available, formats.indices)
    func bits(_ set: InstructionSet, _ index: Int) throws {
        let (format, activation) = Self.formats[index]
        let (width, hidden) = (140, 70)
        for smooths in [false, true] {
            let weights = try QuantizedExperts(
                format, activation, experts: 4, width: width, hidden: hidden, smooths: smooths, set)
            let layer = try ExpertLayer(weights.experts)
            for tokens in [1, 2, 20] {
                let x = try Tensor<Float>.normal([tokens, width], seed: 8)
                let routing = try ExpertRouting.random(tokens: tokens, experts: 4, perToken: 2, idle: [2], seed: 5)
                let y = try layer(x, routing: routing)
                let expected = try composed(
                    x, routing, activation: GatedActivation(.silu, instructionSet: set),
                    gate: weights.gate.map { layer in { try layer($0) } }, up: weights.up.map { layer in { try layer($0) } },
                    down: weights.down.map { layer in { try layer($0) } })
                if set != .portable { #expect(y.bits == expected.bits, "\(set), \(format), \(activation), \(tokens) tokens") }
                for index in 0..<y.count { #expect(abs(y[flat: index] - expected[flat: index]) <= 1e-3) }
                for threads in [1, 2, 7] {
                    var again = try Tensor<Float>(zeros: [tokens, width])
                    try layer.run(x, routing: routing, into: &again, on: WorkerPool(threads: threads))
                    #expect(again.bits == y.bits, "\(threads) threads")
                }
            }
        }
    }

    @Test("a token has the same bits in every batch where weights meet codes", arguments: InstructionSet.available)
    func batches(_ set: InstructionSet) throws {
        let format = try WeightFormat(.uint4, groupSize: 128)
        let weights = try QuantizedExperts(format, .int8PerToken, experts: 4, width: 700, hidden: 600, set)
        let layer = try ExpertLayer(weights.experts)
        let x = try Tensor<Float>.normal([12, 700], seed: 4)
        let routing = try ExpertRouting.random(tokens: 12, experts: 4, perToken: 2, seed: 6)
        let all = try layer(x, routing: routing)
        for token in [0, 5, 11] {
            let part = try ExpertRouting(
                ids: Tensor([1, 2], Array(routing.ids[token * 2..<token * 2 + 2])),
                weights: Tensor([1, 2], Array(routing.weights[token * 2..<token * 2 + 2])), experts: 4)
            let y = try layer(Tensor<Float>([1, 700]) { x[flat: token * 700 + $0] }, routing: part)
            #expect(Array(all.bits[token * 700..<(token + 1) * 700]) == y.bits, "\(set), token \(token)")
        }
    }

    @Test("shared experts of numbers beside quantised ones", arguments: InstructionSet.available)
    func shared(_ set: InstructionSet) throws {
        let weights = try QuantizedExperts(.svdQuantInt4, .int8PerGroup, experts: 3, width: 64, hidden: 64, set)
        let extra = try ExpertProblem<Float16>(experts: 2, width: 64, hidden: 20, seed: 3).experts(set)
        let x = try Tensor<Float>.normal([6, 64], seed: 8)
        let routing = try ExpertRouting.random(tokens: 6, experts: 3, perToken: 2, seed: 5)
        let both = try ExpertLayer(weights.experts, shared: extra)(x, routing: routing)
        let routed = try ExpertLayer(weights.experts)(x, routing: routing)
        let all = try ExpertRouting(
            ids: Tensor([6, 2]) { Int32($0 % 2) }, weights: Tensor([6, 2]) { _ in 1 }, experts: 2)
        let alone = try ExpertLayer(extra)(x, routing: all)
        for index in 0..<both.count {
            let expected = routed[flat: index] + alone[flat: index]
            #expect(abs(both[flat: index] - expected) <= 1e-5 * max(1, abs(expected), abs(alone[flat: index])))
        }
    }
}

import KernelInterface
import SparseKernels
import SparseKernelsReference
import Testing

// Shared by the suites of mixtures of experts.

/// Tensors of some experts, and the layers and oracles made of them.
struct ExpertProblem<W: AttentionElement> {
    let width: Int
    let hidden: Int
    var gate: [Tensor<W>] = []
    var up: [Tensor<W>] = []
    var down: [Tensor<W>] = []

    init(_ type: W.Type = W.self, experts: Int, width: Int, hidden: Int, seed: UInt64) throws {
        (self.width, self.hidden) = (width, hidden)
        for index in 0..<UInt64(experts) {
            gate.append(try Tensor<W>.normal([hidden, width], seed: seed + 3 * index, scale: 0.4))
            up.append(try Tensor<W>.normal([hidden, width], seed: seed + 3 * index + 1, scale: 0.4))
            down.append(try Tensor<W>.normal([width, hidden], seed: seed + 3 * index + 2, scale: 0.4))
        }
    }

    func experts(_ set: InstructionSet?) throws -> [GatedExpert] {
        try gate.indices.map { try GatedExpert(gate: gate[$0], up: up[$0], down: down[$0], instructionSet: set) }
    }

    var references: [ReferenceExperts.Expert] {
        gate.indices.map { ReferenceExperts.Expert(gate: gate[$0], up: up[$0], down: down[$0]) }
    }
}

/// Quantised experts, and the layers that they are made of.
struct QuantizedExperts {
    var gate: [QuantizedLinear] = []
    var up: [QuantizedLinear] = []
    var down: [QuantizedLinear] = []
    var experts: [GatedExpert] = []

    init(
        _ format: WeightFormat, _ activation: ActivationFormat, experts count: Int, width: Int, hidden: Int,
        smooths: Bool = false, _ set: InstructionSet
    ) throws {
        func layer(_ rows: Int, _ columns: Int, _ seed: Int, smooth: Tensor<Float>?) throws -> QuantizedLinear {
            let matrix = try Tensor<Float>.normal([rows, columns], seed: UInt64(seed), scale: 0.4)
            return try QuantizedLinear(
                PackedWeight(WeightQuantizer(format)(matrix), instructionSet: set), activation: activation, smooth: smooth)
        }
        for index in 0..<count {
            // Every expert has factors of its own.
            let smooth = smooths ? try Tensor<Float>([width]) { 0.5 + Float(($0 + index) % 7) / 4 } : nil
            gate.append(try layer(hidden, width, 3 * index + 1, smooth: smooth))
            up.append(try layer(hidden, width, 3 * index + 2, smooth: smooth))
            down.append(try layer(width, hidden, 3 * index + 3, smooth: nil))
            experts.append(try GatedExpert(gate: gate[index], up: up[index], down: down[index]))
        }
    }
}

extension ExpertRouting {
    /// Experts drawn at random, different ones for a token; those in `idle` have no tokens.
    static func random(
        tokens: Int, experts: Int, perToken: Int, idle: Set<Int> = [], seed: UInt64
    ) throws -> ExpertRouting {
        var generator = SplitMix64(seed: seed)
        var (ids, weights): ([Int32], [Float]) = ([], [])
        for _ in 0..<tokens {
            var left = (0..<experts).filter { !idle.contains($0) }
            for _ in 0..<perToken {
                ids.append(Int32(left.remove(at: Int(generator.uniform() * Float(left.count)) % left.count)))
                weights.append(generator.uniform() - 0.25)
            }
        }
        return try ExpertRouting(
            ids: Tensor([tokens, perToken], ids), weights: Tensor([tokens, perToken], weights), experts: experts)
    }
}

/// What a layer stands for: each expert's own layers run on its tokens, in the order of its slots.
func composed<X: AttentionElement>(
    _ x: Tensor<X>, _ routing: ExpertRouting, activation: GatedActivation,
    gate: [(Tensor<X>) throws -> Tensor<Float>], up: [(Tensor<X>) throws -> Tensor<Float>],
    down: [(Tensor<Float>) throws -> Tensor<Float>], shared: Range<Int> = 0..<0
) throws -> Tensor<Float> {
    let (tokens, width, slots) = (x.shape[0], x.shape[1], routing.expertsPerToken)
    func output(_ expert: Int, _ rows: Tensor<X>) throws -> Tensor<Float> {
        let (g, u) = try (gate[expert](rows), up[expert](rows))
        var h = try Tensor<Float>(zeros: g.shape)
        try activation.run(gate: g.matrixView(), up: u.matrixView(), into: h.mutableMatrixView())
        return try down[expert](h)
    }
    var outputs = try Tensor<Float>(zeros: [tokens * slots, width])
    let (sorted, offsets) = (routing.sortedSlots, routing.offsets)
    for expert in 0..<routing.experts where offsets[expert + 1] > offsets[expert] {
        let own = Array(sorted[Int(offsets[expert])..<Int(offsets[expert + 1])])
        let rows = try Tensor<X>([own.count, width]) { x[flat: Int(own[$0 / width]) / slots * width + $0 % width] }
        let result = try output(expert, rows)
        for (row, slot) in own.enumerated() {
            for k in 0..<width { outputs[Int(slot), k] = result[row, k] }
        }
    }
    let extra = try shared.map { try output($0, x) }
    return try Tensor([tokens, width]) { index in
        let (token, k) = index.quotientAndRemainder(dividingBy: width)
        var sum: Float = 0
        for slot in 0..<slots {
            sum = sum.addingProduct(routing.weight(ofToken: token, slot: slot), outputs[token * slots + slot, k])
        }
        for tensor in extra { sum += tensor[token, k] }
        return sum
    }
}

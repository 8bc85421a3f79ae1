import BenchmarkReport
import SparseKernels
import SparseKernelsReference
import SparseKernelsTraining

/// The backward pass of attention: as many query heads as KV heads, and groups of four; full and causal masks.
///
/// Operations are those of the five products over visible pairs, and the roof is that of multiply-adds on the same threads. The baseline
/// is the forward pass, so that the speed is forward time over backward time.
extension ContextualCases {
    static let attentionForward = "forward"

    func attentionGradientGroups() -> [CaseGroup] {
        var groups: [CaseGroup] = []
        for (length, headDim) in isQuick
            ? [(2048, 64)] : [(512, 64), (2048, 64), (8192, 64), (512, 128), (2048, 128), (8192, 128)]
        {
            for (heads, kvHeads) in isQuick || length != 2048 ? [(8, 2)] : [(8, 8), (8, 2)] {
                for mask in [AttentionMask.full, .causal] {
                    // The number of heads gives the longest sequences about the work of the others.
                    let part = length > 4096 ? 4 : 1
                    groups += instructionSets.map {
                        attentionGradient(length, headDim, heads / part, max(1, kvHeads / part), mask, $0)
                    }
                }
            }
        }
        return groups
    }

    private func attentionGradient(
        _ length: Int, _ headDim: Int, _ heads: Int, _ kvHeads: Int, _ mask: AttentionMask, _ set: InstructionSet
    ) -> CaseGroup {
        let shape = try! AttentionShape(
            queryLength: length, keyLength: length, queryHeads: heads, kvHeads: kvHeads, headDim: headDim)
        let plan = try! AttentionGradient(shape, mask: mask, instructionSet: set)
        let products = Double(plan.visiblePairs * headDim)
        return CaseGroup(
            op: "contextual.attention_gradient",
            name: "N \(length) d \(headDim) H \(heads)/\(kvHeads) \(mask.isCausal ? "causal" : "full")",
            amounts: .operations(2 * 5 * products), labels: [Self.attentionForward, "backward"]
        ) { _ in
            let problem = try AttentionGradientProblem(plan, on: pool)
            func variant(_ label: String, _ products: Double, _ body: @escaping () -> Void) -> Variant {
                var variant = Variant(
                    isa: set.name, threads: pool.threads, body: body,
                    verify: {
                        body()
                        return try problem.check()
                    }, baseline: label == Self.attentionForward ? nil : (0, Self.attentionForward),
                    roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }, label: label)
                variant.amounts = .operations(2 * products)
                return variant
            }
            return [
                variant(Self.attentionForward, 2 * products) { problem.forward(on: pool) },
                variant("backward", 5 * products) { problem.backward(on: pool) },
            ]
        }
    }
}

private final class AttentionGradientProblem {
    private let plan: AttentionGradient
    private let attention: DenseAttention
    private let query: Tensor<Float>
    private let key: Tensor<Float>
    private let value: Tensor<Float>
    private let outputGradient: Tensor<Float>
    private let state: AttentionState
    private var output: Tensor<Float>
    private var queryGradient: Tensor<Float>
    private var keyGradient: Tensor<Float>
    private var valueGradient: Tensor<Float>

    init(_ plan: AttentionGradient, on pool: WorkerPool) throws {
        self.plan = plan
        let shape = plan.shape
        attention = try DenseAttention(shape, mask: plan.mask, instructionSet: plan.instructionSet)
        query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: 1)
        key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: 2)
        value = try .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: 3)
        outputGradient = try .normal([shape.queryHeads, shape.queryLength, shape.valueDim], seed: 4)
        state = try attention(query: query, key: key, value: value, on: pool)
        output = state.output
        (queryGradient, keyGradient, valueGradient) = (query, key, value)
        backward(on: pool)
    }

    func forward(on pool: WorkerPool) {
        try! attention.run(query: query, key: key, value: value, into: &output, on: pool)
    }

    func backward(on pool: WorkerPool) {
        try! plan.run(
            query: query, key: key, value: value, state: state, outputGradient: outputGradient, queryGradient: &queryGradient,
            keyGradient: &keyGradient, valueGradient: &valueGradient, on: pool)
    }

    func check() throws -> Verification {
        try plan.check(
            query: query, key: key, value: value, state: state, outputGradient: outputGradient,
            (queryGradient, keyGradient, valueGradient))
    }
}

extension AttentionGradient {
    /// Compares a few rows of the first and the last head with the oracle.
    func check(
        query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>, state: AttentionState, outputGradient: Tensor<Float>,
        _ gradients: (query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>)
    ) throws -> Verification {
        let oracle = ReferenceAttentionGradient(shape, mask: mask)
        var verification = Verification.none
        func compare(_ tensor: Tensor<Float>, _ row: Int, _ expected: ReferenceAttentionGradient.Gradient) {
            let count = expected.values.count
            for channel in 0..<count {
                verification.add(
                    error: abs(Double(tensor[flat: row * count + channel]) - expected.values[channel]),
                    bound: expected.bounds[channel])
            }
        }
        for token in [0, shape.queryLength / 2 + 1, shape.queryLength - 1] {
            for head in [0, shape.queryHeads - 1] {
                compare(
                    gradients.query, head * shape.queryLength + token,
                    try oracle.gradient(
                        ofQuery: token, head: head, query: query, key: key, value: value, state: state,
                        outputGradient: outputGradient))
            }
            let kvHead = shape.kvHeads - 1
            let expected = try oracle.gradients(
                ofKey: token, kvHead: kvHead, query: query, key: key, value: value, state: state,
                outputGradient: outputGradient)
            compare(gradients.key, kvHead * shape.keyLength + token, expected.key)
            compare(gradients.value, kvHead * shape.keyLength + token, expected.value)
        }
        return verification
    }
}

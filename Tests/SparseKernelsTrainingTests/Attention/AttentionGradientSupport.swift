import SparseKernels
import SparseKernelsReference
import SparseKernelsTraining
import Testing

/// Operands of a backward pass, with the output and LSE of the forward pass.
struct AttentionGradientScene {
    let shape: AttentionShape
    let mask: AttentionMask
    var softmaxScale: Float?
    var query: Tensor<Float>
    var key: Tensor<Float>
    var value: Tensor<Float>
    var outputGradient: Tensor<Float>

    init(_ shape: AttentionShape, mask: AttentionMask = .full, softmaxScale: Float? = nil, seed: UInt64 = 1) throws {
        self.shape = shape
        self.mask = mask
        self.softmaxScale = softmaxScale
        query = try .normal([shape.queryHeads, shape.queryLength, shape.headDim], seed: seed)
        key = try .normal([shape.kvHeads, shape.keyLength, shape.headDim], seed: seed + 1)
        value = try .normal([shape.kvHeads, shape.keyLength, shape.valueDim], seed: seed + 2)
        outputGradient = try .normal([shape.queryHeads, shape.queryLength, shape.valueDim], seed: seed + 3)
    }

    func forward(_ set: InstructionSet? = nil) throws -> AttentionState {
        try DenseAttention(shape, mask: mask, modifiers: ScoreModifiers(softmaxScale: softmaxScale), instructionSet: set)(
            query: query, key: key, value: value)
    }

    func plan(_ set: InstructionSet? = nil) throws -> AttentionGradient {
        try AttentionGradient(shape, mask: mask, softmaxScale: softmaxScale, instructionSet: set)
    }

    func gradients(
        _ set: InstructionSet? = nil, state: AttentionState, on pool: WorkerPool = .shared
    ) throws -> AttentionGradient.Gradients {
        try plan(set)(query: query, key: key, value: value, state: state, outputGradient: outputGradient, on: pool)
    }

    func reference(outputError: Double = 0, logSumExpError: Double = 0) throws -> ReferenceAttentionGradient.Result {
        let reference = ReferenceAttentionGradient(shape, mask: mask, softmaxScale: softmaxScale)
        return try reference(
            query: query.view(), key: key.view(), value: value.view(), outputGradient: outputGradient.view(),
            outputError: outputError, logSumExpError: logSumExpError)
    }
}

extension ReferenceAttentionGradient.Result {
    /// Output and LSE, rounded.
    func state(_ shape: AttentionShape) throws -> AttentionState {
        try AttentionState(
            output: Tensor([shape.queryHeads, shape.queryLength, shape.valueDim]) { Float(output[$0]) },
            logSumExp: Tensor([shape.queryHeads, shape.queryLength]) { Float(logSumExp[$0]) })
    }
}

/// Compares gradients with the oracle's under its bounds, and reports the worst element.
func expectAttentionGradients(
    _ actual: AttentionGradient.Gradients, _ expected: ReferenceAttentionGradient.Result, _ label: String,
    sourceLocation: SourceLocation = #_sourceLocation
) {
    for (name, tensor, gradient) in [
        ("query", actual.query, expected.query), ("key", actual.key, expected.key), ("value", actual.value, expected.value),
    ] {
        let elements = tensor.elements
        #expect(elements.count == gradient.values.count, sourceLocation: sourceLocation)
        var worst = (excess: 0.0, index: -1)
        for (index, element) in elements.enumerated() {
            let excess = abs(Double(element) - gradient.values[index]) - gradient.bounds[index]
            if !(excess <= worst.excess) { worst = (excess, index) }
        }
        if worst.index >= 0 {
            let (value, bound) = (gradient.values[worst.index], gradient.bounds[worst.index])
            Issue.record(
                "\(label): gradient of the \(name), element \(worst.index): \(elements[worst.index]), expected \(value) ± \(bound)",
                sourceLocation: sourceLocation)
        }
    }
}

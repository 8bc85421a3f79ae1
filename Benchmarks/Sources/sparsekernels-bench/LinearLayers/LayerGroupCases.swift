import BenchmarkReport
import SparseKernels
import SparseKernelsReference

extension QuantizedGEMMCases {
    /// Query, key and value of a model of 8 billion parameters: three layers one by one, and as a `QuantizedLinearGroup`, which
    /// quantises their input once and has one call of the pool. A step waits for its weights, so caches are emptied before it.
    func layerGroup(tokens: Int) -> CaseGroup {
        let (widths, inFeatures) = ([4096, 1024, 1024], 4096)
        let outFeatures = widths.reduce(0, +)
        let operations = 2 * Double(tokens * outFeatures * inFeatures)
        let labels = [Self.groupBaseline, "group"]
        return CaseGroup(
            op: "quant.product.group", name: "qkv \(outFeatures)×\(inFeatures) M \(tokens) W4A8",
            amounts: .operations(operations, effective: operations), labels: labels
        ) { announce in
            announce("quantising")
            let quantizer = try WeightQuantizer(.svdQuantInt4)
            let weights = try widths.enumerated().map { index, width in
                try quantizer(.normal([width, inFeatures], seed: UInt64(index + 1), scale: 0.02), on: pool)
            }
            let x = try Tensor<Float>.normal([tokens, inFeatures], seed: 9)
            var variants: [Variant] = []
            for set in instructionSets {
                let layers = try weights.map {
                    try QuantizedLinear(PackedWeight($0, instructionSet: set, on: pool), activation: .int8PerToken)
                }
                let outputs = GroupOutputs(try layers.map { try Tensor(zeros: [tokens, $0.outFeatures]) })
                let group = try QuantizedLinearGroup(layers)
                let roof = QuantizedRoof(set, pool)
                let isCold = tokens <= QuantizedRoof.fewTokens
                let bytes = layers.reduce(0) { $0 + $1.weight.byteCount }
                let single = variants.count
                for (label, body) in zip(
                    labels, [{ outputs.runAlone(layers, x, pool) }, { outputs.runTogether(group, x, pool) }])
                {
                    var variant = Variant(
                        isa: set.name, threads: pool.threads, body: body,
                        verify: {
                            outputs.runAlone(layers, x, pool)
                            outputs.runTogether(group, x, pool)
                            return outputs.difference
                        },
                        roof: { roof.rate(operations: operations, weightBytes: isCold ? bytes : nil, isInteger: true) })
                    variant.label = label
                    if isCold {
                        variant.preparation = roof.emptyCaches
                        variant.amounts = [
                            .actualGFLOPS: operations, .effectiveGFLOPS: operations, .weightRate: Double(bytes),
                        ]
                    }
                    if label != labels[0] { variant.baseline = (single, labels[0]) }
                    variants.append(variant)
                }
            }
            return variants
        }
    }

    static var groupBaseline: String { "apart" }
}

/// The outputs of layers one by one, and of their group.
private final class GroupOutputs {
    private var alone: [Tensor<Float>]
    private var together: Tensor<Float>

    init(_ alone: [Tensor<Float>]) {
        self.alone = alone
        together = try! Tensor(zeros: [alone[0].shape[0], alone.reduce(0) { $0 + $1.shape[1] }])
    }

    // Shapes agree by construction, so no product can throw.

    func runAlone(_ layers: [QuantizedLinear], _ x: Tensor<Float>, _ pool: WorkerPool) {
        for index in layers.indices { try! layers[index].run(x, into: &alone[index], on: pool) }
    }

    func runTogether(_ group: QuantizedLinearGroup, _ x: Tensor<Float>, _ pool: WorkerPool) {
        try! group.run(x, into: &together, on: pool)
    }

    /// A group has the bits of its layers.
    var difference: Verification {
        var verification = Verification.none
        for row in 0..<together.shape[0] {
            var column = 0
            for part in alone {
                for index in 0..<part.shape[1] {
                    verification.add(error: Double(abs(part[row, index] - together[row, column + index])), bound: 0)
                }
                column += part.shape[1]
            }
        }
        return verification
    }
}

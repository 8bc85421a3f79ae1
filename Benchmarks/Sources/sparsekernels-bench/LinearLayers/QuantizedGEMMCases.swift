import BenchmarkReport
import SparseKernels

/// Linear layers with quantised weights, compared with our single-precision product and that of OpenBLAS, on the same threads
/// in the same rounds. A call takes floating-point activations and returns floating-point outputs: its time includes smoothing,
/// coding, low-rank branch and bias.
struct QuantizedGEMMCases: CaseFamily {
    let run: RunContext

    private static let shapes = [(3072, 3072), (14336, 4096), (512, 1408)]
    private static let tokens = [1, 8, 64, 512, 4096]

    func section() -> Section {
        var groups: [CaseGroup] = []
        if isQuick {
            groups = [1, 8, 512].map { group(512, 1408, tokens: $0, pools: [pool]) }
            groups.append(group(3072, 3072, tokens: 512, pools: [pool]))
            groups.append(layerGroup(tokens: 1))
        } else {
            for (n, k) in Self.shapes { groups += Self.tokens.map { group(n, k, tokens: $0, pools: pools) } }
            groups += [1, 8, 512].map { layerGroup(tokens: $0) }
        }
        return Section(
            kind: .quantizedProduct, groups: groups, baselines: [baselineName, Self.groupBaseline].compactMap { $0 },
            otherISAs: ["openblas"],
            remark: openBLAS.isFit ? "" : openBLAS.titleRemark)
    }

    /// OpenBLAS, or our own product if it is not built in; nil if its kernels are not fit for a comparison.
    private var baselineName: String? { openBLAS.isAvailable ? openBLAS.name : "f32" }

    private func group(_ n: Int, _ k: Int, tokens: Int, pools: [WorkerPool]) -> CaseGroup {
        let operations = 2 * Double(tokens) * Double(n) * Double(k)
        var group = CaseGroup(
            op: "quant.product", name: "\(n)×\(k) M \(tokens)",
            amounts: .operations(operations, effective: operations),
            labels: ["f32", "packed f32", "packed f16", "packed f8"] + QuantizedVariant.all.map(\.label),
            otherOps: ["quant.product.f32"]
        ) { announce in
            announce("making the weights")
            let layers = try run.shared.value(for: [n, k]) { try GaussianLayers(outFeatures: n, inFeatures: k) }
            for variant in QuantizedVariant.all {
                announce("quantising to \(variant.label)")
                _ = try layers.quantized(variant, on: pools.last!)
            }
            let problem = try QuantizedProblem(layers, tokens: tokens, on: pools.last!)
            var variants: [Variant] = []
            for pool in pools { variants += try rows(problem, operations, pool, from: variants.count) }
            return variants
        }
        // One call of the largest layer takes seconds.
        group.rounds = operations > 3e11 ? 3 : nil
        return group
    }

    /// Adds the rows of one pool. Its baseline comes first, at position `first` of the group.
    private func rows(
        _ problem: QuantizedProblem, _ operations: Double, _ pool: WorkerPool, from first: Int
    ) throws -> [Variant] {
        let (tokens, layer) = (problem.x.shape[0], problem.layers.layer)
        let isCold = tokens <= QuantizedRoof.fewTokens
        let floatBytes = 4 * layer.weight.count
        let roofs = Dictionary(uniqueKeysWithValues: instructionSets.map { ($0, QuantizedRoof($0, pool)) })
        var variants: [Variant] = []
        func add(
            _ set: InstructionSet, isa: String? = nil, label: String, op: String, bytes: Int, isInteger: Bool = false,
            body: @escaping () -> Void, check: @escaping () -> Verification
        ) {
            let roof = roofs[set]!
            var variant = Variant(
                isa: isa ?? set.name, threads: pool.threads, body: body,
                verify: {
                    body()
                    return check()
                },
                baseline: variants.isEmpty ? nil : baselineName.map { (first, $0) },
                roof: { roof.rate(operations: operations, weightBytes: isCold ? bytes : nil, isInteger: isInteger) })
            if isCold {
                variant.preparation = roof.emptyCaches
                variant.amounts = [
                    .actualGFLOPS: operations, .effectiveGFLOPS: operations, .weightRate: Double(bytes),
                ]
            }
            (variant.op, variant.label) = (op, label)
            variants.append(variant)
        }
        if openBLAS.isAvailable {
            add(
                instructionSets[0], isa: "openblas", label: "f32", op: "quant.product.f32", bytes: floatBytes,
                body: { problem.computeWithOpenBLAS(threads: pool.threads) }, check: { problem.checkProduct() })
            variants[0].restsAfterwards = true
        }
        for set in instructionSets {
            let plan = try GEMM(m: tokens, n: layer.outFeatures, k: layer.inFeatures, transposesB: true, instructionSet: set)
            add(
                set, label: "f32", op: "quant.product.f32", bytes: floatBytes,
                body: { problem.compute(plan, on: pool) }, check: { problem.checkProduct() })
        }
        for set in instructionSets {
            let packed = try FloatLinear(weight: layer.weight, instructionSet: set, on: pool)
            add(
                set, label: "packed f32", op: "quant.product.f32", bytes: packed.byteCount,
                body: { problem.compute(packed, on: pool) }, check: { problem.checkProduct() })
            let half = try FloatLinear(weight: problem.layers.halves(), instructionSet: set, on: pool)
            add(
                set, label: "packed f16", op: "quant.product.f32", bytes: half.byteCount,
                body: { problem.compute(half, on: pool) },
                check: { problem.checkProduct { Float(Float16(layer.weight[flat: $0])) } })
            let codes = try problem.layers.codes()
            let small = try FloatLinear(weight: codes, instructionSet: set, on: pool)
            add(
                set, label: "packed f8", op: "quant.product.f32", bytes: small.byteCount,
                body: { problem.compute(small, on: pool) },
                check: { problem.checkProduct { codes.codes[flat: $0].floatValue / codes.scale } })
        }
        for variant in QuantizedVariant.all {
            let quantized = try problem.layers.quantized(variant, on: pool)
            for set in instructionSets {
                let linear = try quantized.packed(for: set)
                let body = { problem.compute(linear, on: pool) }
                body()
                add(
                    set, label: variant.label, op: "quant.product", bytes: linear.weight.byteCount,
                    isInteger: variant.isInteger, body: body, check: { problem.check(quantized) })
                variants[variants.count - 1].metrics[.outputError] = problem.outputError
            }
        }
        return variants
    }
}

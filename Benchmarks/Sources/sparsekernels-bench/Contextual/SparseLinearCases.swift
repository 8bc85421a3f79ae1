import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Products with picked channels of a layer of a model of 8 billion parameters, 14336 × 4096: with many tokens beside the dense product
/// of `GEMM`, with few beside the dense product of `FloatLinear` in the same type.
extension ContextualCases {
    func sparseLinearGroups() -> [CaseGroup] {
        let (width, depth) = isQuick ? (3584, 1024) : (14_336, 4096)
        let sparsities = isQuick ? [0.9] : [0.5, 0.9, 0.97, 0.99]
        var groups = sparsities.map { productGroup(tokens: isQuick ? 512 : 2048, width: width, depth: depth, sparsity: $0) }
        for tokens in isQuick ? [1] : [1, 4, 16] {
            for sparsity in isQuick ? [0.7] : [0.5, 0.7, 0.9] {
                groups.append(
                    vectorGroup(BFloat16.self, "bf16", tokens: tokens, width: width, depth: depth, sparsity: sparsity))
                if tokens == 1 {
                    groups.append(vectorGroup(Float.self, "f32", tokens: 1, width: width, depth: depth, sparsity: sparsity))
                    #if !(os(macOS) && arch(x86_64))
                        groups.append(
                            vectorGroup(Float16.self, "f16", tokens: 1, width: width, depth: depth, sparsity: sparsity))
                    #endif
                }
            }
        }
        return groups
    }

    private static let uses = [
        (label: "outputs", side: SparseLinear.Side.outputs, isGradient: false), ("outputs gradient", .outputs, true),
        ("inputs", .inputs, false), ("inputs gradient", .inputs, true),
    ]

    /// All four products with a subset. They are bound by arithmetic, so the roof is that of multiply-adds.
    private func productGroup(tokens: Int, width: Int, depth: Int, sparsity: Double) -> CaseGroup {
        let dense = 2 * Double(tokens * width * depth)
        return CaseGroup(
            op: "contextual.product", name: "\(tokens)×\(width)×\(depth) \(Self.percent(sparsity))",
            amounts: .operations(dense), labels: [ContextualBaseline.dense] + Self.uses.map(\.label),
            rounds: isQuick ? nil : 5
        ) { _ in
            var variants: [Variant] = []
            let weight = try Tensor<Float>.normal([width, depth], seed: 1, scale: 0.02)
            let x = try Tensor<Float>.normal([tokens, depth], seed: 2)
            let problems = try Self.uses.map { use in
                try PickedProblem(
                    weight: weight, use.side, isGradient: use.isGradient, tokens: tokens, sparsity: sparsity)
            }
            let output = DenseOutput(try Tensor(zeros: [tokens, width]))
            for set in instructionSets {
                let roof = { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }
                let gemm = try GEMM(m: tokens, n: width, k: depth, transposesB: true, instructionSet: set)
                let first = variants.count
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: { output.multiply(gemm, x, weight, pool) }, verify: { nil },
                        roof: roof, label: ContextualBaseline.dense))
                for (use, problem) in zip(Self.uses, problems) {
                    let layer = try SparseLinear(weight: problem.weight, picking: use.side, instructionSet: set, on: pool)
                    let body = { problem.run(layer, on: pool) }
                    variants.append(
                        Variant(
                            isa: set.name, threads: pool.threads, body: body,
                            verify: {
                                body()
                                return problem.check()
                            }, baseline: (first, ContextualBaseline.dense), roof: roof, label: use.label,
                            amounts: .operations(problem.operations)))
                }
            }
            return variants
        }
    }

    /// Both forward products with few tokens. They are bound by reading the picked part of the weight, and start with empty caches.
    private func vectorGroup<W: AttentionElement>(
        _ type: W.Type, _ name: String, tokens: Int, width: Int, depth: Int, sparsity: Double
    ) -> CaseGroup {
        let uses = Self.uses.filter { !$0.isGradient }
        let dense = 2 * Double(tokens * width * depth)
        return CaseGroup(
            op: "contextual.gemv", name: "\(tokens)×\(width)×\(depth) \(name) \(Self.percent(sparsity))",
            amounts: .operations(dense), labels: [ContextualBaseline.dense] + uses.map(\.label)
        ) { _ in
            var variants: [Variant] = []
            let weight = try Tensor<W>.normal([width, depth], seed: 1, scale: 0.02)
            let x = try Tensor<Float>.normal([tokens, depth], seed: 2)
            let problems = try uses.map {
                try PickedProblem(weight: weight, $0.side, isGradient: false, tokens: tokens, sparsity: sparsity)
            }
            let output = DenseOutput(try Tensor(zeros: [tokens, width]))
            for set in instructionSets {
                let cold = ColdCaches(set, pool)
                let linear = try FloatLinear(weight: weight, instructionSet: set, on: pool)
                let first = variants.count
                let bytes = width * depth * MemoryLayout<W>.size
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: { output.multiply(linear, x, pool) }, verify: { nil },
                        preparation: cold.empty, roof: { cold.rate(operations: dense, bytes: Double(bytes)) },
                        label: ContextualBaseline.dense, metrics: [.bytesRead: Double(bytes)]))
                for (use, problem) in zip(uses, problems) {
                    let layer = try SparseLinear(weight: problem.weight, picking: use.side, instructionSet: set, on: pool)
                    let body = { problem.run(layer, on: pool) }
                    let picked = Double(problem.subset.count * depth * MemoryLayout<W>.size)
                    variants.append(
                        Variant(
                            isa: set.name, threads: pool.threads, body: body,
                            verify: {
                                body()
                                return problem.check()
                            }, preparation: cold.empty, baseline: (first, ContextualBaseline.dense),
                            roof: { cold.rate(operations: problem.operations, bytes: picked) }, label: use.label,
                            amounts: .operations(problem.operations), metrics: [.bytesRead: picked]))
                }
            }
            return variants
        }
    }

    private static func percent(_ sparsity: Double) -> String { "\(Int((sparsity * 100).rounded()))%" }
}

/// The output of a dense product.
private final class DenseOutput {
    private var y: Tensor<Float>

    init(_ y: Tensor<Float>) { self.y = y }

    // Shapes agree by construction, so that no product can throw.

    func multiply(_ gemm: GEMM, _ x: Tensor<Float>, _ weight: Tensor<Float>, _ pool: WorkerPool) {
        try! gemm.run(a: x, b: weight, into: &y, on: pool)
    }

    func multiply(_ linear: FloatLinear, _ x: Tensor<Float>, _ pool: WorkerPool) { try! linear.run(x, into: &y, on: pool) }
}

/// One product with a random subset of the first axis of a weight, and sampled elements of the exact result.
private final class PickedProblem<W: AttentionElement> {
    /// As the layer takes it: transposed for picked inputs, which the layer transposes again.
    let weight: Tensor<W>
    let subset: ChannelSubset
    private let isGradient: Bool
    private let operand: Tensor<Float>
    private var result: Tensor<Float>
    private let samples: [(row: Int, column: Int, value: Double, bound: Double)]

    init(weight rows: Tensor<W>, _ side: SparseLinear.Side, isGradient: Bool, tokens: Int, sparsity: Double) throws {
        let (channels, depth) = (rows.shape[0], rows.shape[1])
        var generator = SplitMix64(seed: 5)
        let subset = try ChannelSubset.strongest(
            (0..<channels).map { _ in generator.uniform() }, count: ChannelSubset.count(ofWidth: channels, sparsity: sparsity))
        weight =
            side == .outputs
            ? rows : try Tensor([depth, channels]) { rows[flat: $0 % channels * depth + $0 / channels] }
        let isCompact = (side == .outputs) == isGradient
        let operand = try Tensor<Float>.normal([tokens, isCompact ? subset.count : depth], seed: 6)
        result = try Tensor(zeros: [tokens, isCompact ? depth : subset.count])
        let (columns, k) = (result.shape[1], operand.shape[1])
        samples = (0..<64).map { _ in
            let (row, column) = (Int.random(in: 0..<tokens, using: &generator), Int.random(in: 0..<columns, using: &generator))
            let exact = ReferenceMatrixProduct.element(
                row: row, column: column, depth: k, a: { operand[flat: $0 * k + $1] },
                b: { k, column in
                    let (place, other) = isCompact ? (k, column) : (column, k)
                    return rows[flat: Int(subset.indices[place]) * depth + other].floatValue
                })
            return (row, column, exact.value, ReferenceMatrixProduct.errorBound(magnitude: exact.magnitude, depth: k))
        }
        self.subset = subset
        self.isGradient = isGradient
        self.operand = operand
    }

    var operations: Double { 2 * Double(operand.count * result.shape[1]) }

    func run(_ layer: SparseLinear, on pool: WorkerPool) {
        Self.run(layer, operand, subset, isGradient, &result, pool)
    }

    // Views of properties are errors; those of parameters are not. Shapes agree by construction, so that no `run` can throw.
    private static func run(
        _ layer: SparseLinear, _ operand: Tensor<Float>, _ subset: ChannelSubset, _ isGradient: Bool,
        _ result: inout Tensor<Float>, _ pool: WorkerPool
    ) {
        if isGradient {
            try! layer.inputGradient(operand.matrixView(), channels: subset, into: result.mutableMatrixView(), on: pool)
        } else {
            try! layer.run(x: operand.matrixView(), channels: subset, y: result.mutableMatrixView(), on: pool)
        }
    }

    func check() -> Verification {
        var verification = Verification.none
        for sample in samples {
            let actual = Double(result[flat: sample.row * result.shape[1] + sample.column])
            verification.add(error: abs(actual - sample.value), bound: sample.bound)
        }
        return verification
    }
}

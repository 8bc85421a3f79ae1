import BenchmarkReport
import SparseKernels
import SparseKernelsReference
import SparseLoRA

/// Layers of SparseLoRA forward and backward against sparsity, and what choosing channels takes beside a dense step, at the sizes of
/// Llama 3 8B with 2048 tokens and of a small model with 4096 tokens.
///
/// Every token is sparse; the dense row is the same layer without channels. Rows of estimators are compared with a dense step of the
/// layer that they choose for, so that a speed-up of 67 is a share of 1.5%.
extension ContextualCases {
    func sparseLoRAGroups() -> [CaseGroup] {
        let sizes = isQuick ? [SparseLoRASize.small] : [.small, .large]
        return sizes.map(feedForwardGroup) + sizes.map(estimatorGroup)
    }

    private func feedForwardGroup(_ size: SparseLoRASize) -> CaseGroup {
        let sparsities = isQuick ? [0.9, 0.97] : [0.5, 0.75, 0.9, 0.95, 0.97, 0.99]
        func label(_ sparsity: Double) -> String { "\(Int((sparsity * 100).rounded()))%" }
        var group = CaseGroup(
            op: "contextual.ffn", name: "FFN \(size.width) × \(size.channels), \(size.tokens)", amounts: .uncounted,
            labels: [ContextualBaseline.dense] + sparsities.map(label)
        ) { announce in
            announce("making the layer")
            let problem = try FeedForwardProblem(size, instructionSet, on: pool)
            return try ([nil] + sparsities.map(Optional.some)).map { sparsity in
                let kept = try problem.kept(sparsity: sparsity)
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: { problem.step(kept) },
                    verify: { try problem.check(kept) })
                variant.label = sparsity.map(label) ?? ContextualBaseline.dense
                variant.amounts = .operations(
                    problem.operations(kept?.count ?? size.channels), effective: problem.operations(size.channels))
                if sparsity == nil {
                    variant.roof = { problem.productRate() }
                } else {
                    variant.baseline = (0, ContextualBaseline.dense)
                }
                return variant
            }
        }
        group.rounds = isQuick ? nil : 3
        return group
    }

    private func estimatorGroup(_ size: SparseLoRASize) -> CaseGroup {
        var group = CaseGroup(
            op: "contextual.estimator", name: "estimator \(size.width) × \(size.channels), \(size.tokens)", amounts: .uncounted,
            labels: ["dense FFN", "means", "all tokens", "every 4th", "dense QKV", "QKV"]
        ) { announce in
            announce("making layers and estimators")
            let problem = try FeedForwardProblem(size, instructionSet, on: pool)
            let estimators = try EstimatorProblem(problem, instructionSet, on: pool)
            let rows: [(label: String, baseline: Int?, body: () -> Void)] = [
                ("dense FFN", nil, { problem.step(nil) }), ("means", 0, { estimators.chooseHidden(.sequenceMeans) }),
                ("all tokens", 0, { estimators.chooseHidden(.all) }), ("every 4th", 0, { estimators.chooseHidden(.every(4)) }),
                ("dense QKV", nil, { estimators.stepProjections() }), ("QKV", 4, { estimators.chooseAttention() }),
            ]
            return rows.map { row in
                var variant = Variant(isa: instructionSet.name, threads: pool.threads, body: row.body, verify: { nil })
                variant.label = row.label
                variant.baseline = row.baseline.map { ($0, rows[$0].label) }
                return variant
            }
        }
        group.rounds = isQuick ? nil : 5
        return group
    }
}

private struct SparseLoRASize {
    var width: Int
    var channels: Int
    var tokens: Int
    var batch: Int
    /// Channels of keys and values.
    var kvWidth: Int
    var heads: Int
    var kvHeads: Int

    static let small = SparseLoRASize(
        width: 512, channels: 1408, tokens: 4096, batch: 8, kvWidth: 256, heads: 8, kvHeads: 4)
    static let large = SparseLoRASize(
        width: 4096, channels: 14336, tokens: 2048, batch: 4, kvWidth: 1024, heads: 32, kvHeads: 8)
}

private final class FeedForwardProblem {
    let size: SparseLoRASize
    let x: Tensor<Float>
    let gate: Tensor<Float>
    let up: Tensor<Float>
    private let down: Tensor<Float>
    private let dy: Tensor<Float>
    private let layer: SparseMLP
    private let set: InstructionSet
    private let pool: WorkerPool
    private var y: Tensor<Float>
    private var dx: Tensor<Float>
    private var products: Tensor<Float>
    private var tape = SparseMLP.Tape()
    private var workspace = SparseLoRAWorkspace()

    init(_ size: SparseLoRASize, _ set: InstructionSet, on pool: WorkerPool) throws {
        (self.size, self.set, self.pool) = (size, set, pool)
        x = try .normal([size.tokens, size.width], seed: 1)
        dy = try .normal([size.tokens, size.width], seed: 2)
        gate = try .normal([size.channels, size.width], seed: 3, scale: 0.02)
        up = try .normal([size.channels, size.width], seed: 4, scale: 0.02)
        down = try .normal([size.width, size.channels], seed: 5, scale: 0.02)
        layer = try SparseMLP(gate: gate, up: up, down: down, instructionSet: set, on: pool)
        y = try Tensor(zeros: x.shape)
        dx = try Tensor(zeros: x.shape)
        products = try Tensor(zeros: [size.tokens, size.channels])
    }

    func operations(_ kept: Int) -> Double { 12 * Double(size.tokens) * Double(size.width) * Double(kept) }

    /// Channels all over the layer.
    func kept(sparsity: Double?) throws -> ChannelSubset? {
        guard let sparsity else { return nil }
        let scores = try Tensor<Float>.normal([size.channels], seed: 6).elements
        return try .strongest(scores, count: ChannelSubset.count(ofWidth: size.channels, sparsity: sparsity))
    }

    func step(_ kept: ChannelSubset?) { Self.step(layer, x, dy, kept, &tape, &workspace, &y, &dx, pool) }

    // Views of properties are errors; those of parameters are not. Shapes agree by construction, so that no `run` can throw.
    private static func step(
        _ layer: SparseMLP, _ x: Tensor<Float>, _ dy: Tensor<Float>, _ kept: ChannelSubset?, _ tape: inout SparseMLP.Tape,
        _ workspace: inout SparseLoRAWorkspace, _ y: inout Tensor<Float>, _ dx: inout Tensor<Float>, _ pool: WorkerPool
    ) {
        try! layer.run(
            x: x.matrixView(), channels: kept, tape: &tape, workspace: &workspace, y: y.mutableMatrixView(), on: pool)
        try! layer.gradient(dy.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView(), on: pool)
    }

    /// The rate of a product of the layer's size, in GFLOP/s.
    func productRate() -> Double {
        let product = try! GEMM(
            m: size.tokens, n: size.channels, k: size.width, transposesB: true, instructionSet: set)
        let seconds = ContinuousClock().measure { try! product.run(a: x, b: gate, into: &products, on: pool) }
        return 2 * Double(size.tokens) * Double(size.width) * Double(size.channels) / seconds.doubles / 1e9
    }

    /// Compares a row with the oracle of a layer of the kept channels, unless its weights in `Double` would take gigabytes.
    func check(_ kept: ChannelSubset?) throws -> Verification? {
        let channels = kept?.indices.map(Int.init) ?? Array(0..<size.channels)
        if channels.count * size.width > 8 << 20 { return nil }
        step(kept)
        var verification = Verification.none
        let row = size.tokens - 3
        func line(_ tensor: Tensor<Float>) -> BoundedMatrix {
            BoundedMatrix(
                rows: 1, columns: size.width, values: (0..<size.width).map { Double(tensor[flat: row * size.width + $0]) })
        }
        func rows(_ weight: Tensor<Float>) -> BoundedMatrix {
            BoundedMatrix(
                rows: channels.count, columns: size.width,
                values: channels.flatMap { c in (0..<size.width).map { Double(weight[flat: c * size.width + $0]) } })
        }
        let picked = BoundedMatrix(
            rows: size.width, columns: channels.count,
            values: (0..<size.width).flatMap { i in channels.map { Double(down[flat: i * size.channels + $0]) } })
        let expected = ReferenceSparseLoRA.mlp(
            x: line(x), gate: rows(gate), up: rows(up), down: picked,
            mask: .init(isDense: [true], channels: [], of: channels.count), dy: line(dy))
        for (actual, expected) in [(line(y), expected.y), (line(dx), expected.dx)] {
            for index in actual.values.indices {
                verification.add(error: abs(actual.values[index] - expected.values[index]), bound: expected.errors[index])
            }
        }
        return verification
    }
}

private final class EstimatorProblem {
    private let problem: FeedForwardProblem
    private let hidden: MLPEstimator
    private let attention: AttentionEstimator
    private let set: InstructionSet
    private let pool: WorkerPool
    private let projections: [SparseProjection]
    private var outputs: [Tensor<Float>]
    private var tapes: [SparseProjection.Tape]
    private var dx: Tensor<Float>
    private var workspace = SparseLoRAWorkspace()

    init(_ problem: FeedForwardProblem, _ set: InstructionSet, on pool: WorkerPool) throws {
        (self.problem, self.set, self.pool) = (problem, set, pool)
        let size = problem.size
        func estimator(_ outputs: Int, _ seed: UInt64) throws -> ChannelEstimator {
            try ChannelEstimator(
                down: .normal([8, size.width], seed: seed, scale: 0.1), up: .normal([outputs, 8], seed: seed + 1, scale: 0.1))
        }
        hidden = try MLPEstimator(gate: estimator(size.channels, 10), up: estimator(size.channels, 12))
        attention = try AttentionEstimator(
            query: estimator(size.width, 14), key: estimator(size.kvWidth, 16), value: estimator(size.kvWidth, 18),
            heads: size.heads, kvHeads: size.kvHeads)
        projections = try [size.width, size.kvWidth, size.kvWidth].map { outputs in
            try SparseProjection(
                weight: Tensor<Float>.normal([outputs, size.width], seed: 20, scale: 0.02), picking: .outputs,
                instructionSet: set, on: pool)
        }
        outputs = try projections.map { try Tensor(zeros: [size.tokens, $0.outFeatures]) }
        tapes = projections.map { _ in SparseProjection.Tape() }
        dx = try Tensor(zeros: problem.x.shape)
    }

    func chooseHidden(_ tokens: MLPEstimator.Tokens) {
        Self.chooseHidden(hidden, problem.x, tokens, problem.size.batch, set, pool)
    }

    private static func chooseHidden(
        _ estimator: MLPEstimator, _ x: Tensor<Float>, _ tokens: MLPEstimator.Tokens, _ batch: Int, _ set: InstructionSet,
        _ pool: WorkerPool
    ) {
        _ = try! estimator.channels(
            x.matrixView(), batch: batch, sparsity: 0.9, tokens: tokens, instructionSet: set, on: pool)
    }

    func chooseAttention() { Self.chooseAttention(attention, problem.x, set, pool) }

    private static func chooseAttention(
        _ estimator: AttentionEstimator, _ x: Tensor<Float>, _ set: InstructionSet, _ pool: WorkerPool
    ) {
        _ = try! estimator.channels(x.matrixView(), sparsity: 0.75, instructionSet: set, on: pool)
    }

    /// Queries, keys and values, and the gradient of their input.
    func stepProjections() {
        for (index, projection) in projections.enumerated() {
            Self.step(projection, problem.x, &outputs[index], &tapes[index], &workspace, &dx, adds: index > 0, pool)
        }
    }

    private static func step(
        _ projection: SparseProjection, _ x: Tensor<Float>, _ y: inout Tensor<Float>, _ tape: inout SparseProjection.Tape,
        _ workspace: inout SparseLoRAWorkspace, _ dx: inout Tensor<Float>, adds: Bool, _ pool: WorkerPool
    ) {
        try! projection.run(x: x.matrixView(), tape: &tape, workspace: &workspace, y: y.mutableMatrixView(), on: pool)
        try! projection.gradient(
            y.matrixView(), tape: tape, workspace: &workspace, dx: dx.mutableMatrixView(), accumulates: adds, on: pool)
    }
}

extension Duration {
    fileprivate var doubles: Double {
        Double(components.seconds) + Double(components.attoseconds) * 1e-18
    }
}

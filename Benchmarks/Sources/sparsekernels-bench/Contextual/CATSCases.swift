import BenchmarkReport
import CATS
import SparseKernels
import SparseKernelsReference

/// Steps of a gated MLP with CATS at several sparsities, against the dense MLP of the library, in half precision: the layers of a
/// model of 8 billion parameters and of the code model. Caches are emptied before each call, as the next use of a layer finds them.
///
/// The dense layer is `FloatLinear`, with gate and up as one product. The roof is the time in which the memory gives the weights that
/// are needed: all of the gate, and the surviving part of up and down.
extension ContextualCases {
    func catsGroups() -> [CaseGroup] {
        let shapes = [(512, 1408), (4096, 14336)]
        return (isQuick ? Array(shapes.prefix(1)) : shapes).flatMap { width, inner in
            (isQuick ? [1] : [1, 2, 4, 8]).map { catsGroup(width: width, inner: inner, tokens: $0) }
        }
    }

    private func catsGroup(width: Int, inner: Int, tokens: Int) -> CaseGroup {
        let sparsities = tokens == 1 ? [0, 0.5, 0.7, 0.9] : [0.5, 0.7, 0.9]
        let operations = 2 * 3 * Double(tokens * width * inner)
        return CaseGroup(
            op: "contextual.cats", name: "CATS \(width) × \(inner) M \(tokens)",
            amounts: .operations(operations, effective: operations),
            labels: [ContextualBaseline.dense] + sparsities.map { "s \($0)" }
        ) { announce in
            announce("making the layers")
            let problem = try CATSProblem(width: width, inner: inner, tokens: tokens, instructionSet, on: pool)
            let caches = ColdCaches(instructionSet, pool)
            func variant(_ label: String, bytes: Double, actual: Double, _ body: @escaping () -> Void) -> Variant {
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: body, verify: { nil },
                    roof: { caches.rate(operations: actual, bytes: bytes) })
                variant.label = label
                variant.preparation = caches.empty
                variant.amounts = [.actualGFLOPS: actual, .effectiveGFLOPS: operations]
                variant.tokensPerCall = tokens
                return variant
            }
            let weightBytes = 2 * 3 * Double(width * inner)
            var variants = [
                variant(ContextualBaseline.dense, bytes: weightBytes, actual: operations, problem.runDense)
            ]
            for sparsity in sparsities {
                let layer = try problem.layer(sparsity: sparsity)
                let computed = problem.run(layer)
                let share = (1 + 2 * Double(computed) / Double(inner)) / 3
                var row = variant(
                    "s \(sparsity)", bytes: weightBytes * share, actual: operations * share, { _ = problem.run(layer) })
                row.baseline = (0, ContextualBaseline.dense)
                row.metrics = [.density: Double(computed) / Double(inner)]
                row.verify = { problem.check(layer) }
                variants.append(row)
            }
            return variants
        }
    }
}

/// A layer with normal weights, and inputs of some tokens.
private final class CATSProblem {
    private let (width, inner, tokens): (Int, Int, Int)
    private let x: Tensor<Float>
    private var y: Tensor<Float>
    private var gateUp: Tensor<Float>
    private var hidden: Tensor<Float>
    private let gateAndUp: FloatLinear
    private let down: FloatLinear
    private let activation: GatedActivation
    private let base: CATSLayer
    private let histogram: ActivationHistogram
    private var workspace = CATSWorkspace()
    private let pool: WorkerPool

    init(width: Int, inner: Int, tokens: Int, _ set: InstructionSet, on pool: WorkerPool) throws {
        (self.width, self.inner, self.tokens, self.pool) = (width, inner, tokens, pool)
        let scale = 1 / Float(width).squareRoot()
        let gate = try Tensor<Float16>.normal([inner, width], seed: 1, scale: scale)
        let up = try Tensor<Float16>.normal([inner, width], seed: 2, scale: scale)
        let down = try Tensor<Float16>.normal([width, inner], seed: 3, scale: 1 / Float(inner).squareRoot())
        x = try .normal([tokens, width], seed: 4)
        y = try Tensor(zeros: [tokens, width])
        gateUp = try Tensor(zeros: [tokens, 2 * inner])
        hidden = try Tensor(zeros: [tokens, inner])
        gateAndUp = try FloatLinear(weights: [gate, up], instructionSet: set, on: pool)
        self.down = try FloatLinear(weight: down, instructionSet: set, on: pool)
        activation = try GatedActivation(.silu, instructionSet: set)
        // Sparse at any density, so that break-even shows.
        base = try CATSLayer(
            gate: gate, up: up, down: down, threshold: 0, breakEvenDensity: 1, instructionSet: set, on: pool)
        var histogram = ActivationHistogram()
        try base.record(Tensor.normal([64, width], seed: 5), into: &histogram, workspace: &workspace, on: pool)
        self.histogram = histogram
    }

    func layer(sparsity: Double) throws -> CATSLayer { try base.with(threshold: histogram.threshold(sparsity: sparsity)) }

    // Shapes agree by construction, so no call can throw.

    func runDense() {
        try! gateAndUp.run(x, into: &gateUp, on: pool)
        try! activation.run(halvesOf: gateUp, into: &hidden, on: pool)
        try! down.run(hidden, into: &y, on: pool)
    }

    /// Returns the computed channels.
    func run(_ layer: CATSLayer) -> Int {
        try! layer.run(x, into: &y, workspace: &workspace, on: pool)
    }

    /// Compares with the dense layer whose small activations are set to 0, by the products of `FloatLinear`.
    func check(_ layer: CATSLayer) -> Verification {
        try! gateAndUp.run(x, into: &gateUp, on: pool)
        try! GatedActivation(.silu, threshold: layer.threshold, instructionSet: layer.instructionSet).run(
            halvesOf: gateUp, into: &hidden, on: pool)
        try! down.run(hidden, into: &y, on: pool)
        let expected = y
        _ = run(layer)
        var verification = Verification.none
        let size = expected.elements.reduce(0) { max($0, abs($1)) }
        // Both sides round sums of up to 14336 terms, and an entry at the threshold may fall on either side.
        for (a, b) in zip(y.elements, expected.elements) {
            verification.add(error: Double(abs(a - b)), bound: 1e-3 * Double(size))
        }
        return verification
    }
}

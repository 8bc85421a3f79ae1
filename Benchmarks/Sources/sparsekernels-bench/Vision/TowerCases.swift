import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// A layer of a vision tower of SigLIP's so400m size on a picture of 448²: 1024 tokens of 1152 channels, 16 heads of 72, and 4304
/// channels in the MLP, with linear layers of single precision and of 8 bits. Everything else is in single precision in both.
///
/// Each call runs the next of 27 layers of different weights, as a tower does, so that no layer finds its weights in a near cache. In
/// single precision they take 1.6 GB.
extension VisionCases {
    private static let configuration = VisionLayerConfiguration(width: 1152, heads: 16, hidden: 4304)

    var towerGroups: [CaseGroup] { [towerGroup(tokens: 1024), towerGroup(tokens: 729)].suffix(isQuick ? 1 : 2) }

    private func towerGroup(tokens: Int) -> CaseGroup {
        let c = Self.configuration
        let linear = 2 * Double(tokens) * Double(c.width) * Double(4 * c.innerWidth + 2 * c.hidden)
        let attention = 4 * Double(tokens) * Double(tokens) * Double(c.innerWidth)
        return CaseGroup(
            op: "vision.tower", name: "layer \(tokens) tokens", amounts: .operations(linear + attention),
            labels: [VisionBaseline.float, "W8A8"], rounds: isQuick ? nil : 9
        ) { announce in
            var variants: [Variant] = []
            for set in instructionSets {
                let first = variants.count
                let count = isQuick ? 2 : 27
                announce("making \(count) layers for \(set.name)")
                let float = try TowerProblem(c, .float32, layers: count, tokens: tokens, set, on: pool)
                let quantized = try TowerProblem(c, .w8a8, layers: count, tokens: tokens, set, on: pool)
                let error = try quantized.distance(from: float, on: pool)
                let roof = QuantizedRoof(set, pool)
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: { float.runNext(on: pool) }, verify: { nil },
                        roof: { roof.rate(operations: linear + attention, weightBytes: nil, isInteger: false) },
                        label: VisionBaseline.float))
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: { quantized.runNext(on: pool) },
                        // Codes of 8 bits are within 1/254 of the largest number; 5% says that no part is missing.
                        verify: { Verification(error: error, bound: 0.05) }, baseline: (first, VisionBaseline.float),
                        roof: {
                            // What the two kinds of arithmetic would take, one after the other.
                            let integer = roof.rate(operations: linear, weightBytes: nil, isInteger: true)
                            let single = roof.rate(operations: attention, weightBytes: nil, isInteger: false)
                            return (linear + attention) / (linear / integer + attention / single)
                        }, label: "W8A8", metrics: [.outputError: error]))
            }
            return variants
        }
    }
}

/// The layers of a tower, which run in turn on the same tokens.
private final class TowerProblem {
    private let layers: [VisionLayer]
    private var next = 0
    private let input: Tensor<Float>
    private var x: Tensor<Float>
    private var workspace = VisionWorkspace()

    init(
        _ c: VisionLayerConfiguration, _ format: VisionLinearFormat, layers count: Int, tokens: Int, _ set: InstructionSet,
        on pool: WorkerPool
    ) throws {
        let numbers = ExpertNumbers()
        func affine(_ rows: Int, _ columns: Int) throws -> VisionLayerWeights.Affine {
            .init(weight: numbers.matrix(rows, columns), bias: try Tensor(zeros: [rows]))
        }
        let norm = VisionLayerWeights.Affine(weight: try Tensor([c.width]) { _ in 1 }, bias: try Tensor(zeros: [c.width]))
        layers = try (0..<count).map { _ in
            let weights = VisionLayerWeights(
                attentionNorm: norm, queryKeyValue: try affine(3 * c.innerWidth, c.width),
                projection: try affine(c.width, c.innerWidth), mlpNorm: norm, up: try affine(c.hidden, c.width),
                down: try affine(c.width, c.hidden))
            return try VisionLayer(c, weights, linear: format, instructionSet: set, on: pool)
        }
        input = try .normal([tokens, c.width], seed: 5)
        x = input
    }

    /// Runs the next layer on the tokens as they come from the one before.
    func runNext(on pool: WorkerPool) {
        // Shapes agree by construction.
        try! layers[next].run(&x, workspace: &workspace, on: pool)
        next = (next + 1) % layers.count
        // A new picture, before numbers grow from layer to layer.
        if next == 0 { x = input }
    }

    /// The relative distance of what the first layer adds to its input, which begins the next run.
    func distance(from exact: TowerProblem, on pool: WorkerPool) throws -> Double {
        func update(_ problem: TowerProblem) throws -> Tensor<Float> {
            var y = problem.input
            try problem.layers[0].run(&y, workspace: &problem.workspace, on: pool)
            return try Tensor(y.shape) { y[flat: $0] - problem.input[flat: $0] }
        }
        return try update(self).relativeDistance(to: update(exact))
    }
}

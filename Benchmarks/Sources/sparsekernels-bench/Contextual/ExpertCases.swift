import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// Mixtures of experts from router to sum, beside a dense layer of the same active size: as many tokens, and the hidden width of all
/// experts of a token together. `one expert` is a dense layer of one expert's size over as many rows as there are slots: what grouped
/// products could reach if all rows had one expert.
///
/// Both need the same multiply-adds. A roof is the lower one of the multiply-adds and of reading the weights of the experts that have
/// tokens; calls begin with empty caches, as in a model that is larger than them.
extension ContextualCases {
    private static let shapes = [
        // A quarter of Mixtral's hidden width, whose experts would not fit the memory of small machines beside their baselines.
        ExpertShape(name: "8×2 of 4096×3584", experts: 8, perToken: 2, width: 4096, hidden: 3584),
        ExpertShape(name: "64×6 of 2048×1408", experts: 64, perToken: 6, width: 2048, hidden: 1408),
    ]
    private static let quickShape = ExpertShape(name: "16×4 of 512×704", experts: 16, perToken: 4, width: 512, hidden: 704)

    var expertGroups: [CaseGroup] {
        var groups: [CaseGroup] = []
        for shape in isQuick ? [Self.quickShape] : Self.shapes {
            for weights in ExpertWeights.allCases {
                for tokens in isQuick ? [1, 64] : [1, 8, 64, 512] {
                    groups.append(group(shape, weights, tokens: tokens))
                }
            }
        }
        return groups
    }

    private func group(_ shape: ExpertShape, _ weights: ExpertWeights, tokens: Int) -> CaseGroup {
        let operations = 6 * Double(tokens * shape.perToken) * Double(shape.width) * Double(shape.hidden)
        return CaseGroup(
            op: "contextual.moe", name: "\(shape.name) \(weights.rawValue) T \(tokens)", amounts: .operations(operations),
            labels: [ContextualBaseline.dense, "one expert", "experts"]
        ) { announce in
            announce("making the experts")
            let problem = try run.shared.value(for: "\(shape.name) \(weights.rawValue)") {
                try ExpertProblem(shape, weights, instructionSet, on: pool)
            }
            let step = try ExpertStep(problem, tokens: tokens, on: pool)
            let roof = QuantizedRoof(instructionSet, pool)
            func variant(_ label: String, bytes: Int, _ body: @escaping () -> Void) -> Variant {
                var variant = Variant(
                    isa: instructionSet.name, threads: pool.threads, body: body, verify: { nil },
                    preparation: roof.emptyCaches,
                    roof: { roof.rate(operations: operations, weightBytes: bytes, isInteger: weights.isInteger) },
                    label: label, metrics: [.bytesRead: Double(bytes)])
                variant.baseline = label == ContextualBaseline.dense ? nil : (0, ContextualBaseline.dense)
                return variant
            }
            var variants = [
                variant(ContextualBaseline.dense, bytes: problem.dense.byteCount) { step.runDense() },
                variant("one expert", bytes: problem.single.byteCount) { step.runSingle() },
                variant("experts", bytes: step.activeByteCount) { step.runExperts() },
            ]
            variants[2].verify = {
                step.runExperts()
                return try step.check()
            }
            return variants
        }
    }
}

struct ExpertShape {
    var name: String
    var experts: Int
    var perToken: Int
    var width: Int
    var hidden: Int
}

enum ExpertWeights: String, CaseIterable {
    case f16
    case f8
    case w4a8 = "W4A8"

    var isInteger: Bool { self == .w4a8 }
}

/// A gated feed-forward layer of single operators.
struct FeedForward {
    let gateAndUp: any ExpertLinear
    let down: any ExpertLinear
    let hidden: Int
    let byteCount: Int
    private let activation: GatedActivation

    init(
        _ weights: ExpertWeights, width: Int, hidden: Int, _ source: ExpertNumbers, _ set: InstructionSet, on pool: WorkerPool
    ) throws {
        gateAndUp = try weights.linear(source.matrix(2 * hidden, width), set, on: pool)
        down = try weights.linear(source.matrix(width, hidden), set, on: pool)
        byteCount = gateAndUp.byteCount + down.byteCount
        self.hidden = hidden
        activation = try GatedActivation(.silu, instructionSet: set)
    }

    func run(_ x: Tensor<Float>, _ buffers: inout Buffers, on pool: WorkerPool) {
        run(x, &buffers.both, &buffers.gated, into: &buffers.y, on: pool)
    }

    private func run(
        _ x: Tensor<Float>, _ both: inout Tensor<Float>, _ gated: inout Tensor<Float>, into y: inout Tensor<Float>,
        on pool: WorkerPool
    ) {
        try! gateAndUp.run(x, into: &both, on: pool)
        try! activation.run(halvesOf: both.matrixView(), into: gated.mutableMatrixView(), on: pool)
        try! down.run(gated, into: &y, on: pool)
    }

    /// What a run writes.
    struct Buffers {
        fileprivate var both: Tensor<Float>
        fileprivate var gated: Tensor<Float>
        fileprivate var y: Tensor<Float>

        init(rows: Int, width: Int, hidden: Int) throws {
            both = try Tensor(zeros: [rows, 2 * hidden])
            gated = try Tensor(zeros: [rows, hidden])
            y = try Tensor(zeros: [rows, width])
        }
    }
}

/// A layer of either kind.
protocol ExpertLinear {
    var byteCount: Int { get }
    func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool
    ) throws(SparseKernelsError)
}

extension FloatLinear: ExpertLinear {}
extension QuantizedLinear: ExpertLinear {}

/// Matrices of numbers from a table, which are made faster than random ones.
final class ExpertNumbers {
    private let table: [Float]
    private var made = 0

    init() {
        var generator = SplitMix64(seed: 3)
        table = (0..<65_536).map { _ in generator.normal() }
    }

    func matrix(_ rows: Int, _ columns: Int) -> Tensor<Float> {
        made += 1
        let (offset, scale) = (made &* 9973, 1 / Float(columns).squareRoot())
        return try! Tensor([rows, columns]) { table[($0 &* 31 &+ $0 >> 9 &+ offset) & 65_535] * scale }
    }
}

extension ExpertWeights {
    func linear(_ weight: Tensor<Float>, _ set: InstructionSet, on pool: WorkerPool) throws -> any ExpertLinear {
        switch self {
        case .f16: try FloatLinear(weight: weight.converted(to: Float16.self), instructionSet: set, on: pool)
        case .f8: try FloatLinear(weight: Float8Tensor<E4M3>(weight), instructionSet: set, on: pool)
        case .w4a8:
            try QuantizedLinear(
                PackedWeight(WeightQuantizer(WeightFormat(.uint4, groupSize: 128))(weight, on: pool), instructionSet: set),
                activation: .int8PerToken)
        }
    }
}

/// Experts of one shape and type, and the dense layers beside them.
final class ExpertProblem {
    let shape: ExpertShape
    let layer: ExpertLayer
    let router: ExpertRouter
    let dense: FeedForward
    let single: FeedForward
    /// Gate, up and down of every expert.
    let projections: [[any ExpertLinear]]
    let activation: GatedActivation

    init(_ shape: ExpertShape, _ weights: ExpertWeights, _ set: InstructionSet, on pool: WorkerPool) throws {
        self.shape = shape
        let numbers = ExpertNumbers()
        projections = try (0..<shape.experts).map { _ in
            try [(shape.hidden, shape.width), (shape.hidden, shape.width), (shape.width, shape.hidden)].map { rows, columns in
                try weights.linear(numbers.matrix(rows, columns), set, on: pool)
            }
        }
        layer = try ExpertLayer(
            projections.map { parts in
                if let layers = parts as? [FloatLinear] {
                    return try GatedExpert(gate: layers[0], up: layers[1], down: layers[2])
                }
                let layers = parts.map { $0 as! QuantizedLinear }
                return try GatedExpert(gate: layers[0], up: layers[1], down: layers[2])
            })
        router = try ExpertRouter(experts: shape.experts, expertsPerToken: shape.perToken, instructionSet: set)
        dense = try FeedForward(weights, width: shape.width, hidden: shape.perToken * shape.hidden, numbers, set, on: pool)
        single = try FeedForward(weights, width: shape.width, hidden: shape.hidden, numbers, set, on: pool)
        activation = try GatedActivation(.silu, instructionSet: set)
    }
}

/// The operands of a number of tokens.
final class ExpertStep {
    private let problem: ExpertProblem
    private let pool: WorkerPool
    private let x: Tensor<Float>
    private let rows: Tensor<Float>
    private let logits: Tensor<Float>
    private var routing: ExpertRouting
    private var y: Tensor<Float>
    private var dense: FeedForward.Buffers
    private var single: FeedForward.Buffers

    init(_ problem: ExpertProblem, tokens: Int, on pool: WorkerPool) throws {
        let shape = problem.shape
        (self.problem, self.pool) = (problem, pool)
        x = try .normal([tokens, shape.width], seed: 1)
        rows = try .normal([tokens * shape.perToken, shape.width], seed: 2)
        logits = try .normal([tokens, shape.experts], seed: 3)
        routing = try problem.router(logits, on: pool)
        y = try Tensor(zeros: x.shape)
        dense = try FeedForward.Buffers(rows: tokens, width: shape.width, hidden: problem.dense.hidden)
        single = try FeedForward.Buffers(
            rows: tokens * shape.perToken, width: shape.width, hidden: problem.single.hidden)
    }

    /// Bytes of the weights of the experts that have tokens.
    var activeByteCount: Int { problem.layer.byteCount / problem.shape.experts * routing.activeExperts }

    func runExperts() {
        try! problem.router.run(logits, into: &routing, on: pool)
        try! problem.layer.run(x, routing: routing, into: &y, on: pool)
    }

    func runDense() { problem.dense.run(x, &dense, on: pool) }

    func runSingle() { problem.single.run(rows, &single, on: pool) }

    /// Compares the first and the last token with their experts' own layers, which have checks of their own.
    func check() throws -> Verification {
        let (width, hidden) = (problem.shape.width, problem.shape.hidden)
        var verification = Verification.none
        for token in Set([0, x.shape[0] - 1]) {
            let row = try Tensor<Float>([1, width]) { x[token, $0] }
            var sums = [(value: Double, magnitude: Double)](repeating: (0, 0), count: width)
            for slot in 0..<problem.shape.perToken {
                let parts = problem.projections[routing.expert(ofToken: token, slot: slot)]
                var (gate, up, output) = try (
                    Tensor<Float>(zeros: [1, hidden]), Tensor<Float>(zeros: [1, hidden]), Tensor<Float>(zeros: [1, width])
                )
                try parts[0].run(row, into: &gate, on: pool)
                try parts[1].run(row, into: &up, on: pool)
                var gated = gate
                try problem.activation.run(gate: gate.matrixView(), up: up.matrixView(), into: gated.mutableMatrixView())
                try parts[2].run(gated, into: &output, on: pool)
                let weight = Double(routing.weight(ofToken: token, slot: slot))
                for k in 0..<width {
                    sums[k].value += weight * Double(output[flat: k])
                    sums[k].magnitude += abs(weight * Double(output[flat: k]))
                }
            }
            for k in 0..<width {
                // The rows have equal bits, so only the weighted sum rounds.
                let bound = Double(problem.shape.perToken + 1) * 0x1p-23 * sums[k].magnitude
                verification.add(error: abs(Double(y[token, k]) - sums[k].value), bound: bound)
            }
        }
        return verification
    }
}

import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// The linear layers of a vision tower of SigLIP's so400m size with all that belongs to a call: coding of activations, bias, and the
/// GELU of the first layer of the MLP. The baseline has the same in single precision.
///
/// The roof of both is that of multiply-adds in their own numbers, so the ratio of the two roofs bounds the speed-up: 4 with VNNI. On
/// AVX2 the integer roof is that of sums of 16 bits, which no product of whole bytes can use; MultiplyWhole.swift has the arithmetic.
extension VisionCases {
    private static let layers = [
        TowerLinear(name: "qkv", outFeatures: 3456, inFeatures: 1152, epilogue: .none),
        TowerLinear(name: "out", outFeatures: 1152, inFeatures: 1152, epilogue: .none),
        TowerLinear(name: "up GELU", outFeatures: 4304, inFeatures: 1152, epilogue: .gelu),
        TowerLinear(name: "down", outFeatures: 1152, inFeatures: 4304, epilogue: .none),
    ]

    var w8a8Groups: [CaseGroup] {
        let layers = isQuick ? [Self.layers[1]] : Self.layers
        return (isQuick ? [1024] : [1024, 729]).flatMap { tokens in layers.map { group($0, tokens: tokens) } }
    }

    private func group(_ linear: TowerLinear, tokens: Int) -> CaseGroup {
        let operations = 2 * Double(tokens) * Double(linear.outFeatures) * Double(linear.inFeatures)
        return CaseGroup(
            op: "vision.w8a8", name: "\(linear.name) \(linear.outFeatures)×\(linear.inFeatures) M \(tokens)",
            amounts: .operations(operations), labels: [VisionBaseline.float, "W8A8"]
        ) { _ in
            let problem = try W8A8Problem(linear, tokens: tokens, on: pool)
            var variants: [Variant] = []
            for set in instructionSets {
                let roof = QuantizedRoof(set, pool)
                let first = variants.count
                let float = try problem.float(set, on: pool)
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: { problem.run(float, on: pool) }, verify: { nil },
                        roof: { roof.rate(operations: operations, weightBytes: nil, isInteger: false) },
                        label: VisionBaseline.float))
                let quantized = try problem.quantized(set, on: pool)
                problem.run(float, on: pool)
                let exact = problem.output
                problem.run(quantized, on: pool)
                let error = problem.output.relativeDistance(to: exact)
                variants.append(
                    Variant(
                        isa: set.name, threads: pool.threads, body: { problem.run(quantized, on: pool) },
                        verify: {
                            problem.run(quantized, on: pool)
                            return problem.check()
                        }, baseline: (first, VisionBaseline.float),
                        roof: { roof.rate(operations: operations, weightBytes: nil, isInteger: true) }, label: "W8A8",
                        metrics: [.outputError: error]))
            }
            return variants
        }
    }
}

struct TowerLinear {
    var name: String
    var outFeatures: Int
    var inFeatures: Int
    var epilogue: Epilogue
}

/// One linear layer in both forms, with random weights, bias and tokens.
private final class W8A8Problem {
    private let linear: TowerLinear
    private let weight: Tensor<Float>
    private let codes: QuantizedWeight
    private let bias: Tensor<Float>
    private let x: Tensor<Float>
    private(set) var output: Tensor<Float>

    init(_ linear: TowerLinear, tokens: Int, on pool: WorkerPool) throws {
        self.linear = linear
        weight = try .normal(
            [linear.outFeatures, linear.inFeatures], seed: 1, scale: 1 / Float(linear.inFeatures).squareRoot())
        codes = try WeightQuantizer(.int8PerChannel)(weight, on: pool)
        bias = try .normal([linear.outFeatures], seed: 2)
        x = try .normal([tokens, linear.inFeatures], seed: 3)
        output = try Tensor(zeros: [tokens, linear.outFeatures])
    }

    func float(_ set: InstructionSet, on pool: WorkerPool) throws -> FloatLinear {
        try FloatLinear(weight: weight, bias: bias, epilogue: linear.epilogue, instructionSet: set, on: pool)
    }

    func quantized(_ set: InstructionSet, on pool: WorkerPool) throws -> QuantizedLinear {
        try QuantizedLinear(
            PackedWeight(codes, instructionSet: set, on: pool), activation: .int8PerToken, bias: bias,
            epilogue: linear.epilogue)
    }

    // Shapes agree by construction, so that no product can throw.

    func run(_ layer: FloatLinear, on pool: WorkerPool) { try! layer.run(x, into: &output, on: pool) }

    func run(_ layer: QuantizedLinear, on pool: WorkerPool) { try! layer.run(x, into: &output, on: pool) }

    /// Compares sampled outputs with sums in integers and the rest in `Double`.
    func check() -> Verification {
        let oracle = ReferenceQuantizedLinear(codes, activation: .int8PerToken, bias: bias, epilogue: linear.epilogue)
        let (tokens, depth, columns) = (x.shape[0], linear.inFeatures, linear.outFeatures)
        var verification = Verification.none
        for row in [0, tokens / 2 + 1, tokens - 1] {
            let token = oracle.token((0..<depth).map { x[row, $0] })
            for sample in 0..<12 {
                let column = sample * (columns - 1) / 11
                let exact = oracle.output(of: token, column: column)
                verification.add(error: abs(Double(output[row, column]) - exact.value), bound: exact.errorBound)
            }
        }
        return verification
    }
}

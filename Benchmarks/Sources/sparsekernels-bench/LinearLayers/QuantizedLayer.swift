import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// A quantised layer, with the data to run and check it.
struct QuantizedLayer {
    let weight: QuantizedWeight
    let activation: ActivationFormat
    let smooth: Tensor<Float>?
    let lowRank: LowRankBranch?
    /// The bias for these activations, which undoes a shift.
    let bias: Tensor<Float>?
    private let originalBias: Tensor<Float>?
    /// The time of quantising.
    let seconds: Double

    init(_ layer: LinearLayer, _ configuration: LowRankQuantizer.Configuration, on pool: WorkerPool) throws {
        let quantizer = try LowRankQuantizer(configuration)
        let clock = ContinuousClock()
        let start = clock.now
        let result = try quantizer(weight: layer.weight, bias: layer.bias, calibration: layer.calibration, on: pool)
        seconds = (clock.now - start) / .seconds(1)
        activation = configuration.activation
        (weight, smooth, lowRank, bias) = (result.weight, result.smooth, result.lowRank, result.bias)
        originalBias = layer.bias
    }

    private init(_ other: QuantizedLayer, activation: ActivationFormat) {
        self.activation = activation
        (weight, smooth, lowRank) = (other.weight, other.smooth, other.lowRank)
        (bias, originalBias) = (activation == other.activation ? other.bias : other.originalBias, other.originalBias)
        seconds = other.seconds
    }

    /// The same weights with other activations, which must not be shifted unless they are the layer's own.
    func with(_ activation: ActivationFormat) -> QuantizedLayer { QuantizedLayer(self, activation: activation) }

    func packed(for set: InstructionSet) throws -> QuantizedLinear {
        try QuantizedLinear(
            PackedWeight(weight, instructionSet: set), activation: activation, smooth: smooth, lowRank: lowRank, bias: bias)
    }

    /// Compares sampled outputs with their evaluation in `Double` from the same codes.
    ///
    /// Activations are coded again, independently.
    func check(x: Tensor<Float>, y: Tensor<Float>, rows: Int = 3, columns: Int = 12) -> Verification {
        let oracle = ReferenceQuantizedLinear(
            weight, activation: activation, smooth: smooth, lowRank: lowRank, bias: bias)
        var generator = SplitMix64(seed: 4)
        let tokens = x.shape[0]
        let sampledRows = Set([0, tokens - 1] + (0..<rows).map { _ in Int.random(in: 0..<tokens, using: &generator) })
        var verification = Verification.none
        for row in sampledRows.sorted().prefix(rows) {
            let token = oracle.token((0..<weight.inFeatures).map { x[flat: row * weight.inFeatures + $0] })
            for _ in 0..<columns {
                let column = Int.random(in: 0..<weight.outFeatures, using: &generator)
                let exact = oracle.output(of: token, column: column)
                verification.add(
                    error: abs(Double(y[flat: row * weight.outFeatures + column]) - exact.value),
                    bound: exact.errorBound)
            }
        }
        return verification
    }
}

import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// A linear layer in single precision, with activations for choosing its smoothing.
struct LinearLayer {
    let name: String
    /// `[outFeatures, inFeatures]`.
    let weight: Tensor<Float>
    let bias: Tensor<Float>?
    /// `[tokens, inFeatures]`.
    let calibration: Tensor<Float>
    /// Whether its input is the output of a GELU. 4-bit activations are then shifted and unsigned.
    var followsGELU = false

    var outFeatures: Int { weight.shape[0] }
    var inFeatures: Int { weight.shape[1] }

    /// A layer with normal weights and a bias for inputs of `input`.
    static func gaussian(outFeatures: Int, input: OutlierInput, calibrationTokens: Int) throws -> LinearLayer {
        LinearLayer(
            name: "Gaussian \(outFeatures)×\(input.channels)",
            // This makes outputs about as large as the inputs of the next layer.
            weight: try .normal(
                [outFeatures, input.channels], seed: 1, scale: 1 / Float(input.channels).squareRoot()),
            bias: try .normal([outFeatures], seed: 2), calibration: try input.tokens(calibrationTokens, seed: 3))
    }

    /// y = x·Wᵀ + bias in single precision, with which quantised layers are compared.
    func output(of x: Tensor<Float>, on pool: WorkerPool) throws -> Tensor<Float> {
        var y = try Tensor<Float>(zeros: [x.shape[0], outFeatures])
        try GEMM(m: x.shape[0], n: outFeatures, k: inFeatures, transposesB: true).run(a: x, b: weight, into: &y, on: pool)
        if let bias {
            var elements = y.mutableSpan
            let bias = bias.span
            for index in 0..<elements.count { elements[index] += bias[index % bias.count] }
        }
        return y
    }
}

extension Tensor<Float> {
    /// The first rows of a matrix.
    func firstRows(_ count: Int) throws -> Tensor<Float> {
        let columns = shape[1]
        let source = span
        return try Tensor([Swift.min(count, shape[0]), columns]) { source[$0] }
    }

    /// ‖self − other‖ / ‖other‖ over the rows that both have.
    func relativeDistance(to other: Tensor<Float>) -> Double {
        let (own, exact) = (span, other.span)
        var (difference, norm) = (0.0, 0.0)
        for index in 0..<Swift.min(own.count, exact.count) {
            let value = Double(exact[index])
            difference += (Double(own[index]) - value) * (Double(own[index]) - value)
            norm += value * value
        }
        return (difference / norm).squareRoot()
    }
}

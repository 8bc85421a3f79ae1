import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// A layer of Gaussian weights, quantised for all rows of the tables, and shared by all numbers of tokens.
final class GaussianLayers {
    let layer: LinearLayer
    let input: OutlierInput
    private var quantized: [QuantizedVariant: QuantizedLayer] = [:]

    init(outFeatures: Int, inFeatures: Int) throws {
        input = OutlierInput(channels: inFeatures, seed: 5)
        layer = try LinearLayer.gaussian(outFeatures: outFeatures, input: input, calibrationTokens: 128)
    }

    /// The weights in half precision.
    func halves() -> Tensor<Float16> { layer.weight.converted(to: Float16.self) }

    /// The weights as 8-bit floats of one scale.
    func codes() throws -> Float8Tensor<E4M3> { try Float8Tensor(layer.weight) }

    /// The smoothing is the same in all rows, so that only the branch differs between two rows. It is given, because speed does
    /// not depend on it and a search over the largest layer would take minutes.
    func quantized(_ variant: QuantizedVariant, on pool: WorkerPool) throws -> QuantizedLayer {
        if let known = quantized[variant] { return known }
        var configuration = LowRankQuantizer.Configuration()
        configuration.weightFormat = variant.weightFormat
        configuration.activation = variant.activation
        configuration.rank = variant.rank
        configuration.iterations = 1
        configuration.smoothing = .fixed(SmoothingCandidate(alpha: 0.5, beta: 0.5))
        let layer = try QuantizedLayer(layer, configuration, on: pool)
        quantized[variant] = layer
        return layer
    }
}

/// The layers of one shape with a number of tokens: operands, outputs, and the exact outputs for comparison.
final class QuantizedProblem {
    let layers: GaussianLayers
    let x: Tensor<Float>
    private var y: Tensor<Float>
    /// Outputs of the single-precision layer for the first tokens.
    private let exact: Tensor<Float>

    /// The number of tokens whose outputs the relative error covers.
    private static let comparedTokens = 64

    init(_ layers: GaussianLayers, tokens: Int, on pool: WorkerPool) throws {
        self.layers = layers
        x = try layers.input.tokens(tokens, seed: 6)
        y = try Tensor(zeros: [tokens, layers.layer.outFeatures])
        exact = try layers.layer.output(of: x.firstRows(Self.comparedTokens), on: pool)
    }

    // Shapes agree by construction, so no product can throw.

    func compute(_ linear: QuantizedLinear, on pool: WorkerPool) { Self.run(linear, x, &y, pool) }

    func compute(_ plan: GEMM, on pool: WorkerPool) { try! plan.run(a: x, b: layers.layer.weight, into: &y, on: pool) }

    func compute(_ linear: FloatLinear, on pool: WorkerPool) { try! linear.run(x, into: &y, on: pool) }

    func computeWithOpenBLAS(threads: Int) { Self.multiply(x, layers.layer.weight, &y, threads: threads) }

    private static func run(_ linear: QuantizedLinear, _ x: Tensor<Float>, _ y: inout Tensor<Float>, _ pool: WorkerPool) {
        try! linear.run(x: x.matrixView(), y: y.mutableMatrixView(), on: pool)
    }

    private static func multiply(_ x: Tensor<Float>, _ weight: Tensor<Float>, _ y: inout Tensor<Float>, threads: Int) {
        if x.shape[0] == 1 {
            var row = y.mutableSpan
            try! OpenBLAS.multiplyVector(a: weight.matrixView(), x: x.span, y: &row, threads: threads)
        } else {
            try! OpenBLAS.multiply(
                a: x.matrixView(), b: weight.matrixView(), c: y.mutableMatrixView(), transposesB: true, threads: threads)
        }
    }

    func check(_ layer: QuantizedLayer) -> Verification { layer.check(x: x, y: y) }

    /// Compares sampled elements of the product without bias, with the weights or with what they were rounded to, by element.
    func checkProduct(weight: ((Int) -> Float)? = nil) -> Verification {
        let (k, n) = (layers.layer.inFeatures, layers.layer.outFeatures)
        var generator = SplitMix64(seed: 7)
        var verification = Verification.none
        for _ in 0..<64 {
            let row = Int.random(in: 0..<x.shape[0], using: &generator)
            let column = Int.random(in: 0..<n, using: &generator)
            let exact = ReferenceMatrixProduct.element(
                row: row, column: column, depth: k, a: { x[flat: $0 * k + $1] },
                b: { weight?($1 * k + $0) ?? layers.layer.weight[flat: $1 * k + $0] })
            verification.add(
                error: abs(Double(y[flat: row * n + column]) - exact.value),
                bound: ReferenceMatrixProduct.errorBound(magnitude: exact.magnitude, depth: k))
        }
        return verification
    }

    /// ‖y − y of the single-precision layer‖ / ‖y of the single-precision layer‖ for the last computed y.
    var outputError: Double { y.relativeDistance(to: exact) }
}

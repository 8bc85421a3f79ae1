import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// The error that the quantiser states for a layer. The tests evaluate the layer in `Double`, from the codes of its activations
/// when it runs, and expect the same error.
@Suite("Low-rank quantiser: the error that it states")
struct LowRankQuantizerErrorTests {
    typealias Configuration = LowRankQuantizer.Configuration

    /// √(Σ |y − y_ref|² / Σ |x · Wᵀ|²), where y_ref includes the given bias.
    static func error(
        of parts: LayerParts, weight: Tensor<Float>, bias: Tensor<Float>?, inputs: Tensor<Float>
    ) -> Double {
        let (oracle, columns, values) = (parts.oracle, inputs.shape[1], inputs.elements)
        let (exact, plain) = (exactLayer(weight, inputs, bias: bias), exactLayer(weight, inputs))
        var sum = 0.0
        for row in 0..<inputs.shape[0] {
            let token = oracle.token(Array(values[row * columns..<(row + 1) * columns]))
            for n in 0..<weight.shape[0] {
                let difference = oracle.output(of: token, column: n).value - exact[row][n]
                sum += difference * difference
            }
        }
        return (sum / energy(of: plain)).squareRoot()
    }

    /// Inputs that the format accepts, which are outputs of a GELU where it is shifted.
    static func inputs(_ layer: OutlierLayer, _ activation: ActivationFormat) throws -> Tensor<Float> {
        guard case .uint4(let shift) = activation else { return layer.inputs }
        return try Tensor(layer.inputs.shape) { max(layer.inputs[flat: $0], -shift) }
    }

    @Test("it is that of the layer as it runs", arguments: ActivationFormat.all, LowRankQuantizer.ResidualRounding.allCases)
    func isTrue(_ activation: ActivationFormat, _ residual: LowRankQuantizer.ResidualRounding) throws {
        let layer = try OutlierLayer(20, 130, tokens: 24, seed: 50)
        let inputs = try Self.inputs(layer, activation)
        let formats = [.svdQuantInt4, .nvfp4, .int8PerChannel, try WeightFormat(.uint4, groupSize: 128)]
        for (index, format) in formats.enumerated() {
            for rank in [0, 6] {
                for smoothing in [LowRankQuantizer.Smoothing.none, .fixed(.init(alpha: 0.5, beta: 0.25))] {
                    var configuration = Configuration()
                    (configuration.rank, configuration.weightFormat, configuration.activation) = (rank, format, activation)
                    (configuration.smoothing, configuration.residual) = (smoothing, residual)
                    let bias = index % 2 == 0 ? layer.bias : nil
                    let result = try LowRankQuantizer(configuration)(weight: layer.weight, bias: bias, calibration: inputs)
                    let parts = LayerParts(
                        weight: result.weight, activation: activation, smooth: result.smooth, lowRank: result.lowRank,
                        bias: result.bias)
                    let expected = Self.error(of: parts, weight: layer.weight, bias: bias, inputs: inputs)
                    // Sums in single precision have errors of about 10⁻⁶ of the outputs.
                    #expect(
                        abs(result.outputError - expected) <= 1e-4 * expected + 2e-6,
                        "\(format), rank \(rank), \(smoothing): \(result.outputError), is \(expected)")
                }
            }
        }
    }

    @Test(
        "a shift costs no accuracy: the bias takes away what the quantised residual makes of it",
        arguments: LowRankQuantizer.ResidualRounding.allCases, [0, 8])
    func shift(_ residual: LowRankQuantizer.ResidualRounding, _ rank: Int) throws {
        let layer = try OutlierLayer(96, 256, tokens: 64, seed: 51, outliers: 4)
        // A GELU of normal numbers gives mostly small numbers, which are at least −0.17.
        let inputs = try Tensor<Float>(layer.inputs.shape) { index in
            let x = layer.inputs[flat: index]
            return x > 0 ? x : max(-0.17, 0.2 * x)
        }
        let activation = ActivationFormat.uint4(shift: ActivationFormat.geluShift)
        var configuration = Configuration()
        (configuration.rank, configuration.activation, configuration.residual) = (rank, activation, residual)
        configuration.smoothing = .fixed(.init(alpha: 0.5, beta: 0))
        let result = try LowRankQuantizer(configuration)(weight: layer.weight, calibration: inputs)
        let values = try result.weight.dequantized()
        for n in 0..<96 {
            let expected = -(0..<256).reduce(0.0) { sum, k in
                sum + Double(values[flat: n * 256 + k]) * Double(ActivationFormat.geluShift)
                    / Double(result.smooth?[flat: k] ?? 1)
            }
            #expect(abs(Double(result.bias?[flat: n] ?? 0) - expected) <= 1e-6 * abs(expected) + 1e-7)
        }
        func error(_ bias: Tensor<Float>?) -> Double {
            Self.error(
                of: LayerParts(
                    weight: result.weight, activation: activation, smooth: result.smooth, lowRank: result.lowRank, bias: bias),
                weight: layer.weight, bias: nil, inputs: inputs)
        }
        let official = try LowRankQuantizer.correctedBias(
            nil, weight: layer.weight, shift: ActivationFormat.geluShift, lowRank: result.lowRank)
        #expect(error(result.bias) < error(official), "\(error(result.bias)), \(error(official))")
        // Where the shift adds no error, a layer with activations of −shift is exact except for its codes and its weight.
        let float = try LayerParts(
            weight: result.weight, activation: .float, smooth: result.smooth, lowRank: result.lowRank
        ).layer(.portable)
        let shifted = try LayerParts(
            weight: result.weight, activation: activation, smooth: result.smooth, lowRank: result.lowRank, bias: result.bias
        ).layer(.portable)
        let silent = try Tensor<Float>([1, 256]) { _ in -ActivationFormat.geluShift }
        let (a, b) = (try float(silent), try shifted(silent))
        let size = a.elements.reduce(0) { max($0, abs($1)) }
        for n in 0..<96 { #expect(abs(a[flat: n] - b[flat: n]) <= 1e-4 * size) }
    }

    @Test("operands of a corrected bias that disagree are named")
    func badBias() throws {
        let weight = try WeightQuantizer(.svdQuantInt4)(Tensor<Float>.normal([3, 70], seed: 1))
        func correct(_ bias: [Int]? = nil, smooth: Tensor<Float>? = nil, shift: Float = 1) throws {
            _ = try LowRankQuantizer.correctedBias(
                bias.map { try Tensor(zeros: $0) }, residual: weight, smooth: smooth, shift: shift)
        }
        try correct()
        #expect(try LowRankQuantizer.correctedBias(nil, residual: weight, shift: 0) == nil)
        expectError(.invalidShape, "bias", containing: ["[3]", "[2]"]) { try correct([2]) }
        expectError(.invalidShape, "smooth") { try correct(smooth: Tensor(zeros: [69])) }
        expectError(.invalidArgument, "smooth") { try correct(smooth: Tensor(zeros: [70])) }
        expectError(.invalidArgument, "shift") { try correct(shift: .nan) }
    }
}

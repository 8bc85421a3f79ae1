internal import SVDQuant
internal import SparseKernels

/// Quantises one layer and measures the gains of the low-rank branch and of smoothing.
struct LayerQuantizer {
    private let options: QuantizationOptions

    /// - Throws: `.invalidArgument` for options with which no layer can be quantised.
    init(options: QuantizationOptions) throws(SparseKernelsError) {
        self.options = options
        _ = try LowRankQuantizer(configuration(activation: .int4))
    }

    /// Quantises a layer. Returns its file and its row of the table.
    ///
    /// - Parameters:
    ///   - name: the prefix of the names of the tensors.
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - bias: `[outFeatures]`.
    ///   - calibration: `[tokens, inFeatures]`. Of four or more tokens, every fourth one only measures the errors.
    ///   - pool: the threads to use.
    ///   - tick: called from time to time.
    /// - Throws: the errors of `LowRankQuantizer`, mainly for elements that are not finite.
    func callAsFunction(
        _ name: String, weight: Tensor<Float>, bias: Tensor<Float>?, calibration: Tensor<Float>, on pool: WorkerPool,
        tick: () -> Void
    ) throws(SparseKernelsError) -> (contents: SafetensorsWriter, report: LayerReport) {
        let activation = activation(for: calibration)
        let (fitting, heldOut) = try Self.split(calibration)
        let clock = ContinuousClock()
        let start = clock.now
        let result = try withoutActuallyEscaping(tick) { tick throws(SparseKernelsError) in
            try LowRankQuantizer(configuration(activation: activation))(
                weight: weight, bias: bias, calibration: fitting, on: pool, progress: { _ in tick() })
        }
        let seconds = (clock.now - start) / .seconds(1)
        let layer = try SVDQuantLinear(
            weight: result.weight, smooth: result.smooth, lowRank: result.lowRank, bias: result.bias, activation: activation)

        let exact = try ExactLayer(weight: weight, bias: bias, input: heldOut, on: pool)
        func roundedError(_ smooth: Tensor<Float>?) throws(SparseKernelsError) -> Double {
            let smoothed = if let smooth { try columns(of: weight, times: smooth) } else { weight }
            let rounded = try WeightQuantizer(.svdQuantInt4, scaleType: options.scaleType.elementType)(smoothed, on: pool)
            return try exact.error(
                of: SVDQuantLinear(weight: rounded, smooth: smooth, bias: bias).with(activation: activation, on: pool), on: pool
            )
        }
        var writer = SafetensorsWriter()
        try layer.write(to: &writer, prefix: name)
        let smoothedError: Double? = if let smooth = result.smooth { try roundedError(smooth) } else { nil }
        let report = LayerReport(
            layer: name, outFeatures: layer.outFeatures, inFeatures: layer.inFeatures, rank: layer.rank,
            activation: activation == .int8PerGroup ? "int8" : activation == .int4 ? "int4" : "uint4",
            bytesPerWeight: try bytes(of: writer, except: name + ".bias") / Double(weight.count),
            alpha: result.candidate?.alpha, beta: result.candidate?.beta, tokens: heldOut.shape[0],
            roundedError: try roundedError(nil), smoothedError: smoothedError,
            outputError: try exact.error(of: layer, on: pool),
            seconds: seconds)
        return (writer, report)
    }

    /// Reserves every fourth token to measure errors, because GPTQ fits a weight to its tokens, particularly to few.
    private static func split(
        _ calibration: Tensor<Float>
    ) throws(SparseKernelsError) -> (fitting: Tensor<Float>, heldOut: Tensor<Float>) {
        let (tokens, width) = (calibration.shape[0], calibration.shape[1])
        guard tokens >= 4 else { return (calibration, calibration) }
        let elements = calibration.span
        return (
            try Tensor([tokens - tokens / 4, width]) { elements[($0 / width * 4 / 3) * width + $0 % width] },
            try Tensor([tokens / 4, width]) { elements[($0 / width * 4 + 3) * width + $0 % width] }
        )
    }

    private func configuration(activation: ActivationFormat) -> LowRankQuantizer.Configuration {
        var configuration = LowRankQuantizer.Configuration()
        configuration.rank = options.rank
        configuration.weightFormat = .svdQuantInt4
        configuration.activation = activation
        configuration.iterations = options.iterations
        configuration.scaleType = options.scaleType.elementType
        configuration.residual = options.method == .gptq ? .gptq : .roundToNearest
        configuration.smoothing =
            switch options.smoothing {
            case .none: .none
            case .search: .search()
            case .fixed(let alpha, let beta): .fixed(SmoothingCandidate(alpha: alpha, beta: beta))
            }
        return configuration
    }

    /// Unsigned codes need activations that the shift makes positive.
    private func activation(for calibration: Tensor<Float>) -> ActivationFormat {
        switch options.activation {
        case .int4: return .int4
        case .int8: return .int8PerGroup
        case .uint4Shift:
            let values = calibration.span
            let isShifted = values.indices.allSatisfy { values[$0] >= -ActivationFormat.geluShift }
            return isShifted ? .uint4(shift: ActivationFormat.geluShift) : .int4
        }
    }

    private func bytes(of writer: SafetensorsWriter, except name: String) throws(SparseKernelsError) -> Double {
        let tensors = try SafetensorsFile(bytes: writer.encoded()).tensors
        return Double(tensors.filter { $0.name != name }.reduce(0) { $0 + $1.byteRange.count })
    }

    /// W · diag(smooth).
    private func columns(of weight: Tensor<Float>, times smooth: Tensor<Float>) throws(SparseKernelsError) -> Tensor<Float> {
        let (elements, factors) = (weight.span, smooth.span)
        return try Tensor(weight.shape) { elements[$0] * factors[$0 % factors.count] }
    }
}

/// The floating-point results of a layer for its calibration tokens, with which quantised layers are compared.
private struct ExactLayer {
    let input: Tensor<Float>
    /// x·Wᵀ, without the bias.
    private let output: Tensor<Float>
    private let bias: Tensor<Float>?
    private let norm: Double

    init(weight: Tensor<Float>, bias: Tensor<Float>?, input: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) {
        self.input = input
        self.bias = bias
        var output = try Tensor<Float>(zeros: [input.shape[0], weight.shape[0]])
        try GEMM(m: input.shape[0], n: weight.shape[0], k: weight.shape[1], transposesB: true)
            .run(a: input, b: weight, into: &output, on: pool)
        let values = output.span
        norm = values.indices.reduce(0) { $0 + Double(values[$1]) * Double(values[$1]) }.squareRoot()
        self.output = output
    }

    /// ‖ŷ − y‖ / ‖x·Wᵀ‖ (Frobenius). If x·Wᵀ is 0: 0 if the result is 0 too, and 1 if not.
    func error(of layer: SVDQuantLinear, on pool: WorkerPool) throws(SparseKernelsError) -> Double {
        let quantized = try layer(input, on: pool)
        let (actual, expected, features) = (quantized.span, output.span, output.shape[1])
        var sum = 0.0
        for i in actual.indices {
            let difference = Double(actual[i]) - Double(bias?[flat: i % features] ?? 0) - Double(expected[i])
            sum += difference * difference
        }
        return sum == 0 ? 0 : norm == 0 ? 1 : sum.squareRoot() / norm
    }
}

internal import SparseKernels

/// `svdquant.engine_activation_quant`: the activation codes and scales of the nunchaku engine, signed and shifted.
///
/// Codes and scales are compared exactly. The recorded tolerance accepts another code where a quotient is within 10⁻⁶ of the
/// middle between two codes; it is for approximate reciprocals.
func replayEngineActivation(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var group: Int
        var unsigned: Bool
        var shift: Float
        var dtype: String
    }
    let parameters = try golden.parameters(Parameters.self)
    let smooth = try golden.file.floatTensor("in.smooth")
    let activation: ActivationFormat = parameters.unsigned ? .uint4(shift: parameters.shift) : .int4
    let format = try WeightFormat(.int4, groupSize: parameters.group)
    // The rule belongs to a layer; its weights do not matter.
    let (k, groups) = (smooth.count, format.groups(inFeatures: smooth.count))
    let weight = try QuantizedWeight(
        format: format, inFeatures: k, codes: Tensor(zeros: [1, format.paddedInFeatures(k) / 2]),
        scales: Tensor([1, groups]) { _ in 1 })
    let layer = try QuantizedLinear(
        PackedWeight(weight, instructionSet: instructionSet), activation: activation, smooth: smooth)
    let quantized: QuantizedActivations
    if parameters.dtype == "float16" {
        let x = try golden.file.tensor("in.x", as: Float16.self)
        quantized = try layer.quantized(x.matrixView(named: "in.x"), on: pool)
    } else {
        let x = try golden.file.tensor("in.x", as: BFloat16.self)
        quantized = try layer.quantized(x.matrixView(named: "in.x"), on: pool)
    }
    let codes = try golden.file.tensor("out.codes", as: Int8.self)
    let scales = try golden.file.floatTensor("out.scales_rounded")
    try golden.check("out.scales_rounded", scales.shape, quantized.scales.shape)
    try golden.check("out.codes", codes.shape, [quantized.codes.shape[0], k])
    var comparison = GoldenComparison()
    for index in 0..<scales.count {
        comparison.compare(
            "out.scales_rounded[\(index)]", actual: Double(quantized.scales[flat: index]),
            expected: Double(scales[flat: index]), bound: 0)
    }
    let padded = quantized.codes.shape[1]
    for row in 0..<codes.shape[0] {
        for column in 0..<k {
            comparison.compare(
                "out.codes[\(row), \(column)]", actual: Double(quantized.codes[flat: row * padded + column]),
                expected: Double(codes[flat: row * k + column]), bound: 0)
        }
    }
    return comparison.result(golden)
}

internal import SparseKernels

/// `nvila.w8a8_linear`: a linear layer whose weights have a scale per output and whose activations have one per token.
///
/// Codes, scales and the integer sums are compared exactly, and y within 10⁻⁶ of the terms that are added, the product and the bias.
/// The sums come from a layer of the same codes with scales of 1, whose tokens are codes too: the largest of a token is 127, so that
/// its scale is 1. They are below 2²⁴, where floats are exact. A row of zeros has the scale 1 here and 0 in the case; its codes are 0
/// in both.
func replayW8A8Linear(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let (w, x) = (try golden.file.floatTensor("in.w"), try golden.file.floatTensor("in.x"))
    let bias = try golden.file.floatTensor("in.bias")
    let weight = try WeightQuantizer(.int8PerChannel, scaleType: .float32)(w, on: pool)
    let layer = try QuantizedLinear(
        PackedWeight(weight, instructionSet: instructionSet, on: pool), activation: .int8PerToken, bias: bias)
    let (tokens, depth, outputs) = (x.shape[0], w.shape[1], w.shape[0])
    var comparison = GoldenComparison()

    // Codes and scales.
    let weightCodes = try recorded(golden, "out.w_codes", as: Int8.self, [outputs, depth])
    let weightScales = try recorded(golden, "out.w_scale", as: Float.self, [outputs])
    for row in 0..<outputs {
        if weightScales[flat: row] != 0 {
            compareExactly("out.w_scale[\(row)]", weight.scales[flat: row], weightScales[flat: row], &comparison)
        }
        for k in 0..<depth {
            comparison.compare(
                "out.w_codes[\(row), \(k)]", actual: Double(weight.code(row: row, column: k)),
                expected: Double(weightCodes[flat: row * depth + k]), bound: 0)
        }
    }
    let activations = try layer.quantized(x.matrixView(named: "in.x"), on: pool)
    let codes = try recorded(golden, "out.x_codes", as: Int8.self, [tokens, depth])
    let scales = try recorded(golden, "out.x_scale", as: Float.self, [tokens])
    let (padded, groups) = (activations.codes.shape[1], activations.scales.shape[1])
    for token in 0..<tokens {
        compareExactly(
            "out.x_scale[\(token)]", activations.scales[flat: token * groups], scales[flat: token], &comparison)
        for k in 0..<depth {
            comparison.compare(
                "out.x_codes[\(token), \(k)]", actual: Double(activations.codes[flat: token * padded + k]),
                expected: Double(codes[flat: token * depth + k]), bound: 0)
        }
    }

    // Sums and outputs.
    let unit = try QuantizedWeight(
        format: .int8PerChannel, inFeatures: depth, codes: weight.codes, scales: Tensor([outputs, 1]) { _ in 1 })
    let sums = try QuantizedLinear(
        PackedWeight(unit, instructionSet: instructionSet, on: pool), activation: .int8PerToken)(
            Tensor(codes.shape) { Float(codes[flat: $0]) }, on: pool)
    let expectedSums = try recorded(golden, "out.acc", as: Int32.self, [tokens, outputs])
    let y = try layer(x, on: pool)
    let expected = try recorded(golden, "out.y", as: Float.self, [tokens, outputs])
    for index in 0..<y.count {
        let place = "[\(index / outputs), \(index % outputs)]"
        comparison.compare(
            "out.acc\(place)", actual: Double(sums[flat: index]), expected: Double(expectedSums[flat: index]), bound: 0)
        let offset = Double(bias[flat: index % outputs])
        let terms = abs(Double(expected[flat: index]) - offset) + abs(offset)
        comparison.compare(
            "out.y\(place)", actual: Double(y[flat: index]), expected: Double(expected[flat: index]), bound: 1e-6 * terms)
    }
    return comparison.result(golden)
}

private func recorded<Element: TensorElement>(
    _ golden: GoldenCase, _ name: String, as type: Element.Type, _ shape: [Int]
) throws(SparseKernelsError) -> Tensor<Element> {
    let tensor = try golden.file.tensor(name, as: type)
    try golden.check(name, tensor.shape, shape)
    return tensor
}

private func compareExactly(_ label: String, _ actual: Float, _ expected: Float, _ comparison: inout GoldenComparison) {
    comparison.compare(label, actual: Double(actual), expected: Double(expected), bound: 0)
}

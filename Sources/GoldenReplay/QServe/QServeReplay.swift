internal import QServe
internal import SparseKernels

/// `qserve.w4a8`: progressive and per-channel quantisation, deepcompressor's packed tensors, and a layer.
///
/// Codes, scales, zeros, packed bytes, and the weights that are unpacked from them, are compared exactly. The recorded y uses
/// weights that were rounded to fp16 after dequantisation, which no QServe kernel does. The effect of that rounding, Σ x̂ ·
/// (recorded weight − s1·(s2·q − zero)), is computed in `Double` and subtracted. The tolerance is then 1e-6 of Σ |x̂ · w|: the
/// recorded "rel 1e-6", for the size of the terms.
func replayQServe(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let weight = try golden.file.floatTensor("in.weight")
    var comparison = GoldenComparison()
    var grouped: QuantizedWeight?
    for (variant, quantizer) in [
        ("g128", try ProgressiveQuantizer()), ("perchn", try ProgressiveQuantizer(groupSize: nil)),
    ] {
        let quantized = try quantizer(weight, on: pool)
        try compareCodes(golden, "out.\(variant).codes", quantized, &comparison)
        let s1 = quantized.channelScales ?? quantized.scales
        try compareElements(golden, "out.\(variant).s1", s1, &comparison)
        if let offsets = quantized.offsets { try compareElements(golden, "out.\(variant).zero", offsets, &comparison) }
        if variant == "g128" {
            try compareElements(golden, "out.g128.s2", quantized.scales, &comparison)
            grouped = quantized
        }
        let tensors = try QServeTensors(packing: quantized, order: .deepcompressor, on: pool)
        try compareTensors(golden, "out.\(variant).packed_", tensors, &comparison)
        try compareCodes(
            golden, "out.\(variant).codes", tensors.weight(order: .deepcompressor, on: pool), &comparison)
    }
    // The recorded layer ran on halves, and so must this one, because the scale of a token is a half too.
    #if !(os(macOS) && arch(x86_64))
        if let grouped {
            let x = try golden.file.tensor("in.x", as: Float16.self)
            let y = try QServeLinear(quantized: grouped, instructionSet: instructionSet, on: pool)(x, on: pool)
            try compareOutput(golden, y, grouped, &comparison)
        }
    #endif
    return comparison.result(golden)
}

/// `qserve.omniserve_pack`: omniserve's own packer for given codes. Every byte, and the unpacked weights, are compared exactly.
func replayQServePack(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let codes = try golden.file.tensor("in.codes", as: UInt8.self)
    let scales = try golden.file.tensor("in.s2", as: Int8.self)
    let zeros = try golden.file.tensor("in.zeros", as: UInt8.self)
    let channelScales = try golden.file.floatTensor("in.s1")
    try require(
        codes.shape.count == 2, .invalidShape, "in.codes of \(golden.name)", expected: "rank 2", actual: "\(codes.shape)")
    try golden.check("in.zeros", zeros.shape, scales.shape)
    let nibbles = try Tensor<UInt8>([codes.shape[0], codes.shape[1] / 2]) {
        codes[flat: 2 * $0] & 15 | codes[flat: 2 * $0 + 1] << 4
    }
    // This packer takes zeros in units of s2.
    let weight = try QuantizedWeight(
        format: WeightFormat(.uint4, groupSize: QServeTensors.groupSize), inFeatures: codes.shape[1], codes: nibbles,
        scales: Tensor(scales.shape) { Float(scales[flat: $0]) },
        offsets: Tensor(scales.shape) { Float(scales[flat: $0]) * Float(zeros[flat: $0]) }, channelScales: channelScales)
    let tensors = try QServeTensors(packing: weight, order: .omniserve, on: pool)
    var comparison = GoldenComparison()
    try compareTensors(golden, "out.", tensors, &comparison)
    try compareCodes(golden, "in.codes", tensors.weight(order: .omniserve, on: pool), &comparison)
    return comparison.result(golden)
}

private func compareTensors(
    _ golden: GoldenCase, _ prefix: String, _ tensors: QServeTensors, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    for (name, tensor) in [
        ("qweight", tensors.qweight), ("s2_scales", tensors.s2Scales), ("s2_zeros", tensors.s2Zeros),
    ] {
        if let tensor { try comparison.compare(prefix + name, tensor, golden) }
    }
    // The case of one packer has a shorter name for this tensor.
    let s1 = golden.file[prefix + "s1"] == nil ? "s1_scales" : "s1"
    try comparison.compareValues(prefix + s1, tensors.s1Scales, in: golden)
    if let zeros = tensors.s1SZeros { try comparison.compareValues(prefix + "s1_szeros", zeros, in: golden) }
}

/// Compares elements in order. The quantiser's own tensors have an axis more or less.
private func compareElements(
    _ golden: GoldenCase, _ name: String, _ actual: Tensor<Float>, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    try comparison.compareValues(name, Tensor(golden.file.entry(named: name).shape, actual.elements), in: golden)
}

private func compareCodes(
    _ golden: GoldenCase, _ name: String, _ weight: QuantizedWeight, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let expected = try golden.file.tensor(name, as: UInt8.self)
    try golden.check(name, expected.shape, [weight.outFeatures, weight.inFeatures])
    for index in 0..<expected.count {
        let (row, column) = (index / weight.inFeatures, index % weight.inFeatures)
        comparison.compare(
            "\(name)[\(row), \(column)]", actual: Double(weight.code(row: row, column: column)),
            expected: Double(expected[flat: index]), bound: 0)
    }
}

private func compareOutput(
    _ golden: GoldenCase, _ y: Tensor<Float>, _ weight: QuantizedWeight, _ comparison: inout GoldenComparison
) throws(SparseKernelsError) {
    let codes = try golden.file.tensor("out.x_codes", as: Int8.self)
    let scales = try golden.file.floatTensor("out.x_scale")
    let dequantized = try golden.file.floatTensor("out.g128.dequant")
    let expected = try golden.file.tensor("out.y_g128", as: Float.self)
    let (tokens, outputs, inputs) = (codes.shape[0], weight.outFeatures, weight.inFeatures)
    for (name, actual, shape) in [
        ("out.x_codes", codes.shape, [tokens, inputs]), ("out.x_scale", scales.shape, [tokens]),
        ("out.g128.dequant", dequantized.shape, [outputs, inputs]), ("out.y_g128", expected.shape, y.shape),
    ] {
        try golden.check(name, actual, shape)
    }
    let (codeSpan, recorded) = (codes.span, dequantized.span)
    for output in 0..<outputs {
        let exact = (0..<inputs).map { column in
            let group = output * weight.groups + column / QServeTensors.groupSize
            let bracket =
                Double(weight.scales[flat: group]) * Double(weight.code(row: output, column: column))
                - Double(weight.offsets?[flat: group] ?? 0)
            return Double(weight.channelScales?[flat: output] ?? 1) * bracket
        }
        for token in 0..<tokens {
            var (rounding, magnitude) = (0.0, 0.0)
            for column in 0..<inputs {
                let x = Double(scales[flat: token]) * Double(codeSpan[token * inputs + column])
                rounding += x * (Double(recorded[output * inputs + column]) - exact[column])
                magnitude += abs(x * exact[column])
            }
            let index = token * outputs + output
            comparison.compare(
                "out.y_g128[\(token), \(output)]", actual: Double(y[flat: index]),
                expected: Double(expected[flat: index]) - rounding, bound: 1e-6 * magnitude)
        }
    }
}

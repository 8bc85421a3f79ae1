internal import SVDQuant
internal import SparseKernels

/// `svdquant.linear`: a layer from the recorded smoothing and factors, in stages that start from recorded tensors.
///
/// | Stage | Bound |
/// |---|---|
/// | residual → codes and scales | exact |
/// | layer → nunchaku tensors | exact bytes |
/// | nunchaku tensors → codes, scales, smoothing, factors | exact |
/// | recorded activations → y, weights from codes and scales | 1e-6 of ‖y‖, as recorded |
/// | x → activation scales and codes | scales exact, codes within 1 |
/// | x → y, everything included | 1.05 times the recorded error against the float layer |
///
/// The recorded y uses dequantised weights *rounded to 16 bits*, and its branch uses smoothed, rounded activations. Both
/// differences are computed in `Double` and subtracted from the expected values. The last two stages quantise activations by
/// the engine's rule, which divides by the unrounded scale; the recorded codes are the quantiser's, which divides by the
/// rounded one.
func replaySVDQuantLinear(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    let record = try SVDQuantRecord(golden)
    var comparison = GoldenComparison()
    let weight = try record.quantizedResidual(on: pool, &comparison)
    let imported = try SVDQuantLinear(
        nunchaku: golden.file, prefix: SVDQuantRecord.nunchaku, activation: record.activation, instructionSet: instructionSet)
    let layer = try record.layer(weight, instructionSet)
    try record.compareExport(of: layer, &comparison)
    try record.compareImport(imported, &comparison)
    try record.compareOutput(of: weight, instructionSet, pool, &comparison)
    try record.compareActivations(of: imported, pool, &comparison)
    let y = try record.apply(imported, to: "in.x", on: pool)
    let error = distance(
        y.elements.map(Double.init), record.exactOutput.elements.map(Double.init), over: record.exactOutput)
    comparison.compare(
        "‖y − exact‖ / ‖exact‖ of the whole layer", actual: error, expected: 0, bound: 1.05 * record.parameters.error)
    return comparison.result(golden)
}

/// ‖a − b‖ / ‖c‖.
private func distance(_ a: [Double], _ b: [Double], over c: Tensor<Float>) -> Double {
    let squares = zip(a, b).reduce(0.0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
    return (squares / c.elements.reduce(0.0) { $0 + Double($1) * Double($1) }).squareRoot()
}

/// The recorded tensors, with the shapes that the parameters imply.
private struct SVDQuantRecord {
    struct Parameters: Decodable {
        var tokens: Int
        var outFeatures: Int
        var inFeatures: Int
        var rank: Int
        var group: Int
        var shift: Float
        var isUnsigned: Bool
        var error: Double
        var dtype: String

        enum CodingKeys: String, CodingKey {
            case tokens = "M"
            case outFeatures = "N"
            case inFeatures = "K"
            case isUnsigned = "activation_unsigned"
            case error = "rel_err_vs_exact"
            case rank, group, shift, dtype
        }
    }

    static let nunchaku = "out.nunchaku"

    let golden: GoldenCase
    let parameters: Parameters
    let type: ElementType
    let activation: ActivationFormat
    let bias: Tensor<Float>
    let smooth: Tensor<Float>
    let down: Tensor<Float>
    let up: Tensor<Float>
    let exactOutput: Tensor<Float>

    init(_ golden: GoldenCase) throws(SparseKernelsError) {
        let parameters = try golden.parameters(Parameters.self)
        let (m, n, k, r) = (parameters.tokens, parameters.outFeatures, parameters.inFeatures, parameters.rank)
        func floats(_ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
            try golden.check(name, golden.file.entry(named: name).shape, shape)
            return try golden.file.floatTensor(name)
        }
        try golden.check("in.x", golden.file.entry(named: "in.x").shape, [m, k])
        bias = try floats("in.bias", [n])
        smooth = try floats("out.smooth", [k])
        down = try floats("out.lora_down", [r, k])
        up = try floats("out.lora_up", [n, r])
        exactOutput = try floats("out.y_exact", [m, n])
        type = parameters.dtype == "bfloat16" ? .bfloat16 : .float16
        activation = parameters.isUnsigned ? .uint4(shift: parameters.shift) : .int4
        self.golden = golden
        self.parameters = parameters
    }

    /// An element of A · diag(1/smooth), by its flat index.
    private func rawDown(_ index: Int) -> Double {
        Double(down[flat: index]) / Double(smooth[flat: index % parameters.inFeatures])
    }

    func quantizedResidual(
        on pool: WorkerPool, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) -> QuantizedWeight {
        let quantizer = try WeightQuantizer(WeightFormat(.int4, groupSize: parameters.group), scaleType: type)
        let weight = try quantizer(golden.file.floatTensor("out.residual"), on: pool)
        try comparison.compareValues("out.residual_scales", weight.scales, in: golden)
        try comparison.compareBytes(
            "out.residual_codes", weight.codes,
            with: nibbles(of: golden.file.tensor("out.residual_codes", as: Int8.self), named: "out.residual_codes"))
        return weight
    }

    /// The layer that the converter makes: `down` is for raw activations, and the bias undoes the shift in the residual only,
    /// because the branch gets activations without it.
    func layer(_ weight: QuantizedWeight, _ instructionSet: InstructionSet) throws(SparseKernelsError) -> SVDQuantLinear {
        let corrected = try golden.file.floatTensor("out.bias_corrected")
        let (k, r) = (parameters.inFeatures, parameters.rank)
        let shifted = (0..<r).map { i in (0..<k).reduce(0.0) { $0 + rawDown(i * k + $1) } * Double(parameters.shift) }
        let bias = try Tensor<Float>([parameters.outFeatures]) { n in
            Float((0..<r).reduce(Double(corrected[flat: n])) { $0 + Double(up[flat: n * r + $1]) * shifted[$1] })
        }
        return try SVDQuantLinear(
            weight: weight, smooth: smooth,
            lowRank: LowRankBranch(down: Tensor([r, k]) { Float(rawDown($0)) }, up: up), bias: bias, activation: activation,
            instructionSet: instructionSet)
    }

    func compareExport(of layer: SVDQuantLinear, _ comparison: inout GoldenComparison) throws(SparseKernelsError) {
        var writer = SafetensorsWriter()
        try layer.writeNunchaku(to: &writer, prefix: Self.nunchaku, elementType: type)
        let file = try SafetensorsFile(bytes: writer.encoded(), named: "export of \(golden.name)")
        for entry in file.tensors {
            let recorded = try golden.file.entry(named: entry.name)
            try golden.check(entry.name, entry.shape, recorded.shape)
            comparison.compare(
                "type of \(entry.name)", actual: entry.elementType == recorded.elementType ? 0 : 1, expected: 0, bound: 0)
            let actual = try file.bytes(entry.name).withUnsafeBytes { Array($0) }
            let expected = try golden.file.bytes(entry.name).withUnsafeBytes { Array($0) }
            for (index, (actual, expected)) in zip(actual, expected).enumerated() {
                comparison.compare(
                    "byte \(index) of \(entry.name)", actual: Double(actual), expected: Double(expected), bound: 0)
            }
        }
    }

    func compareImport(_ layer: SVDQuantLinear, _ comparison: inout GoldenComparison) throws(SparseKernelsError) {
        try comparison.compareBytes(
            "imported codes", layer.weight.codes,
            with: nibbles(of: golden.file.tensor("out.residual_codes", as: Int8.self), named: "out.residual_codes"))
        try comparison.compareValues("out.residual_scales", layer.weight.scales, in: golden)
        if let smooth = layer.smooth { try comparison.compareValues("out.smooth", smooth, in: golden) }
        if let branch = layer.lowRank {
            try comparison.compareValues("out.lora_up", branch.up, in: golden)
            for index in 0..<down.count {
                let bits = type == .bfloat16 ? BFloat16(Float(rawDown(index))).floatValue : roundedToHalf(Float(rawDown(index)))
                comparison.compare(
                    "imported down[\(index)]", actual: Double(branch.down[flat: index]), expected: Double(bits), bound: 0)
            }
        }
        comparison.compare(
            "parts that are missing after import", actual: layer.smooth == nil || layer.rank != parameters.rank ? 1 : 0,
            expected: 0, bound: 0)
    }

    /// Compares y for the recorded dequantised activations, without the branch.
    func compareOutput(
        of weight: QuantizedWeight, _ instructionSet: InstructionSet, _ pool: WorkerPool, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let (m, n, k, r) = (parameters.tokens, parameters.outFeatures, parameters.inFeatures, parameters.rank)
        let original = try golden.file.floatTensor("in.weight")
        let dequantized = try golden.file.floatTensor("out.residual_dequant")
        let activations = try golden.file.floatTensor("out.x_dequant")
        let smoothed = try golden.file.floatTensor("out.x_smoothed")
        let recorded = try golden.file.floatTensor("out.y_quantized")
        for (name, tensor, shape) in [
            ("in.weight", original, [n, k]), ("out.residual_dequant", dequantized, [n, k]),
            ("out.x_dequant", activations, [m, k]), ("out.x_smoothed", smoothed, [m, k]),
            ("out.y_quantized", recorded, [m, n]),
        ] { try golden.check(name, tensor.shape, shape) }

        // The part of the bias that undoes the shift is not rounded in the recorded y.
        let exactBias = (0..<n).map { row in
            (0..<k).reduce(Double(bias[flat: row])) {
                $0 - Double(parameters.shift) * Double(original[flat: row * k + $1])
            }
        }
        let layerBias = try Tensor<Float>([n]) { Float(exactBias[$0]) }
        let layer = try SVDQuantLinear(
            weight: weight, bias: layerBias, activation: .float, instructionSet: instructionSet)
        let y = try apply(layer, to: "out.x_dequant", on: pool)
        let rounding = (0..<n * k).map {
            Double(dequantized[flat: $0]) - Double(weight.value(row: $0 / k, column: $0 % k))
        }
        var expected: [Double] = []
        for token in 0..<m {
            let row = (0..<k).map { Double(activations[flat: token * k + $0]) }
            let hidden = (0..<r).map { i in
                (0..<k).reduce(0.0) { $0 + Double(smoothed[flat: token * k + $1]) * Double(down[flat: i * k + $1]) }
            }
            for output in 0..<n {
                var sum = Double(recorded[flat: token * n + output])
                for i in 0..<r { sum -= hidden[i] * Double(up[flat: output * r + i]) }
                for i in 0..<k { sum -= row[i] * rounding[output * k + i] }
                expected.append(sum)
            }
        }
        comparison.compare(
            "‖y − expected‖ / ‖y‖ from recorded activations",
            actual: distance(y.elements.map(Double.init), expected, over: recorded), expected: 0, bound: 1e-6)
    }

    /// Compares the quantised activations of the whole layer.
    func compareActivations(
        of layer: SVDQuantLinear, _ pool: WorkerPool, _ comparison: inout GoldenComparison
    ) throws(SparseKernelsError) {
        let quantized: QuantizedActivations
        if type == .bfloat16 {
            let x = try golden.file.tensor("in.x", as: BFloat16.self)
            quantized = try layer.linear.quantized(x.matrixView(named: "in.x"), on: pool)
        } else {
            #if !(os(macOS) && arch(x86_64))
                let x = try golden.file.tensor("in.x", as: Float16.self)
                quantized = try layer.linear.quantized(x.matrixView(named: "in.x"), on: pool)
            #else
                return
            #endif
        }
        try comparison.compareValues("out.x_scales", quantized.scales, in: golden)
        let codes = try golden.file.tensor("out.x_codes", as: Int8.self)
        try golden.check("out.x_codes", quantized.codes.shape, codes.shape)
        for index in 0..<codes.count {
            comparison.compare(
                "out.x_codes[\(index)]", actual: Double(quantized.codes[flat: index]), expected: Double(codes[flat: index]),
                bound: 1)
        }
    }

    /// The output of a layer for recorded activations in their own type.
    func apply(
        _ layer: SVDQuantLinear, to name: String, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        if type == .bfloat16 { return try layer(golden.file.tensor(name, as: BFloat16.self), on: pool) }
        // The compiler has no Float16 on Intel Macs. In `Float` the smoothed activations keep bits that the recorded ones lost.
        #if !(os(macOS) && arch(x86_64))
            return try layer(golden.file.tensor(name, as: Float16.self), on: pool)
        #else
            return try layer(golden.file.floatTensor(name), on: pool)
        #endif
    }
}

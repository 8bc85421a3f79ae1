internal import SparseKernels

/// `awq_gptq.pack`: codes, zero points and scales in the tensors of AWQ and of both versions of GPTQ, and back.
///
/// Words and codes are compared exactly. AutoAWQ computes the dequantised weight in half precision; it is compared within one
/// unit in the last place of half precision.
func replayNibblePacking(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var inFeatures: Int
        var outFeatures: Int
        var group: Int

        enum CodingKeys: String, CodingKey {
            case inFeatures = "K"
            case outFeatures = "N"
            case group
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let (columns, rows) = (parameters.inFeatures, parameters.outFeatures)
    let codes = try golden.file.tensor("in.codes", as: UInt8.self)
    let zeros = try golden.file.tensor("in.zeros", as: UInt8.self)
    let scales = try golden.file.floatTensor("in.scales")
    let format = try WeightFormat(.uint4, groupSize: parameters.group)
    let groups = format.groups(inFeatures: columns)
    try golden.check("in.codes", codes.shape, [rows, columns])
    try golden.check("in.zeros", zeros.shape, [groups, rows])
    try golden.check("in.scales", scales.shape, [groups, rows])
    // Files store [groups, N].
    func scale(_ index: Int) -> Float { scales[flat: index % groups * rows + index / groups] }
    func zero(_ index: Int) -> Float { Float(zeros[flat: index % groups * rows + index / groups]) }
    let weight = try QuantizedWeight(
        format: format, integers: Tensor([rows, columns]) { Int8(codes[flat: $0]) },
        scales: Tensor([rows, groups], generate: scale),
        offsets: Tensor([rows, groups]) { scale($0) * zero($0) }, on: pool)

    var comparison = GoldenComparison()
    var readBack: [(name: String, weight: QuantizedWeight)] = []
    let awq = try AWQLayout(weight, on: pool)
    try comparison.compare("out.awq.qweight", awq.qweight, golden)
    try comparison.compare("out.awq.qzeros", awq.qzeros, golden)
    let official = try AWQLayout(
        qweight: golden.file.tensor("out.awq.qweight"), qzeros: golden.file.tensor("out.awq.qzeros"), scales: scales,
        groupSize: parameters.group)
    readBack.append(("out.awq", try official.quantizedWeight(on: pool)))
    for version in GPTQLayout.Version.allCases {
        let gptq = try GPTQLayout(weight, version: version, on: pool)
        try comparison.compare("out.gptq.qweight", gptq.qweight, golden)
        try comparison.compare("out.gptq.qzeros_\(version)", gptq.qzeros, golden)
        let official = try GPTQLayout(
            version: version, qweight: golden.file.tensor("out.gptq.qweight"),
            qzeros: golden.file.tensor("out.gptq.qzeros_\(version)"), scales: scales, groupSize: parameters.group)
        readBack.append(("out.gptq \(version)", try official.quantizedWeight(on: pool)))
    }

    let recorded = try golden.file.floatTensor("out.awq.dequant_KxN")
    try golden.check("out.awq.dequant_KxN", recorded.shape, [columns, rows])
    for (name, weight) in readBack {
        let values = try weight.dequantized(on: pool)
        for row in 0..<rows {
            for column in 0..<columns {
                comparison.compare(
                    "\(name) code[\(row), \(column)]", actual: Double(weight.code(row: row, column: column)),
                    expected: Double(codes[flat: row * columns + column]), bound: 0)
                let expected = Double(recorded[flat: column * rows + row])
                comparison.compare(
                    "\(name) value[\(row), \(column)]", actual: Double(values[flat: row * columns + column]),
                    expected: expected, bound: 0x1p-10 * abs(expected))
            }
        }
    }
    return comparison.result(golden)
}

extension GoldenComparison {
    /// Compares integers with a recorded tensor of the same shape, exactly.
    mutating func compare<Element: TensorElement & BinaryInteger>(
        _ name: String, _ tensor: Tensor<Element>, _ golden: GoldenCase
    ) throws(SparseKernelsError) {
        let recorded = try golden.file.tensor(name, as: Element.self)
        try golden.check(name, tensor.shape, recorded.shape)
        for (index, (actual, expected)) in zip(tensor.elements, recorded.elements).enumerated() {
            compare("\(name)[\(index)]", actual: Double(actual), expected: Double(expected), bound: 0)
        }
    }
}

internal import SparseKernels

/// `ggml.quantize`: bytes of blocks and their values, exactly, in both directions.
func replayGGMLQuantize(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var types: [String]
    }
    let weight = try golden.file.floatTensor("in.x")
    var comparison = GoldenComparison()
    for type in try golden.parameters(Parameters.self).types {
        guard let kind = GGMLBlocks.Kind(rawValue: type) else {
            throw SparseKernelsError(
                .notFound, "types of \(golden.name)", expected: "Q4_0, Q4_1 or Q8_0", actual: type)
        }
        let prefix = "out.\(type.lowercased())"
        let blocks = try GGMLBlocks(quantizing: weight, as: kind, on: pool)
        try comparison.compare("\(prefix).bytes", blocks.bytes, golden)

        let official = try GGMLBlocks(kind, inFeatures: weight.shape[1], bytes: golden.file.tensor("\(prefix).bytes"))
        let read = try official.quantizedWeight(on: pool)
        try comparison.compare("\(prefix).bytes", GGMLBlocks(read, on: pool).bytes, golden)
        let values = try read.dequantized(on: pool)
        let recorded = try golden.file.floatTensor("\(prefix).dequant")
        try golden.check("\(prefix).dequant", values.shape, recorded.shape)
        for (index, (actual, expected)) in zip(values.elements, recorded.elements).enumerated() {
            comparison.compare("\(prefix).dequant[\(index)]", actual: Double(actual), expected: Double(expected), bound: 0)
        }
    }
    return comparison.result(golden)
}

internal import SparseKernels
internal import SparseLoRA

/// `sparselora.token_split`: the dense positions of labelled batches, which must be equal.
func replayTokenSplit(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        struct Variant: Decodable {
            var padding: String?
            var split: Int?
            var sinks: Int?
            var sparseOutputs: Double?

            enum CodingKeys: String, CodingKey {
                case padding = "padding_side"
                case split
                case sinks = "skip_sink_tokens"
                case sparseOutputs = "sparse_output_tokens"
            }
        }
        var variants: [String: Variant]
    }
    let parameters = try golden.parameters(Parameters.self)
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let labels = try golden.file.tensor("in.\(name).labels", as: Int32.self)
        let (batch, length) = (labels.shape[0], labels.shape[1])
        let rows = (0..<batch).map { sample in (0..<length).map { Int(labels[sample, $0]) } }
        let mask = try golden.file.tensor("out.\(name).dense_mask", as: UInt8.self)
        if variant.sparseOutputs == 1 {
            // Everything is sparse: a configuration without dense output tokens makes no split.
            comparison.compare("\(name): elements of the mask", actual: 0, expected: Double(mask.count), bound: 0)
            continue
        }
        let split =
            if let sinks = variant.sinks {
                try TokenSplit(dense: 0..<sinks, length: length, batch: batch)
            } else {
                try TokenSplit(labels: rows, padsLeft: variant.padding == "left")
            }
        if let position = variant.split {
            comparison.compare(
                "\(name): split", actual: Double(split.dense.lowerBound), expected: Double(position), bound: 0)
        }
        for index in 0..<batch * length {
            comparison.compare(
                "out.\(name).dense_mask[\(index)]", actual: split.isDense(index % length) ? 1 : 0,
                expected: mask[flat: index] == 0 ? 0 : 1, bound: 0)
        }
    }
    return comparison.result(golden)
}

internal import NeighborhoodAttention
internal import SparseKernels

/// `gna.neighborhood_attention`: masks, attention, and attention with additional context tokens, for one to three axes.
///
/// Masks are equal. Tolerance, as recorded with the cases: output and LSE 5·10⁻⁶, against float64 as against the released results,
/// of which the deviation from float64 is recorded, too; 2⁻²² of the expected value is added, the last places of single
/// precision.
func replayNeighborhoodAttention(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        struct Variant: Decodable {
            var size: [Int]
            var window: [Int]
            var stride: [Int]
            var dilation: [Int]
            var causal: [Bool]
            var outputDeviation: Double
            var logSumExpDeviation: Double
            var mergedDeviation: Double?

            enum CodingKeys: String, CodingKey {
                case size, window, stride, dilation, causal
                case outputDeviation = "max_abs_err_o"
                case logSumExpDeviation = "max_abs_err_lse"
                case mergedDeviation = "max_abs_err_merged"
            }
        }
        var variants: [String: Variant]
    }
    let file = golden.file
    func checked<T>(_ tensor: Tensor<T>, _ name: String, _ shape: [Int]) throws(SparseKernelsError) -> Tensor<T> {
        guard tensor.shape == shape else {
            throw SparseKernelsError(
                .invalidShape, "\(name) of \(golden.name)", expected: "\(shape)", actual: "\(tensor.shape)")
        }
        return tensor
    }
    var comparison = GoldenComparison()
    func compare(
        _ actual: Tensor<Float>, _ name: String, deviation: Double
    ) throws(SparseKernelsError) {
        let expected = try checked(file.floatTensor(name), name, actual.shape)
        for index in 0..<expected.count {
            let value = Double(expected[flat: index])
            comparison.compare(
                "\(name)[\(index)]", actual: Double(actual[flat: index]), expected: value,
                bound: 5e-6 + deviation + 0x1p-22 * (value.isFinite ? abs(value) : 0))
        }
    }
    for (name, variant) in try golden.parameters(Parameters.self).variants.sorted(by: { $0.key < $1.key }) {
        let query = try file.floatTensor("in.\(name).q")
        let key = try file.floatTensor("in.\(name).k")
        let value = try file.floatTensor("in.\(name).v")
        let neighborhood = try Neighborhood(
            size: variant.size, window: variant.window, stride: variant.stride, dilation: variant.dilation,
            isCausal: variant.causal)
        let tokens = neighborhood.tokens
        let mask = try neighborhood.mask()
        let expected = try checked(
            file.tensor("out.\(name).mask", as: UInt8.self), "out.\(name).mask", [tokens, tokens])
        for index in 0..<expected.count {
            comparison.compare(
                "out.\(name).mask[\(index)]", actual: Double(mask[flat: index]), expected: expected[flat: index] == 0 ? 0 : 1,
                bound: 0)
        }
        let attention = try NeighborhoodAttention(
            AttentionShape(query: query, key: key, value: value), neighborhood, instructionSet: instructionSet)
        let state = try attention(query: query, key: key, value: value, on: pool)
        for (prefix, deviates) in [("aux.\(name).f64_", false), ("out.\(name).", true)] {
            try compare(state.output, "\(prefix)o", deviation: deviates ? variant.outputDeviation : 0)
            try compare(state.logSumExp, "\(prefix)lse", deviation: deviates ? variant.logSumExpDeviation : 0)
        }
        guard file.tensors.contains(where: { $0.name == "in.\(name).context_k" }) else { continue }
        let merged = try attention(
            query: query, key: key, value: value, contextKey: file.floatTensor("in.\(name).context_k"),
            contextValue: file.floatTensor("in.\(name).context_v"), on: pool)
        let deviation = variant.mergedDeviation ?? variant.outputDeviation
        for (prefix, deviates) in [("aux.\(name).f64_", false), ("out.\(name).", true)] {
            try compare(merged.output, "\(prefix)o_with_context", deviation: deviates ? deviation : 0)
            try compare(
                merged.logSumExp, "\(prefix)lse_with_context", deviation: deviates ? variant.logSumExpDeviation : 0)
        }
    }
    return comparison.result(golden)
}

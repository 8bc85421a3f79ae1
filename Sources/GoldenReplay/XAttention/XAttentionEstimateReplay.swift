internal import SparseKernels
internal import XAttention

/// `xattention.estimate`: antidiagonal scores, block sums and the selection of the released code, for several strides,
/// thresholds and chunks per case.
///
/// * Sums are within 1e-4 of the exact ones (`aux.*.f64_block_sums`), and of the released 16-bit ones within their rounding:
///   2e-2 relative plus 2.5e-2 in BF16, 3e-3 plus 2e-3 in FP16.
/// * Masks equal `aux.*.f64_mask` on the whole padded grid, block by block: the errors of single-precision sums decide no
///   choice of the recorded cases, on any instruction set.
/// * They differ from the released mask, made from 16-bit sums, in at most as many blocks as the case records.
/// * The façade's mask is the padded one cut to the real blocks.
func replayXAttentionEstimate(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        struct Variant: Decodable {
            enum Threshold: Decodable {
                case scalar(Double)
                case perHead

                init(from decoder: any Decoder) throws {
                    let container = try decoder.singleValueContainer()
                    self = (try? .scalar(container.decode(Double.self))) ?? .perHead
                }
            }
            var stride: Int
            var chunk: Int
            var threshold: Threshold
            var isCausal: Bool?
            var keepSink: Bool?
            var keepRecent: Bool?
            /// The number of blocks in which the released mask, from 16-bit sums, differs from the exact one.
            var officialDifferences: Int

            enum CodingKeys: String, CodingKey {
                case stride
                case chunk
                case threshold = "thr"
                case isCausal = "causal"
                case keepSink = "keep_sink"
                case keepRecent = "keep_recent"
                case officialDifferences = "mask_diff_official_vs_f64"
            }
        }
        var blockSize: Int
        var norm: Float
        var variants: [String: Variant]

        enum CodingKeys: String, CodingKey {
            case blockSize = "block_size"
            case norm
            case variants
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let query = try golden.file.floatTensor("in.q")
    let key = try golden.file.floatTensor("in.k")
    let isHalf = try golden.file.entry(named: "in.q").elementType == .float16
    let shape = try AttentionShape(
        query: query.view(named: "in.q"), key: key.view(named: "in.k"), value: key.view(named: "in.k"))
    var comparison = GoldenComparison()
    for (name, variant) in parameters.variants.sorted(by: { $0.key < $1.key }) {
        let thresholds: [Double]
        switch variant.threshold {
        case .scalar(let threshold): thresholds = Array(repeating: threshold, count: shape.queryHeads)
        case .perHead: thresholds = try golden.file.tensor("in.threshold_per_head", as: Double.self).elements
        }
        let prefill = try XAttentionPrefill(
            shape,
            XAttentionConfiguration(
                stride: variant.stride, blockSize: parameters.blockSize, isCausal: variant.isCausal ?? true,
                norm: parameters.norm, mode: .released(chunkSize: variant.chunk), keepSink: variant.keepSink ?? false,
                keepRecent: variant.keepRecent ?? false),
            thresholds: thresholds, instructionSet: instructionSet)
        let scores = try prefill.scores(query: query, key: key, on: pool)

        let exact = try golden.file.floatTensor("aux.\(name).f64_block_sums")
        let official = try golden.file.floatTensor("out.\(name).block_sums")
        let (relative, absolute) = isHalf ? (3e-3, 2e-3) : (2e-2, 2.5e-2)
        for (label, expected) in [("aux.\(name).f64_block_sums", exact), ("out.\(name).block_sums", official)] {
            try golden.check(label, expected.shape, scores.values.shape)
        }
        for index in 0..<exact.count {
            let actual = Double(scores.values[flat: index])
            comparison.compare(
                "aux.\(name).f64_block_sums[\(index)]", actual: actual, expected: Double(exact[flat: index]), bound: 1e-4)
            let rounded = Double(official[flat: index])
            comparison.compare(
                "out.\(name).block_sums[\(index)]", actual: actual, expected: rounded,
                bound: absolute + relative * abs(rounded))
        }

        let selection = try XAttentionSelection(
            thresholds: thresholds, blocksPerChunk: variant.chunk / parameters.blockSize,
            keepSink: variant.keepSink ?? false, keepRecent: variant.keepRecent ?? false)
        let mask = try selection(scores)
        let exactMask = try golden.file.tensor("aux.\(name).f64_mask", as: UInt8.self)
        let officialMask = try golden.file.tensor("out.\(name).mask", as: UInt8.self)
        for (label, expected) in [("aux.\(name).f64_mask", exactMask), ("out.\(name).mask", officialMask)] {
            try golden.check(label, expected.shape, scores.values.shape)
        }
        comparison.compare("aux.\(name).f64_mask", mask, with: exactMask)
        comparison.compare(
            "differences from out.\(name).mask", actual: Double(mask.differences(from: officialMask)), expected: 0,
            bound: Double(variant.officialDifferences))

        let cut = try prefill.mask(from: scores, on: pool)
        let expected = try BlockMask(grid: prefill.grid, heads: mask.heads) { mask[$0, $1, $2] }
        comparison.compare("mask of \(name)", actual: cut == expected ? 1 : 0, expected: 1, bound: 0)
    }
    return comparison.result(golden)
}

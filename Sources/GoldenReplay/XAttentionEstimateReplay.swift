internal import SparseKernels
internal import XAttention

/// `xattention.estimate`: antidiagonal scores, block sums and selection of the official code, for several strides, thresholds and
/// chunks per case.
///
/// * Sums: within 1e-4 of the exact ones (`aux.*.f64_block_sums`), and of the official 16-bit ones within what those round: 2e-2 relative
///   plus 2.5e-2 in BF16, 3e-3 plus 2e-3 in FP16.
/// * Masks equal `aux.*.f64_mask` on the whole padded grid. A difference passes only as a near-tie, see `NearTies`.
/// * They differ from the official mask, made from 16-bit sums, in no more blocks than the case records, plus the near-ties.
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
            /// Blocks in which the official mask, from 16-bit sums, differs from the exact one.
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
            shape, stride: variant.stride, thresholds: thresholds, blockSize: parameters.blockSize,
            isCausal: variant.isCausal ?? true, norm: parameters.norm, mode: .official(chunkSize: variant.chunk),
            keepSink: variant.keepSink ?? false, keepRecent: variant.keepRecent ?? false, instructionSet: instructionSet)
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
        let nearTies = NearTies(sums: try BlockScores(grid: scores.grid, values: exact), thresholds: thresholds)
        let explained = comparison.compare("aux.\(name).f64_mask", mask, with: exactMask) { head, row, column in
            nearTies.contains(head: head, row: row, column: column)
        }
        var differences = 0
        for head in 0..<mask.heads {
            for row in 0..<mask.grid.blockRows {
                for column in 0..<mask.grid.blockColumns {
                    let index = (head * mask.grid.blockRows + row) * mask.grid.blockColumns + column
                    if mask[head, row, column] != (officialMask[flat: index] != 0) { differences += 1 }
                }
            }
        }
        comparison.compare(
            "differences from out.\(name).mask", actual: Double(differences), expected: 0,
            bound: Double(variant.officialDifferences + explained))

        let cut = try prefill.mask(from: scores, on: pool)
        let expected = try BlockMask(grid: prefill.grid, heads: mask.heads) { mask[$0, $1, $2] }
        comparison.compare("mask of \(name)", actual: cut == expected ? 1 : 0, expected: 1, bound: 0)
    }
    return comparison.result(golden)
}

/// Blocks whose selection hangs on less than what the sums may be off: 1e-4 each.
///
/// A block is kept or not by its rank and by the mass of the blocks before it. It may go either way when another block's sum is
/// within 2e-4 of its own, or when the mass before it (with or without the block taken last, as in the first chunk) is within
/// 1e-4 · n of the mass required, n blocks being summed.
private struct NearTies {
    let sums: BlockScores
    let thresholds: [Double]

    func contains(head: Int, row: Int, column: Int) -> Bool {
        let grid = sums.grid
        let values = (0..<grid.blockColumns).map { Double(sums[head, row, $0]) }
        let own = values[column]
        for (other, value) in values.enumerated() where other != column && abs(value - own) <= 2e-4 { return true }
        let required = thresholds[head] * values.reduce(0, +)
        let slack = 1e-4 * Double(grid.blockColumns)
        let diagonal = grid.isCausal ? [0, row + grid.blockColumns - grid.blockRows] : []
        let forced = Set(diagonal)
        let others = values.indices.filter { !forced.contains($0) && values[$0] > own }.map { values[$0] }.sorted(by: >)
        let mass = forced.reduce(0) { $0 + values[$1] } + others.reduce(0, +)
        return [mass, mass - (others.last ?? 0), mass - (forced.contains(0) ? values[0] : 0)]
            .contains { abs($0 - required) <= slack }
    }
}

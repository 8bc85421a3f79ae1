internal import SparseKernels
internal import XAttention

/// `xattention.find_blocks`: the released selection from given sums, before and after post-processing.
///
/// Final masks are compared exactly. Before post-processing, blocks after the causal diagonal with sum 0 are not compared. In
/// the first chunk the rule always keeps one block besides the diagonal, and the released sort, which is not stable, picks any
/// of equal zeros.
func replayFindBlocks(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var blocksPerChunk: Int
        var isCausal: Bool
        var keepSink: Bool
        var keepRecent: Bool
        var thresholds: Thresholds

        enum CodingKeys: String, CodingKey {
            case blocksPerChunk = "blocks_per_chunk"
            case isCausal = "causal"
            case keepSink = "keep_sink"
            case keepRecent = "keep_recent"
            case thresholds = "threshold"
        }
    }
    let parameters = try golden.parameters(Parameters.self)
    let sums = try golden.file.floatTensor("in.block_sums")
    guard sums.shape.count == 3 else {
        throw SparseKernelsError(
            .invalidShape, "in.block_sums of \(golden.name)", expected: "[heads, rows, columns]", actual: "\(sums.shape)")
    }
    // Only the number of blocks matters, so a block is one token.
    let grid = try BlockGrid(
        queryLength: sums.shape[1], keyLength: sums.shape[2], queryBlockSize: 1, keyBlockSize: 1,
        isCausal: parameters.isCausal)
    let scores = try BlockScores(grid: grid, values: sums)
    let selection = try XAttentionSelection(
        thresholds: parameters.thresholds.values, blocksPerChunk: parameters.blocksPerChunk,
        keepSink: parameters.keepSink, keepRecent: parameters.keepRecent)
    var comparison = GoldenComparison()
    let before = try golden.file.tensor("out.mask_before_post", as: UInt8.self)
    let after = try golden.file.tensor("out.mask", as: UInt8.self)
    try golden.check("out.mask_before_post", before.shape, sums.shape)
    try golden.check("out.mask", after.shape, sums.shape)
    comparison.compare("out.mask_before_post", try selection.blocksBeforePostProcessing(scores), with: before) {
        grid.isCausal && $2 > grid.diagonalColumns(ofRow: $1).lowerBound && scores[$0, $1, $2] == 0
    }
    comparison.compare("out.mask", try selection(scores), with: after)
    return comparison.result(golden)
}

/// One threshold, or one per head, as in the recorded parameters.
private struct Thresholds: Decodable {
    let values: [Double]

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        values = try (try? [container.decode(Double.self)]) ?? container.decode([Double].self)
    }
}

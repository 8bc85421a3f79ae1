public import SparseKernels

/// Which positions of a batch of sequences are dense: output tokens, while context tokens are sparse.
///
/// The bounds hold for the whole batch. `dense` begins where the first sample's output begins and ends where the last one's ends, so gaps
/// of context inside the output are dense, too, and a sample of context only has some dense tokens. If all samples are context, nothing is
/// dense.
///
/// ```swift
/// let split = try TokenSplit(labels: [[-100, -100, 7, 8, -100], [-100, 5, 6, -100, -100]])
/// split.dense  // 1..<4
/// ```
///
/// Rows of a batch are sequence-major: the row of position t of sample b is b · length + t.
///
/// - Source: `_patch_spft_forward` in `spft/api.py` of SparseLoRA.
public struct TokenSplit: Hashable, Sendable {
    /// Positions that are dense in every sample.
    public let dense: Range<Int>
    /// Tokens of a sample.
    public let length: Int
    /// Samples.
    public let batch: Int

    /// The split of labelled samples.
    ///
    /// - Parameters:
    ///   - labels: a label per token, as many for each sample.
    ///   - ignored: the label of context, which has no loss.
    ///   - padsLeft: whether short samples are padded on the left. Then everything from the first output token on is dense, and the two
    ///     kinds of tokens are two slices.
    /// - Throws: `.invalidShape` for samples of different lengths, which names the sample.
    public init(labels: [[Int]], ignored: Int = -100, padsLeft: Bool = false) throws(SparseKernelsError) {
        let length = labels.first?.count ?? 0
        var start = length
        var end = 0
        for (sample, row) in labels.enumerated() {
            try require(
                row.count == length, .invalidShape, "labels[\(sample)]", expected: "\(length) labels, as labels[0] has",
                actual: "\(row.count)")
            guard let first = row.firstIndex(where: { $0 != ignored }), let last = row.lastIndex(where: { $0 != ignored })
            else {
                continue
            }
            start = min(start, first)
            end = max(end, last + 1)
        }
        if padsLeft { end = length }
        try self.init(dense: start..<max(start, end), length: length, batch: labels.count)
    }

    /// A split with given bounds, such as `0..<sinks` for tokens at the start.
    ///
    /// - Throws: `.invalidShape` for a negative extent or 2⁴⁸ rows or more, `.invalidArgument` for positions outside 0..<length.
    public init(dense: Range<Int>, length: Int, batch: Int) throws(SparseKernelsError) {
        for (name, extent) in [("length", length), ("batch", batch)] {
            try require(
                extent >= 0 && extent < 1 << 24, .invalidShape, name, expected: "from 0 to below 2²⁴", actual: "\(extent)")
        }
        try require(
            dense.lowerBound >= 0 && dense.upperBound <= length, .invalidArgument, "dense", expected: "inside 0..<\(length)",
            actual: "\(dense)")
        self.dense = dense
        self.length = length
        self.batch = batch
    }

    /// Rows of the batch.
    public var rows: Int { length * batch }
    /// Rows that are dense.
    public var denseRows: Int { dense.count * batch }
    /// Rows that are sparse.
    public var sparseRows: Int { rows - denseRows }

    /// Whether a position is dense.
    public func isDense(_ position: Int) -> Bool { dense.contains(position) }
}

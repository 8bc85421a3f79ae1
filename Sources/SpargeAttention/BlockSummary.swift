public import SparseKernels

/// The blocks of a sequence, each reduced to its mean and the similarity of its tokens.
///
/// SpargeAttention predicts from these summaries which blocks of the attention matrix matter. A mean represents similar tokens
/// well; blocks of dissimilar tokens are always computed.
public struct BlockSummary: Sendable, Equatable {
    public let partition: BlockPartition
    /// The mean over the tokens of each block, `[heads, blocks, channels]`.
    public let means: Tensor<Float>
    /// The mean cosine of all pairs of tokens of each block, `[heads, blocks]`, 0…1 up to rounding. It is NaN for blocks that
    /// are empty or have non-finite values; selection keeps these blocks.
    public let similarities: Tensor<Float>

    public var heads: Int { means.shape[0] }
    public var channels: Int { means.shape[2] }

    /// - Throws: `.invalidShape` unless the means are `[heads, blocks, channels]` with at least one head and channel, and the
    ///   similarities `[heads, blocks]`.
    public init(partition: BlockPartition, means: Tensor<Float>, similarities: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            means.shape.count == 3 && means.shape[0] >= 1 && means.shape[1] == partition.count && means.shape[2] >= 1,
            .invalidShape, "means", expected: "[heads, \(partition.count), channels] with at least one head and channel",
            actual: "\(means.shape)")
        try require(
            similarities.shape == Array(means.shape.prefix(2)), .invalidShape, "similarities",
            expected: "\(means.shape.prefix(2)), as the means", actual: "\(similarities.shape)")
        self.partition = partition
        self.means = means
        self.similarities = similarities
    }
}

/// The part of a linear layer that stays in higher precision: y += (x · downᵀ) · upᵀ.
///
/// It takes the activations before smoothing.
public struct LowRankBranch: Sendable {
    /// `[rank, inFeatures]`.
    public let down: Tensor<Float>
    /// `[outFeatures, rank]`.
    public let up: Tensor<Float>

    public var rank: Int { down.shape[0] }

    /// The largest rank, for layers with several adapters. Kernels then need 1 MiB of scratch per thread, and 32 KiB per row.
    public static let maximumRank = 8192

    /// - Throws: `.invalidShape` unless the factors are matrices that agree, with a rank of 1 to `maximumRank`;
    ///   `.invalidArgument` for an element that is not finite.
    public init(down: Tensor<Float>, up: Tensor<Float>) throws(SparseKernelsError) {
        try require(
            down.shape.count == 2 && (1...Self.maximumRank).contains(down.shape[0]) && down.shape[1] >= 1, .invalidShape,
            "down",
            expected: "[rank, inFeatures] with a rank of 1 to \(Self.maximumRank)", actual: "\(down.shape)")
        try require(
            up.shape.count == 2 && up.shape[0] >= 1 && up.shape[1] == down.shape[0], .invalidShape, "up",
            expected: "[outFeatures, \(down.shape[0])]", actual: "\(up.shape)")
        try down.requireFinite(named: "down")
        try up.requireFinite(named: "up")
        self.down = down
        self.up = up
    }
}

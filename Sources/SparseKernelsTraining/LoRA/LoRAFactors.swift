/// The trainable factors of an adapter of one linear layer: y += scale · (x · aᵀ) · bᵀ.
///
/// ```swift
/// let factors = try LoRAFactors(inFeatures: 4096, outFeatures: 4096, rank: 32, alpha: 64, seed: 1)
/// ```
///
/// - Source: Hu et al., 2021 (arXiv 2106.09685); `peft.LoraConfig`, whose `lora_A.weight` and `lora_B.weight` they are.
public struct LoRAFactors: Sendable {
    /// `[rank, inFeatures]`.
    public var a: Tensor<Float>
    /// `[outFeatures, rank]`.
    public var b: Tensor<Float>
    /// Multiplies the product: α / rank, as a rule.
    public let scale: Float

    /// Factors that are there, such as those of a file.
    ///
    /// - Parameters:
    ///   - a: `[rank, inFeatures]`.
    ///   - b: `[outFeatures, rank]`.
    ///   - scale: multiplies the product.
    /// - Throws: `.invalidShape` for other ranks of the tensors, no rank, or two different ones; `.invalidArgument` for a scale that is not finite.
    public init(a: Tensor<Float>, b: Tensor<Float>, scale: Float) throws(SparseKernelsError) {
        try require(
            a.shape.count == 2 && a.shape[0] >= 1, .invalidShape, "a", expected: "[rank, inFeatures] of rank 1 or more",
            actual: "\(a.shape)")
        try require(
            b.shape.count == 2 && b.shape[1] == a.shape[0], .invalidShape, "b", expected: "[outFeatures, \(a.shape[0])]",
            actual: "\(b.shape)")
        try require(scale.isFinite, .invalidArgument, "scale", expected: "finite", actual: "\(scale)")
        self.a = a
        self.b = b
        self.scale = scale
    }

    /// New factors, whose product is 0: `a` is uniform within ±1/√inFeatures, which is Kaiming's distribution with a = √5, and `b` is 0.
    ///
    /// - Parameters:
    ///   - inFeatures: columns of the layer's weight.
    ///   - outFeatures: rows of the layer's weight.
    ///   - rank: r, at least 1.
    ///   - alpha: α; the scale is α / r.
    ///   - seed: of the generator. The same seed gives the same factors on every platform.
    /// - Throws: `.invalidShape` for extents that are negative, a rank below 1 or sizes that overflow, `.invalidArgument` for an α that is not
    ///   finite.
    public init(
        inFeatures: Int, outFeatures: Int, rank: Int, alpha: Float, seed: UInt64
    ) throws(SparseKernelsError) {
        try require(rank >= 1, .invalidShape, "rank", expected: "at least 1", actual: "\(rank)")
        try require(alpha.isFinite, .invalidArgument, "alpha", expected: "finite", actual: "\(alpha)")
        var generator = SplitMix64(seed: seed)
        let bound = 1 / Float(max(1, inFeatures)).squareRoot()
        let a = try Tensor<Float>([rank, inFeatures]) { _ in (2 * generator.uniform() - 1) * bound }
        try self.init(a: a, b: Tensor(zeros: [outFeatures, rank]), scale: alpha / Float(rank))
    }

    public var inFeatures: Int { a.shape[1] }
    public var outFeatures: Int { b.shape[0] }
    public var rank: Int { a.shape[0] }
}

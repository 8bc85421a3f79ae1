/// How the scale of a tensor in 8-bit floats follows from its largest magnitude: current scaling, one scale per tensor.
///
/// A tensor is stored as cast(x · scale) and read as code / scale, with scale = largest finite code / amax, so that the range of the
/// format is used whole.
///
/// - Source: `compute_scale_from_amax` of NVIDIA Transformer Engine; NVIDIA, "Nemotron-H" (2025, arXiv 2504.03624), which trains with it.
public struct Float8Scaling: Hashable, Sendable {
    /// Rounds the scale down to a power of two, so that scaling is exact.
    public var usesPowersOfTwo: Bool
    /// Smaller largest magnitudes are taken as this one. 0 changes nothing.
    public var leastAmax: Float

    /// - Parameters:
    ///   - usesPowersOfTwo: rounds the scale down to a power of two.
    ///   - leastAmax: the floor of the largest magnitude, 0 or more and finite.
    /// - Throws: `.invalidArgument` for another floor.
    public init(usesPowersOfTwo: Bool = false, leastAmax: Float = 0) throws(SparseKernelsError) {
        try require(
            leastAmax >= 0 && leastAmax.isFinite, .invalidArgument, "leastAmax", expected: "0 or more, and finite",
            actual: "\(leastAmax)")
        self.usesPowersOfTwo = usesPowersOfTwo
        self.leastAmax = leastAmax
    }

    private init() { (usesPowersOfTwo, leastAmax) = (false, 0) }

    /// The scale as it is, without a floor.
    public static let current = Float8Scaling()

    /// The scale for a largest magnitude: 1 where that is 0, infinite or NaN, and the largest finite number where the quotient overflows.
    public func scale<Code: Float8>(amax: Float, for format: Code.Type) -> Float {
        let amax = amax < leastAmax ? leastAmax : amax
        if amax == 0 || !amax.isFinite { return 1 }
        var scale = Code.greatestFiniteMagnitude / amax
        if scale.isInfinite { scale = .greatestFiniteMagnitude }
        return usesPowersOfTwo ? Float(bitPattern: scale.bitPattern & 0xff80_0000) : scale
    }
}

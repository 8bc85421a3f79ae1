/// How far single-precision attention may be from exact attention, derived from the data of a row.
///
/// Sums of n rounded terms are off by at most γ·Σ|terms|. The worst case, γ = n·u, never happens on long sums; rounding errors
/// of random sign give γ = λ·√n·u with a probability that λ sets (Higham and Mary, 2019). λ = 6 leaves less than one row in 10⁷.
/// With u = 2⁻²⁴, A the row's score magnitude, n its visible keys and d the head dimension:
///
///     |δs| ≤ σ = (λ·√d + 3)·u·A                 3: Q is scaled and rounded, the maximum is subtracted, the product is rounded
///     |δp|/p ≤ 2σ + ε                           a probability carries the error of its own score and of the maximum
///     |δo| ≤ (2·(2σ + ε) + 2·λ·√n·u + 4u)·max|v|   numerator and denominator, then the division and the store
///     |δLSE| ≤ σ + ε + λ·√n·u + 2u·|LSE|
///
/// ε = 2e-7 bounds the kernels' 2ˣ (1.7e-7) and the rounding of its argument's constant. A soft cap has slope ≤ 1 in its score
/// and adds 4e-7·cap of its own.
public struct AttentionErrorBound: Sendable {
    public var output: Double
    public var logSumExp: Double

    public static let unitRoundoff = 0x1p-24
    public static let confidence = 6.0
    public static let exponential = 2e-7

    /// The bound of one row that was computed in `Float` from the same inputs.
    public init(_ row: ReferenceAttention.Row, headDim: Int, logitsSoftCap: Float? = nil) {
        let u = Self.unitRoundoff
        let scores =
            (Self.confidence * Double(headDim).squareRoot() + 3) * u * row.scoreMagnitude
            + 4e-7 * Double(logitsSoftCap ?? 0)
        let sum = Self.confidence * Double(max(1, row.visibleKeys)).squareRoot() * u
        output = (2 * (2 * scores + Self.exponential) + 2 * sum + 4 * u) * row.valueMagnitude
        logSumExp =
            scores + Self.exponential + sum + 2 * u * (row.logSumExp.isFinite ? abs(row.logSumExp) : 0)
    }
}

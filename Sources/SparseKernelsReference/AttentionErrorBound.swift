/// The possible distance of single-precision attention from exact attention, derived from the data of a row.
///
/// A sum of n rounded terms is off by at most γ·Σ|terms|. Long sums do not reach the worst case, γ = n·u; rounding errors of
/// random sign give γ = λ·√n·u with a probability that λ sets (Higham and Mary, 2019). λ = 6 leaves less than one row in 10⁷.
/// With u = 2⁻²⁴, d the head dimension, n the visible keys, and the sums over the probabilities of `Sensitivity`:
///
///     scores         σ = λ·(√d + 2)·u           2: the scaled q is rounded, and the sum of the chains
///     exponentials   ε = 2e-7 + 4e-7·cap        eˣ within 2e-7·(1 + |x|/2), tanh within 4e-7
///     sums           ρ = λ·(√min(n, 128) + √(n/128) + 2)·u + 4u      blocks of 128 keys; division, store
///
///     |δo|   ≤ σ·√(Σ p²A²D²) + ε·Σ p(1 + (m − s)/2)·D + ρ·max_c Σ p|v_c|
///     |δLSE| ≤ σ·√(Σ p²A²)   + ε·Σ p(1 + (m − s)/2)   + ρ + 2u·|LSE|
public struct AttentionErrorBound: Sendable {
    public var output: Double
    public var logSumExp: Double

    public static let unitRoundoff = 0x1p-24
    public static let confidence = 6.0

    /// The bound of one row that was computed in `Float` from the same inputs.
    public init(_ row: ReferenceAttention.Row, headDim: Int, logitsSoftCap: Float? = nil) {
        let u = Self.unitRoundoff
        let keys = Double(max(1, row.visibleKeys))
        let scores = Self.confidence * (Double(headDim).squareRoot() + 2) * u
        let exponentials = 2e-7 + 4e-7 * Double(logitsSoftCap ?? 0)
        let sums = Self.confidence * (min(keys, 128).squareRoot() + (keys / 128).squareRoot() + 2) * u + 4 * u
        let by = row.sensitivity
        output = scores * by.outputByScores + exponentials * by.outputByExponentials + sums * by.outputBySums
        logSumExp =
            scores * by.logSumExpByScores + exponentials * by.logSumExpByExponentials + sums
            + 2 * u * (row.logSumExp.isFinite ? abs(row.logSumExp) : 0)
    }
}

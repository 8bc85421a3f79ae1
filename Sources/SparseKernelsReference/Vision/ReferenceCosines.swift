/// Cosines of rows with a vector in `Double`.
public enum ReferenceCosines {
    /// x·p / (max(‖x‖, ε) · max(‖p‖, ε)).
    public static func score(_ x: [Double], _ p: [Double], epsilon: Double) -> Double {
        func norm(_ x: [Double]) -> Double { max(x.reduce(0) { $0 + $1 * $1 }.squareRoot(), epsilon) }
        return zip(x, p).reduce(0) { $0 + $1.0 * $1.1 } / (norm(x) * norm(p))
    }

    /// What a score may be off by.
    ///
    /// A sum of n products passes through the additions that `ReferenceRows.sumError` counts, so x·p is off by that much of Σ |x·p|, and
    /// ‖x‖ by half as much of itself. Root, two divisions and the rounding of ‖p‖ add 4 units of 2⁻²⁴ of the score.
    public static func errorBound(_ x: [Double], _ p: [Double], epsilon: Double) -> Double {
        let magnitudes = score(x.map(abs), p.map(abs), epsilon: epsilon)
        let sums = ReferenceRows.sumError(x.count)
        return magnitudes * sums + abs(score(x, p, epsilon: epsilon)) * (sums / 2 + 4 * 0x1p-24)
    }
}

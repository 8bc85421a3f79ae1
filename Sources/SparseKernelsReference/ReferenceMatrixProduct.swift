/// C = A·B in `Double`, row-major, by three loops.
public enum ReferenceMatrixProduct {
    /// One element, and Σ|a·b|, to which the rounding error of a single-precision product is proportional.
    public static func element(
        row: Int, column: Int, depth: Int, a: (Int, Int) -> Float, b: (Int, Int) -> Float
    ) -> (value: Double, magnitude: Double) {
        var value = 0.0
        var magnitude = 0.0
        for k in 0..<depth {
            let term = Double(a(row, k)) * Double(b(k, column))
            value += term
            magnitude += abs(term)
        }
        return (value, magnitude)
    }

    /// The possible error of a `Float` product: λ·√K·u·Σ|a·b|. See `AttentionErrorBound` for λ.
    public static func errorBound(magnitude: Double, depth: Int) -> Double {
        AttentionErrorBound.confidence * Double(depth).squareRoot() * AttentionErrorBound.unitRoundoff * magnitude
    }
}

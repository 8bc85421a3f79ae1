public import SparseKernels

/// Depthwise convolution in `Double`: one channel of one cell, straight from the definition.
public enum ReferenceDepthwise {
    /// Σ_i Σ_j weight[i][j] · x[row + i − k/2][column + j − k/2] + bias, with zeros outside the grid, and the sum of magnitudes.
    public static func cell(
        _ row: Int, _ column: Int, grid: GridSize, side: Int, bias: Double, weight: (Int, Int) -> Float, x: (Int, Int) -> Float
    ) -> (value: Double, magnitude: Double) {
        var (value, magnitude) = (bias, abs(bias))
        for i in 0..<side {
            for j in 0..<side {
                let (r, c) = (row + i - side / 2, column + j - side / 2)
                if r < 0 || r >= grid.rows || c < 0 || c >= grid.columns { continue }
                let term = Double(weight(i, j)) * Double(x(r, c))
                value += term
                magnitude += abs(term)
            }
        }
        return (value, magnitude)
    }

    /// The possible error of a `Float` sum: λ·√(k² + 1)·u·Σ|terms|, and a unit for sums of few terms.
    public static func errorBound(magnitude: Double, side: Int) -> Double {
        (AttentionErrorBound.confidence * Double(side * side + 1).squareRoot() + 2) * AttentionErrorBound.unitRoundoff
            * magnitude
    }
}

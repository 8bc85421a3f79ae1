/// The upper Cholesky factor of an inverse, computed as in GPTQ: H = L · Lᵀ, H⁻¹ column by column, H⁻¹ = Uᵀ · U.
public enum ReferenceInverseCholesky {
    /// U for a symmetric `[order, order]` matrix; nil when it is not positive definite.
    public static func upper(_ matrix: [Double], order: Int) -> [Double]? {
        guard let factor = lower(matrix, order: order) else { return nil }
        var inverse = [Double](repeating: 0, count: order * order)
        for column in 0..<order {
            var x = (0..<order).map { $0 == column ? 1.0 : 0.0 }
            for i in 0..<order {
                for j in 0..<i { x[i] -= factor[i * order + j] * x[j] }
                x[i] /= factor[i * order + i]
            }
            for i in (0..<order).reversed() {
                for j in i + 1..<order { x[i] -= factor[j * order + i] * x[j] }
                x[i] /= factor[i * order + i]
            }
            for i in 0..<order { inverse[i * order + column] = x[i] }
        }
        return lower(inverse, order: order).map { lower in
            (0..<order * order).map { lower[$0 % order * order + $0 / order] }
        }
    }

    /// L with L · Lᵀ = the matrix; nil when the matrix is not positive definite.
    private static func lower(_ matrix: [Double], order: Int) -> [Double]? {
        var factor = [Double](repeating: 0, count: order * order)
        for i in 0..<order {
            for j in 0...i {
                var sum = matrix[i * order + j]
                for k in 0..<j { sum -= factor[i * order + k] * factor[j * order + k] }
                if i == j && !(sum > 0) { return nil }
                factor[i * order + j] = i == j ? sum.squareRoot() : sum / factor[j * order + j]
            }
        }
        return factor
    }
}

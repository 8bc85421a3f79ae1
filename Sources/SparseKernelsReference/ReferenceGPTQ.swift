/// GPTQ's rounding of a weight in `Double`, column by column and without blocks: Frantar et al. (arXiv 2210.17323).
public enum ReferenceGPTQ {
    /// Rounds the weight.
    ///
    /// - Parameters:
    ///   - weight: the rows of W.
    ///   - inputs: the rows of X.
    ///   - damping: the fraction of the mean of diag H that is added to diag H.
    ///   - round: returns the nearest value on the grid of a row and column.
    public static func rounded(
        _ weight: [[Double]], inputs: [[Double]], damping: Double,
        round: (_ value: Double, _ row: Int, _ column: Int) -> Double
    ) -> [[Double]] {
        let columns = weight[0].count
        var hessian = (0..<columns).map { i in
            (0..<columns).map { j in inputs.reduce(0) { $0 + $1[i] * $1[j] } * 2 / Double(inputs.count) }
        }
        let isDead = (0..<columns).map { hessian[$0][$0] == 0 }
        for k in 0..<columns where isDead[k] { hessian[k][k] = 1 }
        let mean = (0..<columns).reduce(0) { $0 + hessian[$1][$1] } / Double(columns)
        let order = (0..<columns).sorted { (hessian[$1][$1], $0) < (hessian[$0][$0], $1) }
        for k in 0..<columns { hessian[k][k] += damping * mean }
        // After column `order[i]` is rounded, one step of Gaussian elimination gives the inverse of H over later columns.
        var inverse = inverted(order.map { i in order.map { hessian[i][$0] } })
        var values = weight.map { row in order.map { isDead[$0] ? 0 : row[$0] } }
        var result = weight
        for i in 0..<columns {
            for n in values.indices {
                let value = round(values[n][i], n, order[i])
                result[n][order[i]] = value
                let error = (values[n][i] - value) / inverse[i][i]
                for j in i + 1..<columns { values[n][j] -= error * inverse[i][j] }
            }
            for a in i + 1..<columns {
                let factor = inverse[a][i] / inverse[i][i]
                for b in i..<columns { inverse[a][b] -= factor * inverse[i][b] }
            }
        }
        return result
    }

    /// The inverse by Gauss–Jordan elimination, for positive definite matrices.
    private static func inverted(_ matrix: [[Double]]) -> [[Double]] {
        let count = matrix.count
        var (a, inverse) = (matrix, (0..<count).map { i in (0..<count).map { $0 == i ? 1.0 : 0.0 } })
        for i in 0..<count {
            let pivot = a[i][i]
            for k in 0..<count {
                a[i][k] /= pivot
                inverse[i][k] /= pivot
            }
            for row in 0..<count where row != i {
                let factor = a[row][i]
                if factor == 0 { continue }
                for k in 0..<count {
                    a[row][k] -= factor * a[i][k]
                    inverse[row][k] -= factor * inverse[i][k]
                }
            }
        }
        return inverse
    }
}

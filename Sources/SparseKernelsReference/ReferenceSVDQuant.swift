internal import Foundation

/// SVDQuant's quantiser in `Double`, loop by loop as in arXiv 2411.05007 and deepcompressor: smoothing, rounding of weights and
/// activations with one scale per group, and the split into a low-rank branch and a residual.
///
/// Matrices are arrays of rows. `Rounding` rounds to the 16-bit type of scales and factors.
public enum ReferenceSVDQuant {
    public typealias Matrix = [[Double]]
    public typealias Rounding = @Sendable (Double) -> Double

    /// The rounding that keeps all bits.
    public static let exact: Rounding = { $0 }

    /// s[k] = max |x[·, k]|^α / max |W[·, k]|^β; 0 becomes 1, and all become 1 if one is not finite.
    public static func smoothingFactors(
        inputs: Matrix, weights: [Matrix], alpha: Double, beta: Double, rounding: Rounding = exact
    ) -> [Double] {
        func columnMaximum(_ rows: Matrix, _ k: Int) -> Double { rows.reduce(0) { max($0, abs($1[k])) } }
        let factors = inputs[0].indices.map { k in
            let largestInput = columnMaximum(inputs, k)
            let largestWeight = weights.reduce(0) { max($0, columnMaximum($1, k)) }
            let factor = rounding(pow(largestInput, alpha) / pow(largestWeight, beta))
            return factor == 0 ? 1 : factor
        }
        return factors.allSatisfy(\.isFinite) ? factors : factors.map { _ in 1 }
    }

    /// Values of a row after symmetric rounding by groups: scale = max |w| / limit, rounded before it divides; 0 becomes 1.
    public static func roundedWeights(
        _ row: [Double], groupSize: Int, limit: Double = 7, rounding: Rounding = exact
    ) -> [Double] {
        groups(row, groupSize).flatMap { group in
            let absmax = group.reduce(0) { max($0, abs($1)) }
            let scale = rounding(absmax / limit) == 0 ? 1 : rounding(absmax / limit)
            return group.map { min(max(($0 / scale).rounded(.toNearestOrEven), -limit), limit) * scale }
        }
    }

    /// Values of a row after rounding by groups at run time: the scale that divides is not rounded, the one that multiplies is.
    public static func roundedActivations(
        _ row: [Double], groupSize: Int, codes: ClosedRange<Double> = -7...7, rounding: Rounding = exact
    ) -> [Double] {
        groups(row.map(rounding), groupSize).flatMap { group in
            let scale = group.reduce(0) { max($0, abs($1)) } / codes.upperBound
            return group.map { value in
                if scale == 0 { return 0.0 }
                let code = (value / scale).rounded(.toNearestOrEven)
                return min(max(code, codes.lowerBound), codes.upperBound) * rounding(scale)
            }
        }
    }

    /// The result of a split and its errors.
    public struct Split: Sendable {
        public var down: Matrix
        public var up: Matrix
        /// Σ |y − y_ref|² by iteration, up to the first one that is worse.
        public var errors: [Double]
    }

    /// Splits a smoothed weight iteratively. Weights are rounded symmetrically to ±7, activations by `roundActivations`.
    public static func split(
        _ weight: Matrix, inputs: Matrix, rank: Int, iterations: Int, groupSize: Int, rounding: Rounding = exact,
        roundActivations: ([Double]) -> [Double]
    ) -> Split {
        let reference = product(inputs, transposed(weight))
        let activations = inputs.map(roundActivations)
        var rounded = weight.map { $0.map { _ in 0.0 } }
        var best: Split?
        var errors: [Double] = []
        for _ in 0..<iterations {
            let factors = lowRankFactors(difference(weight, rounded), rank: rank)
            let (down, up) = (factors.down.map { $0.map(rounding) }, factors.up.map { $0.map(rounding) })
            rounded = difference(weight, product(up, down)).map {
                roundedWeights($0, groupSize: groupSize, rounding: rounding)
            }
            let branch = product(product(inputs, transposed(down)), transposed(up))
            let outputs = zip(product(activations, transposed(rounded)), branch).map { zip($0, $1).map(+) }
            let error = squaredDistance(outputs, reference)
            errors.append(error)
            if error > best.map({ $0.errors[$0.errors.count - 1] }) ?? .infinity { break }
            best = Split(down: down, up: up, errors: errors)
        }
        return Split(down: best?.down ?? [], up: best?.up ?? [], errors: errors)
    }

    /// b − W·shift + up · (down · shift), for a branch that takes x before the shift.
    public static func correctedBias(_ bias: [Double], weight: Matrix, shift: Double, down: Matrix, up: Matrix) -> [Double] {
        let shifted = down.map { $0.reduce(0, +) * shift }
        return bias.indices.map { n in
            bias[n] - weight[n].reduce(0, +) * shift + zip(up[n], shifted).reduce(0) { $0 + $1.0 * $1.1 }
        }
    }

    private static func groups(_ row: [Double], _ size: Int) -> [[Double]] {
        stride(from: 0, to: row.count, by: size).map { Array(row[$0..<min(row.count, $0 + size)]) }
    }
}

// MARK: - Matrices

extension ReferenceSVDQuant {
    public static func product(_ a: Matrix, _ b: Matrix) -> Matrix {
        a.map { row in
            var sums = [Double](repeating: 0, count: b[0].count)
            for (factor, line) in zip(row, b) { for j in sums.indices { sums[j] += factor * line[j] } }
            return sums
        }
    }

    public static func transposed(_ matrix: Matrix) -> Matrix {
        matrix[0].indices.map { column in matrix.map { $0[column] } }
    }

    public static func difference(_ a: Matrix, _ b: Matrix) -> Matrix { zip(a, b).map { zip($0, $1).map(-) } }

    public static func squaredDistance(_ a: Matrix, _ b: Matrix) -> Double {
        difference(a, b).reduce(0) { $0 + $1.reduce(0) { $0 + $1 * $1 } }
    }

    /// U_r · diag(σ) and V_rᵀ of the singular value decomposition, by one-sided Jacobi rotations of the rows.
    public static func lowRankFactors(_ matrix: Matrix, rank: Int) -> (up: Matrix, down: Matrix, singularValues: [Double]) {
        // Rows of `rows` become σᵢ·vᵢᵀ, and `turns` has the uᵢᵀ: turns · matrix = rows.
        var rows = matrix
        var turns = matrix.indices.map { i in matrix.indices.map { $0 == i ? 1.0 : 0.0 } }
        for _ in 0..<60 {
            var largest = 0.0
            for i in rows.indices {
                for j in rows.indices where j > i {
                    let (a, b, c) = (dot(rows[i], rows[i]), dot(rows[j], rows[j]), dot(rows[i], rows[j]))
                    guard c != 0 else { continue }
                    largest = max(largest, abs(c) / (a * b).squareRoot())
                    let zeta = (b - a) / (2 * c)
                    let tangent = (zeta >= 0 ? 1.0 : -1) / (abs(zeta) + (1 + zeta * zeta).squareRoot())
                    let cosine = 1 / (1 + tangent * tangent).squareRoot()
                    rotate(&rows, i, j, cosine, cosine * tangent)
                    rotate(&turns, i, j, cosine, cosine * tangent)
                }
            }
            if largest < 1e-12 { break }
        }
        let values = rows.map { dot($0, $0).squareRoot() }
        let order = rows.indices.sorted { values[$0] > values[$1] }.prefix(rank)
        let down = order.map { i in values[i] > 0 ? rows[i].map { $0 / values[i] } : rows[i] }
        let up = matrix.indices.map { n in order.map { turns[$0][n] * values[$0] } }
        return (up, down, order.map { values[$0] })
    }

    static func dot(_ a: [Double], _ b: [Double]) -> Double {
        var sum = 0.0
        for k in a.indices { sum += a[k] * b[k] }
        return sum
    }

    private static func rotate(_ rows: inout Matrix, _ i: Int, _ j: Int, _ cosine: Double, _ sine: Double) {
        for k in rows[i].indices {
            let (x, y) = (rows[i][k], rows[j][k])
            rows[i][k] = cosine * x - sine * y
            rows[j][k] = sine * x + cosine * y
        }
    }
}

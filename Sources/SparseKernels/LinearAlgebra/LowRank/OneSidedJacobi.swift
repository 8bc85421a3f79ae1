/// Singular value decomposition by one-sided Jacobi rotations, in `Double`.
///
/// It rotates pairs of rows of M until all are orthogonal: rotation · M = diag(values) · Vᵀ, so that M = rotationᵀ ·
/// diag(values) · Vᵀ. Small singular values have the same relative accuracy as large ones.
///
/// The pairs of a round have no row in common, so a round runs in parallel and every pool gives the same bits.
///
/// - Complexity: about 6 · m² · (n + m) multiply-adds per sweep for m rows of n; 5 to 10 sweeps.
/// - Memory: m · (n + m) doubles.
/// - Source: Hestenes (1958); the order of Brent and Luk (1985); the orthogonality test of Demmel and Veselić (1992).
struct OneSidedJacobi {
    /// `[m, m]`, an orthogonal matrix.
    private(set) var rotation: [Double]
    /// `[m, n]`: orthogonal rows of the lengths `values`.
    private(set) var rows: [Double]
    /// Singular values, descending.
    let values: [Double]

    /// - Parameters:
    ///   - rows: M, `[count, length]`, finite.
    init(rows matrix: [Double], count: Int, length: Int, on pool: WorkerPool) {
        // Rows are scaled by a power of two, so that the largest element is near 1 and squares of the rounding errors that
        // remain of dependent rows do not underflow.
        let largest = matrix.reduce(0) { max($0, abs($1)) }
        let unit = largest > 0 ? Double(sign: .plus, exponent: largest.exponent, significand: 1) : 1
        // A line has a row of M and the same row of the rotation, each padded to whole vectors.
        let (padded, paddedCount) = ((length + 3) / 4 * 4, (count + 3) / 4 * 4)
        let stride = padded + paddedCount
        var lines = [Double](repeating: 0, count: count * stride)
        for row in 0..<count {
            for column in 0..<length { lines[row * stride + column] = matrix[row * length + column] / unit }
            lines[row * stride + padded + row] = 1
        }
        lines.withUnsafeMutableBufferPointer { lines in
            var sweep = Sweep(lines: lines.baseAddress!, count: count, stride: stride, length: padded)
            while sweep.number < Self.sweepLimit && sweep.run(on: pool) { sweep.number += 1 }
        }
        let norms = (0..<count).map { row in
            let norm = (0..<length).reduce(0.0) { $0 + lines[row * stride + $1] * lines[row * stride + $1] }.squareRoot()
            return norm < Self.negligible ? 0 : norm * unit
        }
        let order = (0..<count).sorted { (norms[$1], $0) < (norms[$0], $1) }
        values = order.map { norms[$0] }
        rotation = order.flatMap { lines[$0 * stride + padded..<$0 * stride + padded + count] }
        rows = order.flatMap { row in
            lines[row * stride..<row * stride + length].map { norms[row] == 0 ? 0 : $0 * unit }
        }
    }

    /// Rows shorter than this, in a matrix with a largest element near 1, are 0. The elements of a matrix of `Float` span a
    /// range of 2²⁷⁷, so that shorter rows are only rounding errors. The square of this number is far from underflow.
    fileprivate static let negligible = 0x1p-300

    /// Convergence is quadratic once rows are nearly orthogonal. 30 sweeps are three times the most needed so far.
    private static let sweepLimit = 30
}

/// One rotation of every pair of rows.
private struct Sweep {
    let lines: UnsafeMutablePointer<Double>
    let count: Int
    /// Doubles per line. The first `length` are those of M.
    let stride: Int
    let length: Int
    var number = 0

    /// The cosine below which rows are orthogonal: the rounding of a dot product, which is chains of n / 8 sums.
    private var tolerance: Double { Double(length / 8 + 8) * 0x1p-53 }

    init(lines: UnsafeMutablePointer<Double>, count: Int, stride: Int, length: Int) {
        self.lines = lines
        self.count = count
        self.stride = stride
        self.length = length
    }

    /// Returns whether any pair was rotated.
    func run(on pool: WorkerPool) -> Bool {
        // A tournament: all rows except the first move by one seat per round. With an odd count one row pauses.
        let players = count + count % 2
        var rotated = [Bool](repeating: false, count: players / 2)
        var result = false
        for round in 0..<max(0, players - 1) {
            rotated.withUnsafeMutableBufferPointer { rotated in
                let call = Round(sweep: self, players: players, round: round, rotated: rotated.baseAddress!)
                pool.run(call, tasks: players / 2, work: players / 2 * stride * 6)
            }
            result = result || rotated.contains(true)
        }
        return result
    }

    private struct Round: PoolCall {
        let sweep: Sweep
        let players: Int
        let round: Int
        let rotated: UnsafeMutablePointer<Bool>

        func perform(task: Int, scratch: UnsafeMutableRawPointer) {
            let seats = players - 1
            let first = task == 0 ? seats : (round + task) % seats
            let second = (round + seats - task) % seats
            let (low, high) = (min(first, second), max(first, second))
            rotated[task] = high < sweep.count && sweep.rotate(low, high)
        }
    }

    /// Makes two rows orthogonal. Returns whether they were not.
    private func rotate(_ i: Int, _ j: Int) -> Bool {
        let (a, b) = (lines + i * stride, lines + j * stride)
        let alpha = TriangularFactor.dot(a, a, length)
        let beta = TriangularFactor.dot(b, b, length)
        let gamma = TriangularFactor.dot(a, b, length)
        let (first, second) = (alpha.squareRoot(), beta.squareRoot())
        if first < OneSidedJacobi.negligible || second < OneSidedJacobi.negligible { return false }
        if !(abs(gamma) > tolerance * first * second) { return false }
        let zeta = (beta - alpha) / (2 * gamma)
        let tangent = (zeta < 0 ? -1 : 1) / (abs(zeta) + (1 + zeta * zeta).squareRoot())
        let cosine = 1 / (1 + tangent * tangent).squareRoot()
        let sine = cosine * tangent
        for k in 0..<stride {
            let (x, y) = (a[k], b[k])
            a[k] = cosine * x - sine * y
            b[k] = sine * x + cosine * y
        }
        return true
    }
}

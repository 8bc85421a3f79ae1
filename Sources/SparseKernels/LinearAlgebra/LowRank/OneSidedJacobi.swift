/// Singular value decomposition by one-sided Jacobi rotations, in `Double`.
///
/// Rotates pairs of rows of M until all are orthogonal: rotation · M = diag(values) · Vᵀ, so that M = rotationᵀ · diag(values) · Vᵀ.
/// Small singular values come out as exactly, relative to themselves, as large ones.
///
/// The pairs of a round have no row in common, so a round runs in parallel and every pool gives the same bits.
///
/// - Complexity: about 6 · m² · (n + m) multiply-adds per sweep for m rows of n; 5 to 10 sweeps.
/// - Memory: m · (n + m) doubles.
/// - Source: Hestenes (1958); the order of Brent and Luk (1985); the test for orthogonality of Demmel and Veselić (1992).
struct OneSidedJacobi {
    /// `[m, m]`, orthogonal.
    private(set) var rotation: [Double]
    /// `[m, n]`: orthogonal rows, of the lengths `values`.
    private(set) var rows: [Double]
    /// Singular values, descending.
    let values: [Double]

    /// - Parameters:
    ///   - rows: M, `[count, length]`, finite.
    init(rows matrix: [Double], count: Int, length: Int, on pool: WorkerPool) {
        // Multiples of a power of two with a largest element near 1, so that squares of what rounding leaves of dependent rows do not
        // underflow.
        let largest = matrix.reduce(0) { max($0, abs($1)) }
        let unit = largest > 0 ? Double(sign: .plus, exponent: largest.exponent, significand: 1) : 1
        // A line holds a row of M and the same row of the rotation, each padded to whole vectors.
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

    /// Rows below this, of a matrix with a largest element near 1, are 0: the elements of a matrix of `Float` span 2²⁷⁷, so that
    /// what is smaller is made of rounding errors alone. Its square is far from underflow.
    fileprivate static let negligible = 0x1p-300

    /// Convergence is quadratic once rows are nearly orthogonal; 30 sweeps are three times what any matrix has been seen to need.
    private static let sweepLimit = 30
}

/// One rotation of every pair of rows.
private struct Sweep {
    let lines: UnsafeMutablePointer<Double>
    let count: Int
    /// Doubles of a line; the first `length` are M's.
    let stride: Int
    let length: Int
    var number = 0

    /// Rows whose cosine is below this are orthogonal: the rounding of a dot product, chains of n / 8 sums.
    private var tolerance: Double { Double(length / 8 + 8) * 0x1p-53 }

    init(lines: UnsafeMutablePointer<Double>, count: Int, stride: Int, length: Int) {
        self.lines = lines
        self.count = count
        self.stride = stride
        self.length = length
    }

    /// Returns whether any pair was rotated.
    func run(on pool: WorkerPool) -> Bool {
        // A tournament: everybody but the first moves on by one place per round. With an odd count one row pauses.
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

    /// Makes two rows orthogonal; returns whether they were not.
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

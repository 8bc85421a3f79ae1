import SparseKernels
import SparseKernelsReference
import Testing

/// For matrices of exactly low rank, of awkward shapes and scales, the factors reproduce them for any sketch.
@Suite("Low-rank factorisation of exactly low-rank matrices")
struct LowRankExactTests {
    /// ‖A − up·down‖ relative to ‖A‖: 2e-7 for the rounding of the factors, and u·√n for `up`, whose sums of n are in `Float`.
    static func tolerance(_ length: Int) -> Double { 2e-7 + 0x1p-24 * Double(length).squareRoot() }

    struct Problem {
        let matrix: DoubleMatrix
        /// The largest possible rank.
        let rank: Int
        let label: String
    }

    /// `rows` × `columns`, of rank `rank` or less: integer factors, whose product is exact, or random ones.
    static func problem(seed: UInt64) throws -> Problem {
        var random = SplitMix64(seed: seed)
        func pick<T>(_ values: [T]) -> T { values[Int(random.next() % UInt64(values.count))] }
        let (rows, columns) = (pick([1, 2, 3, 5, 7, 12, 16, 17, 33, 40, 64, 96]), pick([1, 2, 3, 5, 8, 13, 16, 31, 40, 65]))
        let rank = min(pick([0, 1, 1, 1, 2, 3, 4, 7]), min(rows, columns))
        let kind = pick(["integers", "normal", "equal", "decay", "column"])
        let scale = pick([1, 1, 0x1p66, 0x1p-66, 3, 0x1p95, 0x1p-100, 1e-4])
        func factor(_ count: Int) -> [Double] {
            (0..<count).map { _ in kind == "integers" ? Double(Int(random.next() % 7)) - 3 : Double(random.normal()) }
        }
        var left = DoubleMatrix(rows: rows, columns: rank, factor(rows * rank))
        var right = DoubleMatrix(rows: rank, columns: columns, factor(rank * columns))
        switch kind {
        case "equal":
            // There are repeated singular values, and a matrix that is mostly zeros.
            left.elements = left.elements.indices.map { $0 / max(1, rank) == $0 % max(1, rank) ? 1 : 0 }
            right.elements = right.elements.indices.map { $0 / columns == $0 % columns ? 1 : 0 }
        case "decay":
            for index in right.elements.indices { for _ in 0..<index / columns { right.elements[index] /= 100 } }
        case "column":
            // With one column or a few, rows of the sketch are exact multiples of others.
            for index in right.elements.indices where index % columns >= rank { right.elements[index] = 0 }
        default: break
        }
        var matrix = left * right
        for index in matrix.elements.indices { matrix.elements[index] *= scale }
        return Problem(
            matrix: matrix, rank: rank, label: "seed \(seed): \(rows) × \(columns), rank \(rank), \(kind), scale \(scale)")
    }

    static func expectExact(
        _ factors: LowRankFactors, _ matrix: DoubleMatrix, tolerance: Double, _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let norm = matrix.norm
        let error = (matrix - factors.product).norm
        #expect(error <= tolerance * norm, "\(label): \(error / norm)", sourceLocation: sourceLocation)
        let values = factors.singularValues
        #expect(zip(values, values.dropFirst()).allSatisfy { $0 >= $1 } && values.allSatisfy { $0 >= 0 }, "\(label): \(values)")
        // Rows of V are orthonormal. A row is zero only where nothing determines it and the method is the full one.
        let gram = (DoubleMatrix(factors.down) * DoubleMatrix(factors.down).transposed)
        var departure = 0.0
        for i in 0..<factors.rank {
            for j in 0..<factors.rank {
                let value = gram.elements[i * factors.rank + j]
                let isZeroRow = i == j && value == 0
                departure = max(departure, isZeroRow ? 0 : abs(value - (i == j ? 1 : 0)))
            }
        }
        #expect(departure <= 1e-6, "\(label): departure \(departure)", sourceLocation: sourceLocation)
        // Columns of U · Σ are orthogonal, and their lengths are the values.
        let lengths = DoubleMatrix(factors.up).transposed * DoubleMatrix(factors.up)
        for i in 0..<factors.rank {
            for j in 0..<factors.rank {
                let expected = i == j ? Double(values[i]) * Double(values[i]) : 0
                let distance = abs(lengths.elements[i * factors.rank + j] - expected)
                #expect(distance <= 2e-6 * norm * norm, "\(label): (\(i), \(j)) \(distance)", sourceLocation: sourceLocation)
            }
        }
    }

    @Test("factors give the matrix back", arguments: [false, true])
    func exact(_ isFull: Bool) throws {
        for seed in 0..<UInt64(isFull ? 60 : 600) {
            let problem = try Self.problem(seed: seed)
            let limit = min(problem.matrix.rows, problem.matrix.columns)
            // The ranks are that of the matrix and larger ones.
            for rank in Set([max(1, problem.rank), min(limit, problem.rank + 3), limit]).sorted() {
                let matrix = try problem.matrix.tensor
                let svd = try LowRankFactorization(rank: rank, method: isFull ? .full : .randomized(), seed: seed)
                let tolerance = Self.tolerance(max(problem.matrix.rows, problem.matrix.columns))
                try Self.expectExact(
                    svd(matrix), DoubleMatrix(matrix), tolerance: tolerance, "\(problem.label), asked for \(rank)")
            }
        }
    }

    @Test("many 40 × 5 matrices of rank 1 are reproduced", arguments: [1, 2, 5])
    func fortyByFive(_ rank: Int) throws {
        for seed in 0..<UInt64(400) {
            let (u, v) = try (Tensor<Float>.normal([40, 1], seed: 2 * seed), Tensor<Float>.normal([1, 5], seed: 2 * seed + 1))
            let matrix = try (DoubleMatrix(u) * DoubleMatrix(v)).tensor
            let factors = try LowRankFactorization(rank: rank, seed: seed)(matrix)
            Self.expectExact(factors, DoubleMatrix(matrix), tolerance: 2e-7, "seed \(seed), asked for \(rank)")
        }
    }
}

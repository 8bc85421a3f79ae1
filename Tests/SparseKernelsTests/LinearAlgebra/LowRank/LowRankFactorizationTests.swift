import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// Truncated singular value decomposition: known spectra, agreement of methods, odd shapes, warm starts, and limits.
@Suite("Low-rank factorisation")
struct LowRankFactorizationTests {
    static let unitRoundoff = 0x1p-24

    struct Shape: Sendable, CustomTestStringConvertible {
        var rows: Int
        var columns: Int
        var rank: Int
        var testDescription: String { "\(rows)×\(columns), rank \(rank)" }
    }

    static let shapes = [
        Shape(rows: 96, columns: 160, rank: 1), Shape(rows: 160, columns: 96, rank: 8), Shape(rows: 96, columns: 160, rank: 32),
        Shape(rows: 128, columns: 128, rank: 31),
    ]
    static let methods: [SVDMethod] = [.randomized(), .full]

    /// √Σ_{i > r} σᵢ², the smallest distance of any matrix of rank r (Eckart and Young).
    static func optimum(_ values: [Double], rank: Int) -> Double {
        values.dropFirst(rank).reduce(0) { $0 + $1 * $1 }.squareRoot()
    }

    /// The error from rounding the factors: 2·u per element of the product, relative to Σ|up·down| ≤ √r · |row of up|, and λ =
    /// 6 for the products in `Float` from which the factors come.
    static func rounding(_ matrix: DoubleMatrix, rank: Int) -> Double {
        6 * unitRoundoff * Double(rank).squareRoot() * matrix.norm + 6 * unitRoundoff * matrix.norm
    }

    /// The decomposition that exists without the trait.
    static func jacobi(_ matrix: Tensor<Float>, rank: Int) throws -> LowRankFactors {
        let view = try matrix.matrixView()
        return try FullDecomposition.jacobiFactors(of: view, rank: rank, on: .shared)
    }

    @Test("reaches the best error for a spectrum that decays", arguments: shapes, methods)
    func decayingSpectrum(_ shape: Shape, _ method: SVDMethod) throws {
        let values = (1...min(shape.rows, shape.columns)).map { 3 / (Double($0) * Double($0).squareRoot()) }
        let matrix = try DoubleMatrix.withSingularValues(values, rows: shape.rows, columns: shape.columns, seed: 5)
        let factors = try LowRankFactorization(rank: shape.rank, method: method)(matrix.tensor)
        let error = (matrix - factors.product).norm
        let rounding = Self.rounding(matrix, rank: shape.rank)
        #expect(error <= (1 + 1e-3) * Self.optimum(values, rank: shape.rank) + rounding)
        #expect(factors.down.shape == [shape.rank, shape.columns] && factors.up.shape == [shape.rows, shape.rank])
        #expect(factors.departureFromOrthogonality <= 6 * Self.unitRoundoff * Double(shape.columns).squareRoot())
        for (value, expected) in zip(factors.singularValues, values) {
            #expect(abs(value - Float(expected)) <= Float(1e-3 * expected + rounding))
        }
        // `up` contains all of σ.
        let lengths = (DoubleMatrix(factors.up).transposed * DoubleMatrix(factors.up)).elements
        for i in 0..<shape.rank {
            #expect(abs(lengths[i * (shape.rank + 1)].squareRoot() - Double(factors.singularValues[i])) <= rounding)
        }
    }

    @Test("LAPACK and Jacobi rotations find the same decomposition", arguments: [(40, 56), (56, 40), (33, 33)])
    func jacobiAgreesWithLAPACK(_ shape: (Int, Int)) throws {
        let matrix = try Tensor<Float>.normal([shape.0, shape.1], seed: 3)
        let rank = 9
        let full = try LowRankFactorization(rank: rank, method: .full)(matrix)
        let jacobi = try Self.jacobi(matrix, rank: rank)
        let exact = DoubleMatrix(matrix)
        // Both are exact except for storage as `Float`, so the products differ only by that.
        #expect((full.product - jacobi.product).norm <= 2 * Self.rounding(exact, rank: rank))
        for (a, b) in zip(full.singularValues, jacobi.singularValues) {
            #expect(abs(a - b) <= 2 * Float(Self.unitRoundoff) * a)
        }
        #expect(jacobi.departureFromOrthogonality <= 6 * Self.unitRoundoff)
    }

    @Test("LAPACK gets the threads of the pool where they pay, and one for small matrices")
    func lapackThreads() {
        for (rows, columns) in [(1, 1), (64, 512), (512, 64), (256, 256), (511, 512), (32, 4096)] {
            #expect(FullDecomposition.lapackThreads(rows: rows, columns: columns, of: 7) == 1)
        }
        for (rows, columns) in [(512, 512), (3072, 3072), (14336, 4096), (256, 4096), (Int.max, 2), (1 << 31, 1 << 31)] {
            #expect(FullDecomposition.lapackThreads(rows: rows, columns: columns, of: 7) == 7)
        }
    }

    @Test(
        "the full decomposition of a small matrix has the same bits on any number of threads", arguments: [(40, 56), (130, 96)])
    func fullOnAnyThreads(_ shape: (Int, Int)) throws {
        let matrix = try Tensor<Float>.normal([shape.0, shape.1], seed: 4)
        let full = try LowRankFactorization(rank: 7, method: .full)
        let serial = try full(matrix, on: .serial)
        for threads in [2, 7] {
            let factors = try full(matrix, on: WorkerPool(threads: threads))
            #expect(factors.up.bits == serial.up.bits && factors.down.bits == serial.down.bits, "\(threads) threads")
        }
    }

    @Test("a flat spectrum costs a few per cent of what the rank explains, less with more iterations")
    func flatSpectrum() throws {
        let matrix = try Tensor<Float>.normal([128, 160], seed: 8)
        let exact = DoubleMatrix(matrix)
        let rank = 8
        let best = try (exact - Self.jacobi(matrix, rank: rank).product).norm
        var explained: [Double] = []
        for powerIterations in [0, 1, 4, 16] {
            let svd = try LowRankFactorization(rank: rank, method: .randomized(powerIterations: powerIterations))
            let error = try (exact - svd(matrix).product).norm
            explained.append((exact.norm * exact.norm - error * error) / (exact.norm * exact.norm - best * best))
        }
        #expect(zip(explained, explained.dropFirst()).allSatisfy { $0 < $1 })
        #expect(explained[2] > 0.93 && explained[3] > 0.99 && explained[3] < 1.0001, "\(explained)")
    }

    @Test("a matrix of lower rank is reproduced; what is left is zero or nearly so", arguments: methods)
    func lowerRank(_ method: SVDMethod) throws {
        let (u, v) = try (Tensor<Float>.normal([40, 3], seed: 1), Tensor<Float>.normal([3, 30], seed: 2))
        let matrix = try (DoubleMatrix(u) * DoubleMatrix(v)).tensor
        let factors = try LowRankFactorization(rank: 8, method: method)(matrix)
        let exact = DoubleMatrix(matrix)
        #expect((exact - factors.product).norm <= Self.rounding(exact, rank: 8))
        #expect(factors.singularValues[3...].allSatisfy { Double($0) <= Self.rounding(exact, rank: 8) })
        #expect((factors.up.elements + factors.down.elements).allSatisfy { $0.isFinite })
    }

    @Test("zeros give zeros", arguments: methods)
    func zeroMatrix(_ method: SVDMethod) throws {
        let factors = try LowRankFactorization(rank: 4, method: method)(Tensor<Float>(zeros: [12, 9]))
        #expect(factors.up.elements.allSatisfy { $0 == 0 } && factors.down.elements.allSatisfy { $0.isFinite })
        #expect(factors.singularValues == [0, 0, 0, 0])
        // Tiny elements are scaled, and those whose squares vanish count as zero.
        for tiny in [Float(0x1p-80), 0x1p-120] {
            let factors = try LowRankFactorization(rank: 1, method: method)(Tensor<Float>([5, 6]) { Float($0 % 7) * tiny })
            #expect((factors.up.elements + factors.down.elements).allSatisfy { $0.isFinite })
        }
    }

    @Test(
        "full rank reproduces matrices of odd shapes", arguments: [(1, 1), (1, 5), (7, 1), (3, 7), (7, 3), (13, 13)], methods)
    func oddShapes(_ shape: (Int, Int), _ method: SVDMethod) throws {
        let matrix = try Tensor<Float>.normal([shape.0, shape.1], seed: 21)
        let rank = min(shape.0, shape.1)
        let factors = try LowRankFactorization(rank: rank, method: method)(matrix)
        let exact = DoubleMatrix(matrix)
        #expect((exact - factors.product).norm <= Self.rounding(exact, rank: rank))
    }

    @Test("starting from a similar matrix, one pass does what several do from nothing")
    func warmStart() throws {
        let values = (0..<96).map { 4 / Double($0 + 1).squareRoot() }
        let first = try DoubleMatrix.withSingularValues(values, rows: 96, columns: 192, seed: 31)
        let noise = try DoubleMatrix(Tensor<Float>.normal([96, 192], seed: 32, scale: 0.01))
        let second = DoubleMatrix(rows: 96, columns: 192, zip(first.elements, noise.elements).map { $0.0 + $0.1 })
        let rank = 16
        let start = try LowRankFactorization(rank: rank)(first.tensor)
        let best = try (second - Self.jacobi(second.tensor, rank: rank).product).norm
        let single = try LowRankFactorization(rank: rank, method: .randomized(powerIterations: 0))
        let cold = try (second - single(second.tensor).product).norm / best - 1
        let warm = try (second - single(second.tensor, startingFrom: start).product).norm / best - 1
        #expect(warm < 1e-3 && warm < cold / 10, "cold \(cold), warm \(warm)")
        // The starts are of another rank, and from a matrix of zeros.
        let other = try LowRankFactorization(rank: 40)(second.tensor, startingFrom: start)
        let nothing = try LowRankFactorization(rank: 4)(Tensor<Float>(zeros: [96, 192]))
        let fromNothing = try LowRankFactorization(rank: rank)(second.tensor, startingFrom: nothing)
        #expect((second - other.product).norm <= best)
        #expect((second - fromNothing.product).norm <= 1.01 * best)
    }

    @Test("a seed gives the same bits on 1, 2 and 7 threads and from any stride")
    func sameBits() throws {
        let (rows, columns) = (300, 1600)
        let matrix = try Tensor<Float>.normal([rows, columns], seed: 41)
        let svd = try LowRankFactorization(rank: 12, seed: 5)
        let serial = try svd(matrix, on: .serial)
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<3 {
                let factors = try svd(matrix, on: pool)
                #expect(factors.up.bits == serial.up.bits && factors.down.bits == serial.down.bits, "\(threads) threads")
                #expect(factors.singularValues == serial.singularValues)
            }
        }
        let wide = try Tensor<Float>([rows, columns + 5]) {
            $0 % (columns + 5) < columns ? matrix[flat: $0 / (columns + 5) * columns + $0 % (columns + 5)] : .nan
        }
        let strided = try svd(MatrixView(wide.span, rows: rows, columns: columns, rowStride: columns + 5))
        #expect(strided.up.bits == serial.up.bits && strided.down.bits == serial.down.bits)
        #expect(try LowRankFactorization(rank: 12, seed: 6)(matrix).up.bits != serial.up.bits)
    }

    // MARK: - Errors

    @Test("ranks and options outside their domain are refused")
    func badOptions() throws {
        expectError(.invalidArgument, "rank", containing: ["0"]) { _ = try LowRankFactorization(rank: 0) }
        expectError(.invalidArgument, "oversampling", containing: ["-1"]) {
            _ = try LowRankFactorization(rank: 1, method: .randomized(oversampling: -1))
        }
        expectError(.invalidArgument, "powerIterations", containing: ["-2"]) {
            _ = try LowRankFactorization(rank: 1, method: .randomized(powerIterations: -2))
        }
        for method in Self.methods {
            expectError(.invalidArgument, "rank", containing: ["7", "5", "6"]) {
                _ = try LowRankFactorization(rank: 7, method: method)(Tensor<Float>(zeros: [5, 6]))
            }
        }
        let enormous = try LowRankFactorization(rank: 2, method: .randomized(oversampling: .max))
        #expect(try enormous(Tensor<Float>.normal([5, 6], seed: 1)).rank == 2)
    }

    @Test("elements that are not finite or too large are refused", arguments: methods)
    func badElements(_ method: SVDMethod) throws {
        let svd = try LowRankFactorization(rank: 2, method: method)
        for value in [Float.nan, .infinity, -.infinity, 0x1p100] {
            var matrix = try Tensor<Float>.normal([70, 40], seed: 1)
            matrix[flat: 66 * 40 + 39] = value
            expectError(.invalidArgument, "matrix", containing: ["\(value)", "(66, 39)"]) {
                _ = try svd(matrix)
            }
        }
        let large = try Tensor<Float>.normal([7, 9], seed: 1, scale: 0x1p96)
        let factors = try svd(large)
        #expect((factors.up.elements + factors.down.elements + factors.singularValues).allSatisfy { $0.isFinite })
    }

    @Test("a start of another shape is refused")
    func badStart() throws {
        let start = try LowRankFactorization(rank: 2)(Tensor<Float>.normal([6, 8], seed: 1))
        expectError(.invalidShape, "start", containing: ["6 × 8", "8 × 6"]) {
            _ = try LowRankFactorization(rank: 2)(Tensor<Float>.normal([8, 6], seed: 1), startingFrom: start)
        }
        expectError(.invalidShape, "matrix") {
            _ = try LowRankFactorization(rank: 2)(Tensor<Float>(zeros: [8, 6, 2]))
        }
    }
}

import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// GPTQ's factor: compared with GPTQ's own three steps in Double, around block edges, and for matrices that have none.
@Suite("Inverse Cholesky factor")
struct InverseCholeskyTests {
    /// X · Xᵀ / samples + ridge · 1 of random X: positive definite, with eigenvalues between ridge and about 4 + ridge.
    static func hessian(_ order: Int, ridge: Double = 0.1, seed: UInt64 = 3) throws -> DoubleMatrix {
        let samples = order + 5
        let x = try DoubleMatrix(Tensor<Float>.normal([order, samples], seed: seed))
        var h = x * x.transposed
        for index in h.elements.indices {
            h.elements[index] = h.elements[index] / Double(samples) + (index % (order + 1) == 0 ? ridge : 0)
        }
        // Rounded as stored.
        h.elements = h.elements.map { Double(Float($0)) }
        return h
    }

    @Test("agrees with GPTQ's three steps", arguments: [1, 2, 3, 7, 64, 191, 192, 193])
    func agreesWithOracle(_ order: Int) throws {
        let h = try Self.hessian(order)
        let upper = try #require(try InverseCholesky(of: h.tensor)).upper
        let u = DoubleMatrix(upper)
        for row in 0..<order {
            #expect(upper[flat: row * order + row] > 0)
            for column in 0..<row { #expect(upper[flat: row * order + column] == 0) }
        }
        // Factoring and inverting in `Float` is backward stable: λ·√K·u of the norms, times the condition (below 4.1 / 0.1).
        let tolerance = 6 * Double(order).squareRoot() * 0x1p-24 * 41
        #expect((u * h * u.transposed).distanceFromIdentity <= tolerance)
        if order <= 64 {
            let expected = try DoubleMatrix(
                rows: order, columns: order, #require(ReferenceInverseCholesky.upper(h.elements, order: order)))
            #expect((u - expected).norm <= tolerance * expected.norm)
        }
    }

    @Test("reads the upper triangle only, and adds the damping to the diagonal")
    func trianglesAndDamping() throws {
        let order = 194
        let h = try Self.hessian(order)
        var lower = h
        for row in 0..<order {
            for column in 0..<row { lower.elements[row * order + column] = 1e6 }
        }
        let plain = try #require(try InverseCholesky(of: h.tensor)).upper
        #expect(try #require(try InverseCholesky(of: lower.tensor)).upper.bits == plain.bits)
        var damped = h
        for index in 0..<order { damped.elements[index * (order + 1)] += 0.5 }
        let (a, b) = try (
            #require(try InverseCholesky(of: h.tensor, damping: 0.5)).upper,
            #require(try InverseCholesky(of: damped.tensor)).upper
        )
        #expect((DoubleMatrix(a) - DoubleMatrix(b)).norm <= 1e-5 * DoubleMatrix(b).norm)
    }

    @Test("gives nil for what is not positive definite, and damping mends it", arguments: [3, 194])
    func notPositiveDefinite(_ order: Int) throws {
        // Too few samples make it singular. Then there is one negative direction, in the first and in the last channel.
        let x = try DoubleMatrix(Tensor<Float>.normal([order, order / 3], seed: 9))
        let singular = x * x.transposed
        #expect(try InverseCholesky(of: Tensor<Float>(zeros: [order, order])) == nil)
        #expect(try InverseCholesky(of: singular.tensor, damping: Float(order)) != nil)
        for index in [0, order - 1] {
            var h = try Self.hessian(order)
            h.elements[index * (order + 1)] = -1
            #expect(try InverseCholesky(of: h.tensor) == nil)
            #expect(try InverseCholesky(of: h.tensor, damping: 10) != nil)
        }
    }

    @Test("has the same bits on 1, 2 and 7 threads")
    func sameBits() throws {
        // Three blocks, diagonally dominant so that no product is needed.
        let noise = try Tensor<Float>.normal([500, 500], seed: 1)
        let h = try Tensor<Float>([500, 500]) { $0 % 501 == 0 ? 400 : noise[flat: $0] }
        let serial = try #require(try InverseCholesky(of: h, on: .serial)).upper.bits
        for threads in [2, 7] {
            let pool = WorkerPool(threads: threads)
            for _ in 0..<3 { #expect(try #require(try InverseCholesky(of: h, on: pool)).upper.bits == serial) }
        }
    }

    @Test("shapes and elements outside the domain are refused")
    func errors() throws {
        expectError(.invalidShape, "matrix", containing: ["3 × 4"]) {
            _ = try InverseCholesky(of: Tensor<Float>(zeros: [3, 4]))
        }
        for value in [Float.nan, .infinity, 0x1p100] {
            expectError(.invalidArgument, "matrix", containing: ["(1, 2)"]) {
                var h = try Self.hessian(4).tensor
                h[flat: 6] = value
                _ = try InverseCholesky(of: h)
            }
            expectError(.invalidArgument, "damping", containing: ["\(value)"]) {
                _ = try InverseCholesky(of: Self.hessian(4).tensor, damping: value)
            }
        }
    }
}

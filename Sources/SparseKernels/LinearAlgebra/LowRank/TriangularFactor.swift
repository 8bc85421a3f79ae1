/// Small dense factors in `Double`, for Cholesky QR and for the diagonal blocks of `InverseCholesky`.
///
/// The factor is an upper triangular R with R · Rᵀ = A, computed from the last row to the first. Matrices are row-major, and
/// only upper triangles are read and written.
enum TriangularFactor {
    /// Replaces A by R.
    ///
    /// - Returns: the first pivot that is not positive, as (row, value); nil when there is none.
    /// - Complexity: n³ / 6 multiply-adds.
    static func factor(_ a: UnsafeMutablePointer<Double>, count: Int, stride: Int) -> (row: Int, value: Double)? {
        for j in (0..<count).reversed() {
            let pivotRow = a + j * stride
            let pivot = pivotRow[j] - dot(pivotRow + j + 1, pivotRow + j + 1, count - j - 1)
            guard pivot > 0 && pivot.isFinite else { return (j, pivot) }
            let root = pivot.squareRoot()
            pivotRow[j] = root
            for i in 0..<j {
                let row = a + i * stride
                row[j] = (row[j] - dot(row + j + 1, pivotRow + j + 1, count - j - 1)) / root
            }
        }
        return nil
    }

    /// Writes R⁻¹, which is upper triangular with zeros below.
    /// - Complexity: n³ / 6 multiply-adds.
    static func invert(
        _ r: UnsafePointer<Double>, count: Int, stride: Int, into inverse: UnsafeMutablePointer<Double>
    ) {
        for i in (0..<count).reversed() {
            // Row i of R · R⁻¹ = 1, solved for row i of R⁻¹: (eᵢ − Σ_{m > i} R_im · R⁻¹_m) / R_ii.
            let row = inverse + i * count
            row.update(repeating: 0, count: count)
            for m in i + 1..<count {
                let (factor, other) = (r[i * stride + m], inverse + m * count)
                for j in m..<count { row[j] -= factor * other[j] }
            }
            let reciprocal = 1 / r[i * stride + i]
            for j in i + 1..<count { row[j] *= reciprocal }
            row[i] = reciprocal
        }
    }

    /// Σ a·b in eight chains.
    @inline(__always)
    static func dot(_ a: UnsafePointer<Double>, _ b: UnsafePointer<Double>, _ count: Int) -> Double {
        var (low, high) = (SIMD4<Double>.zero, SIMD4<Double>.zero)
        var k = 0
        while k + 8 <= count {
            low += load(a + k) * load(b + k)
            high += load(a + k + 4) * load(b + k + 4)
            k += 8
        }
        var sum = (low + high).sum()
        while k < count {
            sum += a[k] * b[k]
            k += 1
        }
        return sum
    }

    @inline(__always)
    static func load(_ pointer: UnsafePointer<Double>) -> SIMD4<Double> {
        UnsafeRawPointer(pointer).loadUnaligned(as: SIMD4<Double>.self)
    }
}

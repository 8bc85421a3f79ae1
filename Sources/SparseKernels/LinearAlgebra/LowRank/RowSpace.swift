/// The operations of subspace iteration on a few long vectors, which are the rows of an [l, n] matrix with l ≪ n.
///
/// Gram matrices are summed in `Double`, where a product of two floats is exact.
enum RowSpace {
    /// Replaces the rows by an orthonormal basis of a space that contains theirs, completed by random directions if needed.
    ///
    /// It runs passes of shifted Cholesky QR until a pass starts from nearly orthonormal rows, and so ends with rows that are
    /// orthonormal to the last digit. A fixed number of passes is not enough. When rows span less than their number, like the
    /// products of a sketch with a matrix of low rank, the first pass makes rows from rounding errors.
    ///
    /// - Parameters:
    ///   - rows: the rows; no more than their length.
    ///   - seed: the seed of the random directions.
    ///   - pool: the threads to use.
    /// - Complexity: two passes in general, three or four when the rows span less.
    static func orthonormalizeFully(
        _ rows: inout Tensor<Float>, seed: UInt64, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (count, length) = (rows.shape[0], rows.shape[1])
        var random = SplitMix64(seed: seed)
        for number in 0..<passLimit {
            let pass = try orthonormalize(&rows, on: pool)
            // The squared remainder of a dependent row is the shift times one plus the squares of its coefficients. Rounding
            // errors can also be alike in every pass, for example those of multiples of one row, so later a larger remainder
            // counts as dependent.
            let negligible = number < Self.patience ? 16 * shift(count: count, length: length) : 0x1p-10
            var isComplete = true
            for row in 0..<count where pass.remainders[row] <= negligible {
                isComplete = false
                for column in 0..<length { rows[flat: row * length + column] = random.normal() }
            }
            if isComplete && pass.departure < 0.5 { return }
        }
    }

    /// All known cases need three passes, or four with random directions. The limit keeps a call finite.
    private static let passLimit = 12
    private static let patience = 3

    /// Replaces the rows by a basis of their space, which is orthonormal if the rows are not far from it.
    ///
    /// This is one pass of shifted Cholesky QR: Y ← R⁻¹ · Y with R · Rᵀ = Y · Yᵀ, after rows are scaled to unit length. After
    /// it the condition number is small, but rows need not be orthogonal to the last digit; further passes make them so.
    ///
    /// - Returns: the departure of the rows of unit length from orthogonality, which is the Frobenius norm of their Gram matrix
    ///   minus the identity; and for every row the squared length that remains after the later rows are projected out, plus the
    ///   shift, or 0 for a row of zeros.
    /// - Complexity: l² · n / 2 multiply-adds in `Double` and l² · n in `Float`.
    /// - Source: Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa, "Shifted Cholesky QR" (2020).
    @discardableResult
    static func orthonormalize(
        _ rows: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> (departure: Double, remainders: [Double]) {
        let (count, length) = (rows.shape[0], rows.shape[1])
        var gram = gramMatrix(of: rows, on: pool)
        let scales = (0..<count).map { row in
            // Shorter rows count as zero, because 1 / length must stay in the range of `Float`.
            gram[row * count + row] > 0x1p-200 ? 1 / gram[row * count + row].squareRoot() : 0
        }
        let shift = shift(count: count, length: length)
        var square = 0.0
        for i in 0..<count {
            for j in i + 1..<count {
                gram[i * count + j] *= scales[i] * scales[j]
                square += 2 * gram[i * count + j] * gram[i * count + j]
            }
            gram[i * count + i] = 1 + shift
        }
        var inverse = [Double](repeating: 0, count: count * count)
        let failure = gram.withUnsafeMutableBufferPointer { gram in
            let failure = TriangularFactor.factor(gram.baseAddress!, count: count, stride: count)
            inverse.withUnsafeMutableBufferPointer {
                TriangularFactor.invert(gram.baseAddress!, count: count, stride: count, into: $0.baseAddress!)
            }
            return failure
        }
        precondition(failure == nil, "the shift is larger than the rounding of the Gram matrix")
        let remainders = (0..<count).map { row in
            scales[row] == 0 ? 0 : gram[row * count + row] * gram[row * count + row]
        }
        let transform = try Tensor<Float>([count, count]) { Float(inverse[$0] * scales[$0 % count]) }
        let gemm = try GEMM(m: count, n: length, k: count)
        var basis = try Tensor<Float>(zeros: [count, length])
        try gemm.run(a: transform, b: rows, into: &basis, on: pool)
        rows = basis
        return (square.squareRoot(), remainders)
    }

    /// X and σ of Y = X · Σ · Uᵀ for the rows of Y: `directions` are the rows of Xᵀ, with σ descending.
    ///
    /// They come from the eigenvectors of Y · Yᵀ, by its Cholesky factor. Values below 10⁻⁷ of the first are inaccurate, as in
    /// `Float` products.
    static func principalDirections(of rows: Tensor<Float>, on pool: WorkerPool) -> (directions: [Double], values: [Float]) {
        let (count, length) = (rows.shape[0], rows.shape[1])
        var gram = gramMatrix(of: rows, on: pool)
        let trace = (0..<count).reduce(0) { $0 + gram[$1 * count + $1] }
        let shift = shift(count: count, length: length) * trace
        guard shift > 0 else {
            return ((0..<count * count).map { $0 % (count + 1) == 0 ? 1 : 0 }, Array(repeating: 0, count: count))
        }
        for i in 0..<count { gram[i * count + i] += shift }
        let failure = gram.withUnsafeMutableBufferPointer {
            TriangularFactor.factor($0.baseAddress!, count: count, stride: count)
        }
        precondition(failure == nil, "the shift is larger than the rounding of the Gram matrix")
        for i in 0..<count {
            for j in 0..<i { gram[i * count + j] = 0 }
        }
        let jacobi = OneSidedJacobi(rows: gram, count: count, length: count, on: pool)
        return (jacobi.rotation, jacobi.values.map { Float(max(0, $0 * $0 - shift).squareRoot()) })
    }

    /// A shift larger than the rounding of a Gram matrix of unit rows and of its factorisation, so that the shifted matrix is
    /// positive definite: chains of n / 8 sums give an element, l the factor, and the norm is at most l times an element.
    private static func shift(count: Int, length: Int) -> Double { Double(count * (length / 8 + count + 8)) * 0x1p-53 }

    /// Y · Yᵀ, of which only the upper triangle is valid.
    private static func gramMatrix(of rows: Tensor<Float>, on pool: WorkerPool) -> [Double] {
        let (count, length) = (rows.shape[0], rows.shape[1])
        var gram = [Double](repeating: 0, count: count * count)
        gram.withUnsafeMutableBufferPointer { gram in
            rows.span.withUnsafeBufferPointer { rows in
                let call = GramCall(rows: rows.baseAddress!, count: count, length: length, gram: gram.baseAddress!)
                pool.run(call, tasks: (count + 1) / 2, work: count * count * length / 2)
            }
        }
        return gram
    }
}

/// Computes pairs of rows of a Gram matrix. Task 0 has the two longest.
private struct GramCall: PoolCall {
    let rows: UnsafePointer<Float>
    let count: Int
    let length: Int
    let gram: UnsafeMutablePointer<Double>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (i, next) = (task * 2, min(task * 2 + 1, count - 1))
        for j in stride(from: i, to: count, by: 2) {
            let other = min(j + 1, count - 1)
            let (a, b) = (rows + i * length, rows + next * length)
            let (c, d) = (rows + j * length, rows + other * length)
            var (ac, ad) = (SIMD4<Double>.zero, SIMD4<Double>.zero)
            var (bc, bd) = (SIMD4<Double>.zero, SIMD4<Double>.zero)
            var k = 0
            while k + 4 <= length {
                let (x, y, z, w) = (widen(a + k), widen(b + k), widen(c + k), widen(d + k))
                ac += x * z
                ad += x * w
                bc += y * z
                bd += y * w
                k += 4
            }
            var sums = (ac.sum(), ad.sum(), bc.sum(), bd.sum())
            while k < length {
                let (x, y, z, w) = (Double(a[k]), Double(b[k]), Double(c[k]), Double(d[k]))
                sums = (sums.0 + x * z, sums.1 + x * w, sums.2 + y * z, sums.3 + y * w)
                k += 1
            }
            // When the last row is its own partner, equal sums are stored twice. Nothing below the diagonal is read.
            gram[i * count + j] = sums.0
            gram[i * count + other] = sums.1
            gram[next * count + j] = sums.2
            gram[next * count + other] = sums.3
        }
    }

    @inline(__always)
    private func widen(_ pointer: UnsafePointer<Float>) -> SIMD4<Double> {
        SIMD4<Double>(UnsafeRawPointer(pointer).loadUnaligned(as: SIMD4<Float>.self))
    }
}

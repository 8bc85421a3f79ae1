/// The upper Cholesky factor of the inverse of a symmetric positive definite matrix: U with H⁻¹ = Uᵀ · U.
///
/// GPTQ propagates errors with it: it factors H, inverts it and factors the inverse. Here H = R · Rᵀ is factored with an upper
/// triangular R, from the last column to the first, and U = R⁻¹. This gives the same matrix for half the work.
///
/// - Complexity: K³/6 multiply-adds for R and K³/3 for its inverse, nearly all of them in `GEMM`.
/// - Memory: the result and K · 192 floats. Results are bitwise equal for every number of threads.
/// - Source: Frantar et al., "GPTQ" (arXiv 2210.17323), section 3.3, step 3.
public struct InverseCholesky: Sendable {
    /// U, `[K, K]`, with zeros below the diagonal.
    public let upper: Tensor<Float>

    /// Factors H + damping · 1. The result is nil if that is not positive definite in `Float`; then raise the damping.
    ///
    /// - Parameters:
    ///   - matrix: H, `[K, K]`, symmetric. Only the upper triangle is read.
    ///   - damping: the number that is added to every diagonal element. GPTQ adds a hundredth of the mean of the diagonal.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` unless the matrix is square; `.invalidArgument` for elements or a damping not below 2¹⁰⁰.
    public init?(of matrix: Tensor<Float>, damping: Float = 0, on pool: WorkerPool = .shared) throws(SparseKernelsError) {
        let view = try matrix.matrixView(named: "matrix")
        try view.requireElements(named: "matrix")
        try require(
            view.rows == view.columns, .invalidShape, "matrix", expected: "a square matrix",
            actual: "\(view.rows) × \(view.columns)")
        try requireMagnitudes(of: view, named: "matrix", on: pool)
        try require(
            abs(damping) < magnitudeLimit, .invalidArgument, "damping", expected: "finite, of a magnitude below 2¹⁰⁰",
            actual: "\(damping)")
        guard let upper = try BlockedInverse(order: view.rows).factor(matrix, damping: damping, on: pool) else { return nil }
        self.upper = upper
    }
}

/// The blocked algorithm of `InverseCholesky`. R, then U, overwrite the upper triangle of a copy of H.
private struct BlockedInverse {
    let order: Int
    /// Rows and columns per block, which are whole panels of every level (24 and 48 columns). One thread factors the diagonal
    /// blocks in `Double`: order · 192² / 6 multiply-adds in all, a thousandth of the rest at an order of 4096.
    private static let block = 192

    private var blocks: Int { (order + Self.block - 1) / Self.block }

    private func range(_ block: Int) -> Range<Int> { block * Self.block..<min(order, (block + 1) * Self.block) }

    func factor(_ matrix: Tensor<Float>, damping: Float, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float>? {
        var result = matrix
        // One block column of H minus the products with later columns; then one block row of U.
        var strip = try Tensor<Float>(zeros: [Self.block * order])
        var inverses: [Tensor<Float>] = []
        for block in (0..<blocks).reversed() {
            guard
                let inverse = try factorColumn(
                    range(block), of: &result, strip: &strip, damping: Double(damping), on: pool)
            else { return nil }
            inverses.append(inverse)
        }
        inverses.reverse()
        for block in (0..<blocks).reversed() {
            try invertRow(range(block), of: &result, inverse: inverses[block], strip: &strip, on: pool)
        }
        return result
    }

    /// Computes R in a block's columns, rows up to it: R_i = (H_i − Σ_{j > block} R_ij · R_jᵀ) · R_blockᵀ⁻¹. Returns R_block⁻¹.
    private func factorColumn(
        _ columns: Range<Int>, of result: inout Tensor<Float>, strip: inout Tensor<Float>, damping: Double,
        on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float>? {
        let (rows, width, later) = (columns.upperBound, columns.count, order - columns.upperBound)
        if later > 0 {
            let gemm = try GEMM(m: rows, n: width, k: later, transposesB: true)
            try gemm.run(
                a: view(result, rows: 0..<rows, from: rows, columns: later),
                b: view(result, rows: columns, from: rows, columns: later),
                c: MutableMatrixView(strip.mutableSpan, rows: rows, columns: width), on: pool)
        } else {
            var span = strip.mutableSpan
            span.update(repeating: 0)
        }
        // strip ← H − strip.
        result.span.withUnsafeBufferPointer { source in
            var target = strip.mutableSpan
            target.withUnsafeMutableBufferPointer { target in
                for row in 0..<rows {
                    let (source, target) = (
                        source.baseAddress! + row * order + columns.lowerBound, target.baseAddress! + row * width
                    )
                    for column in 0..<width { target[column] = source[column] - target[column] }
                }
            }
        }
        guard let (factor, inverse) = try diagonalBlock(columns, in: strip, damping: damping) else { return nil }
        if columns.lowerBound > 0 {
            let gemm = try GEMM(m: columns.lowerBound, n: width, k: width, transposesB: true)
            try gemm.run(
                a: MatrixView(strip.span, rows: columns.lowerBound, columns: width), b: inverse.matrixView(),
                c: mutableView(&result, rows: 0..<columns.lowerBound, from: columns.lowerBound, columns: width), on: pool)
        }
        write(factor, into: &result, rows: columns)
        return inverse
    }

    /// R_block and its inverse, from the rows of the block in the strip; nil when the block is not positive definite.
    private func diagonalBlock(
        _ rows: Range<Int>, in strip: Tensor<Float>, damping: Double
    ) throws(SparseKernelsError) -> (factor: Tensor<Float>, inverse: Tensor<Float>)? {
        let width = rows.count
        let values = strip.span
        var factor = (0..<width * width).map { Double(values[rows.lowerBound * width + $0]) }
        for index in 0..<width { factor[index * (width + 1)] += damping }
        var inverse = [Double](repeating: 0, count: width * width)
        let failure = factor.withUnsafeMutableBufferPointer { factor in
            let failure = TriangularFactor.factor(factor.baseAddress!, count: width, stride: width)
            if failure == nil {
                inverse.withUnsafeMutableBufferPointer {
                    TriangularFactor.invert(factor.baseAddress!, count: width, stride: width, into: $0.baseAddress!)
                }
            }
            return failure
        }
        if failure != nil { return nil }
        return (
            try Tensor([width, width]) { $0 / width <= $0 % width ? Float(factor[$0]) : 0 },
            try Tensor([width, width]) { Float(inverse[$0]) }
        )
    }

    /// Computes U in the rows of a block: U_j = −R_block⁻¹ · Σ_{i > block} R_i · U_ij, beside R_block⁻¹, with zeros before it.
    private func invertRow(
        _ rows: Range<Int>, of result: inout Tensor<Float>, inverse: Tensor<Float>, strip: inout Tensor<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (height, first, later) = (rows.count, rows.upperBound, order - rows.upperBound)
        if later > 0 {
            let product = try GEMM(m: height, n: later, k: later)
            try product.run(
                a: view(result, rows: rows, from: first, columns: later),
                b: view(result, rows: first..<order, from: first, columns: later),
                c: MutableMatrixView(strip.mutableSpan, rows: height, columns: later), on: pool)
            let negative = try Tensor([height, height], inverse.elements.map { -$0 })
            let solution = try GEMM(m: height, n: later, k: height)
            try solution.run(
                a: negative.matrixView(), b: MatrixView(strip.span, rows: height, columns: later),
                c: mutableView(&result, rows: rows, from: first, columns: later), on: pool)
        }
        var span = result.mutableSpan
        for row in rows {
            for column in 0..<rows.lowerBound { span[row * order + column] = 0 }
        }
        write(inverse, into: &result, rows: rows)
    }

    private func write(_ block: Tensor<Float>, into result: inout Tensor<Float>, rows: Range<Int>) {
        let source = block.span
        var target = result.mutableSpan
        for row in 0..<rows.count {
            for column in 0..<rows.count {
                target[(rows.lowerBound + row) * order + rows.lowerBound + column] = source[row * rows.count + column]
            }
        }
    }

    @_lifetime(borrow matrix)
    private func view(
        _ matrix: borrowing Tensor<Float>, rows: Range<Int>, from column: Int, columns: Int
    ) throws(SparseKernelsError) -> MatrixView<Float> {
        try MatrixView(
            matrix.span.extracting((rows.lowerBound * order + column)...), rows: rows.count, columns: columns,
            rowStride: order)
    }

    @_lifetime(&matrix)
    private func mutableView(
        _ matrix: inout Tensor<Float>, rows: Range<Int>, from column: Int, columns: Int
    ) throws(SparseKernelsError) -> MutableMatrixView<Float> {
        var span = matrix.mutableSpan
        let part = span.withUnsafeMutableBufferPointer {
            UnsafeMutableBufferPointer(rebasing: $0[(rows.lowerBound * order + column)...])
        }
        // The part is memory of `matrix`, which the view borrows as long as it exists.
        return try MutableMatrixView(
            _overrideLifetime(part.mutableSpan, mutating: &matrix), rows: rows.count, columns: columns, rowStride: order)
    }
}

/// GPTQ: rounds a weight by columns and lets later columns compensate errors. It suits the residual of a low-rank branch.
///
/// With H = 2/tokens · X̂ᵀX̂ + damping and the upper Cholesky factor U of H⁻¹, for columns k in descending order of diag H:
///
///     e = (w_k − Q(w_k)) / U_kk          w_j ← w_j − e · U_kj  for all later j
///
/// Groups are static: scales are those of the original weight, and a column keeps the group of its place in the weight,
/// whatever the order. So the result has the form of any other quantised weight. A column with zero inputs becomes 0.
///
/// Columns are processed in blocks. Inside a block errors are carried row by row, and to later columns as one product.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: tokens · inFeatures² + inFeatures³ / 3 + outFeatures · inFeatures² / 2 multiply-adds.
/// - Memory: two matrices of inFeatures² floats, three of outFeatures · inFeatures.
/// - Source: Frantar et al., "GPTQ" (arXiv 2210.17323); deepcompressor, `quantizer/kernel/gptq.py`, which has these defaults.
public struct GPTQ: Sendable {
    /// The grid's format and scale type.
    public let quantizer: WeightQuantizer
    /// The fraction of the mean of diag H that is added to the diagonal of H.
    public let damping: Double
    /// The number of attempts at the inversion. Each adds a tenth of the first damping.
    public let attempts: Int
    /// The number of columns whose errors are carried to the rest at once.
    public let blockSize: Int

    /// - Parameters:
    ///   - quantizer: the quantiser that chooses the scales.
    ///   - damping: above 0.
    ///   - attempts: at least 1.
    ///   - blockSize: at least 1.
    /// - Throws: `.invalidArgument` for a value out of range.
    public init(
        _ quantizer: WeightQuantizer, damping: Double = 0.01, attempts: Int = 250, blockSize: Int = 128
    ) throws(SparseKernelsError) {
        try require(damping > 0 && damping.isFinite, .invalidArgument, "damping", expected: "above 0", actual: "\(damping)")
        try require(attempts >= 1, .invalidArgument, "attempts", expected: "at least 1", actual: "\(attempts)")
        try require(blockSize >= 1, .invalidArgument, "blockSize", expected: "at least 1", actual: "\(blockSize)")
        self.quantizer = quantizer
        self.damping = damping
        self.attempts = attempts
        self.blockSize = blockSize
    }

    /// Quantises a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - calibration: `[tokens, inFeatures]`, the inputs that the weight is multiplied with, smoothed if the layer smooths.
    ///     They are not shifted if the bias undoes the shift with the quantised weight, as in
    ///     ``LowRankQuantizer/correctedBias(_:residual:smooth:shift:on:)``.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for tensors that disagree or are empty; `.invalidArgument` for an element that is not finite,
    ///   for tokens whose H is not finite, or when H cannot be inverted.
    public func callAsFunction(
        _ weight: Tensor<Float>, calibration: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedWeight {
        _ = try SmoothingRanges(calibration: calibration, weights: [weight], on: pool)
        let grid = try quantizer.grid(for: weight.matrixView(), on: pool)
        var hessian = try Self.hessian(of: calibration, on: pool)
        let columns = weight.shape[1]
        var diagonal = (0..<columns).map { hessian[flat: $0 * columns + $0] }
        try require(
            diagonal.allSatisfy { $0 < magnitudeLimit }, .invalidArgument, "calibration", expected: "of mean squares below 2⁹⁹",
            actual: "\(diagonal.max() ?? 0)")
        let isDead = diagonal.map { $0 == 0 }
        for k in 0..<columns where isDead[k] { diagonal[k] = 1 }
        // Ties go in the order of the weight, so that the order is unique.
        let order = (0..<columns).sorted { (diagonal[$1], $0) < (diagonal[$0], $1) }
        hessian = try Self.reordered(hessian, by: order, diagonal: diagonal, on: pool)
        let factor = try inverseFactor(
            of: hessian, meanDiagonal: diagonal.reduce(0) { $0 + Double($1) } / Double(columns), on: pool)
        let rows = GPTQRows(grid: grid, order: order, factor: factor, blockSize: blockSize)
        return try rows.quantize(weight, isDead: isDead, on: pool)
    }

    /// 2/tokens · XᵀX.
    static func hessian(of calibration: Tensor<Float>, on pool: WorkerPool) throws(SparseKernelsError) -> Tensor<Float> {
        let (tokens, columns) = (calibration.shape[0], calibration.shape[1])
        let transposed = try calibration.transposed(on: pool)
        var product = try Tensor<Float>(zeros: [columns, columns])
        try GEMM(m: columns, n: columns, k: tokens).run(a: transposed, b: calibration, into: &product, on: pool)
        let factor = 2 / Float(tokens)
        product.updateRows(on: pool) { _, row in for k in 0..<columns { row[k] *= factor } }
        return product
    }

    private static func reordered(
        _ hessian: Tensor<Float>, by order: [Int], diagonal: [Float], on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let columns = order.count
        var result = try Tensor<Float>(zeros: [columns, columns])
        result.updateRows(on: pool) { row, target in
            hessian.span.withUnsafeBufferPointer { source in
                let source = source.baseAddress! + order[row] * columns
                for k in 0..<columns { target[k] = source[order[k]] }
            }
            target[row] = diagonal[order[row]]
        }
        return result
    }
}

extension GPTQ {
    /// U of the damped H. Every attempt damps more.
    private func inverseFactor(
        of hessian: Tensor<Float>, meanDiagonal: Double, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        for attempt in 0..<attempts {
            let added = Float(damping * meanDiagonal * (1 + Double(attempt) / 10))
            if let inverse = try InverseCholesky(of: hessian, damping: added, on: pool) { return inverse.upper }
        }
        throw SparseKernelsError(
            .invalidArgument, "calibration", expected: "such that H is positive definite after \(attempts) attempts of damping",
            actual: "a pivot that is not positive")
    }
}

internal import Foundation
internal import KernelInterface

/// The largest magnitude of every input feature in calibration tokens and weights, from which smoothing factors are made.
///
/// Smoothing divides x by s and multiplies the columns of W by it. The product does not change, and outliers of x move into W,
/// where the low-rank branch represents them.
///
/// - Source: SmoothQuant (arXiv 2211.10438), section 4; deepcompressor, `get_smooth_scale`.
public struct SmoothingRanges: Sendable {
    /// max |x[·, k]| over the tokens.
    public let activations: [Float]
    /// max |W[·, k]| over the rows of all weights.
    public let weights: [Float]

    public var inFeatures: Int { activations.count }

    /// - Parameters:
    ///   - calibration: `[tokens, inFeatures]`, inputs of the layer.
    ///   - weights: `[outFeatures, inFeatures]` each: all layers with this input, such as q, k and v.
    ///   - shift: the number that the layer adds to x before it divides. See ``ActivationFormat/uint4(shift:)``.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for tensors that disagree or have no elements, `.invalidArgument` for an element that is not
    ///   finite or a weight of 2¹⁰⁰ or more.
    /// - Complexity: O(elements).
    public init(
        calibration: Tensor<Float>, weights: [Tensor<Float>], shift: Float = 0, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            calibration.shape.count == 2 && calibration.count > 0, .invalidShape, "calibration",
            expected: "[tokens, inFeatures], not empty", actual: "\(calibration.shape)")
        try require(!weights.isEmpty, .invalidShape, "weights", expected: "at least one", actual: "none")
        let inFeatures = calibration.shape[1]
        var weightRange = [Float](repeating: 0, count: inFeatures)
        for weight in weights {
            try require(
                weight.shape.count == 2 && weight.shape[0] >= 1 && weight.shape[1] == inFeatures, .invalidShape, "weight",
                expected: "[outFeatures, \(inFeatures)]", actual: "\(weight.shape)")
            let range = try Self.columnMaxima(of: weight, named: "weight", plus: 0, on: pool)
            for k in 0..<inFeatures { weightRange[k] = max(weightRange[k], range[k]) }
        }
        try require(
            weightRange.allSatisfy { $0 < magnitudeLimit }, .invalidArgument, "weight", expected: "of magnitudes below 2¹⁰⁰",
            actual: "\(weightRange.max() ?? 0)")
        self.weights = weightRange
        activations = try Self.columnMaxima(of: calibration, named: "calibration", plus: shift, on: pool)
    }

    /// s for a candidate: every factor positive, finite and rounded to `scaleType`.
    ///
    /// A factor of 0 becomes 1. If one is infinite or NaN, for example because of a weight column of zeros and a positive β,
    /// all become 1. Both rules are applied after rounding too. A factor that makes a weight 2¹⁰⁰ or more counts as infinite.
    /// - Throws: `.invalidArgument` for an exponent outside 0…1, `.invalidElementType` for a type other than F16, BF16, F32.
    public func factors(
        _ candidate: SmoothingCandidate, scaleType: ElementType = .float16
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try candidate.check()
        let storage = try StorageType(scaleType: scaleType)
        var factors = (0..<inFeatures).map { k in
            let numerator = candidate.alpha == 0 ? 1 : pow(Double(activations[k]), candidate.alpha)
            let denominator = candidate.beta == 0 ? 1 : pow(Double(weights[k]), candidate.beta)
            let factor = storage.rounded(Float(numerator / denominator))
            return factor == 0 ? 1 : factor
        }
        if !zip(factors, weights).allSatisfy({ $0.isFinite && $0 * $1 < magnitudeLimit }) {
            factors = Array(repeating: 1, count: inFeatures)
        }
        return try Tensor([inFeatures], factors)
    }

    /// max |row[k] + shift| over rows. The bits are compared as integers, in the same order, with NaN above infinity.
    private static func columnMaxima(
        of matrix: Tensor<Float>, named name: String, plus shift: Float, on pool: WorkerPool
    ) throws(SparseKernelsError) -> [Float] {
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        let rowsPerTask = 64
        let partial = pool.map((rows + rowsPerTask - 1) / rowsPerTask, work: rows * columns * 4) { task in
            var maxima = [Int32](repeating: 0, count: columns)
            maxima.withUnsafeMutableBufferPointer { maxima in
                matrix.span.withUnsafeBufferPointer { elements in
                    for row in task * rowsPerTask..<min(rows, (task + 1) * rowsPerTask) {
                        let source = elements.baseAddress! + row * columns
                        let maxima = maxima.baseAddress!
                        for k in 0..<columns {
                            maxima[k] = max(maxima[k], Int32(bitPattern: (source[k] + shift).bitPattern & 0x7fff_ffff))
                        }
                    }
                }
            }
            return maxima
        }
        var maxima = [Float](repeating: 0, count: columns)
        for k in 0..<columns {
            let bits = partial.reduce(Int32(0)) { max($0, $1[k]) }
            maxima[k] = Float(bitPattern: UInt32(bitPattern: bits))
        }
        let bad = maxima.firstIndex { !$0.isFinite }
        try require(
            bad == nil, .invalidArgument, name, expected: "finite",
            actual: "\(bad.map { maxima[$0] } ?? 0) in column \(bad ?? 0)")
        return maxima
    }
}

public import SparseKernels

/// How large the entries of activations are: a histogram of |a|, from which CATS takes its thresholds.
///
/// ```swift
/// var histogram = ActivationHistogram()
/// try histogram.add(activated)               // silu(x · W_gateᵀ) of some tokens
/// try histogram.merge(ofAnotherThread)
/// let threshold = try histogram.threshold(sparsity: 0.5)
/// ```
///
/// A bin is the upper 16 bits of a number in single precision, so that bins are 2⁻⁷ of their values wide at every magnitude, no range
/// has to be known ahead, and counts are whole numbers: the same for every order of tokens, and of merging.
///
/// - Memory: 255 KiB.
/// - Source: CATS (arXiv 2404.08763), section 4.1, which takes the quantile from a histogram of a sample of the training data.
public struct ActivationHistogram: Hashable, Sendable {
    /// Entries that were added.
    public private(set) var count = 0
    private var bins = [Int](repeating: 0, count: Self.binCount)

    /// The upper halves of the finite numbers from 0 on.
    private static let binCount = 0x7f80

    public init() {}

    /// Adds the entries of activations.
    ///
    /// - Parameter activations: `[tokens, channels]`.
    /// - Throws: `.invalidArgument` naming an entry that is not finite; nothing is added then.
    public mutating func add(_ activations: MatrixView<Float>) throws(SparseKernelsError) {
        for row in 0..<activations.rows {
            for column in 0..<activations.columns where !activations[row, column].isFinite {
                throw SparseKernelsError(
                    .invalidArgument, "activations", expected: "finite",
                    actual: "\(activations[row, column]) of token \(row), channel \(column)")
            }
        }
        for row in 0..<activations.rows {
            for column in 0..<activations.columns {
                bins[Int(activations[row, column].magnitude.bitPattern >> 16)] += 1
            }
        }
        count += activations.rows * activations.columns
    }

    /// Adds the counts of another histogram.
    public mutating func merge(_ other: ActivationHistogram) {
        for bin in bins.indices where other.bins[bin] > 0 { bins[bin] += other.bins[bin] }
        count += other.count
    }

    /// The threshold at which a part of the entries is dropped: the smallest upper end of a bin such that at least this part has
    /// magnitudes up to it. It is above the exact quantile by less than one part in 127.
    ///
    /// - Parameter sparsity: the part to drop, at least 0 and below 1. For 0 the threshold is 0.
    /// - Throws: `.invalidArgument` for another sparsity, and for a histogram without entries.
    public func threshold(sparsity: Double) throws(SparseKernelsError) -> Float {
        try requireSparsity(sparsity)
        try require(count > 0, .invalidArgument, "histogram", expected: "entries of activations", actual: "none")
        let wanted = Int((sparsity * Double(count)).rounded(.up))
        var reached = 0
        for (bin, entries) in bins.enumerated() {
            if reached >= wanted { return bin == 0 ? 0 : Self.upperEnd(bin - 1) }
            reached += entries
        }
        return Self.upperEnd(bins.count - 1)
    }

    /// The part of the entries that a threshold drops, up to the bin that it is in.
    /// - Throws: `.invalidArgument` for a threshold that is negative or NaN, and for a histogram without entries.
    public func sparsity(threshold: Float) throws(SparseKernelsError) -> Double {
        try require(threshold >= 0, .invalidArgument, "threshold", expected: "0 or more", actual: "\(threshold)")
        try require(count > 0, .invalidArgument, "histogram", expected: "entries of activations", actual: "none")
        // A bin counts as dropped when all of it is.
        let end = min(bins.count, threshold.isFinite ? (Int(threshold.bitPattern) + 1) >> 16 : bins.count)
        return Double(bins[..<end].reduce(0, +)) / Double(count)
    }

    private static func upperEnd(_ bin: Int) -> Float { Float(bitPattern: UInt32(bin) << 16 | 0xffff) }
}

/// Throws `.invalidArgument` unless a sparsity leaves something.
func requireSparsity(_ sparsity: Double) throws(SparseKernelsError) {
    try require(
        sparsity >= 0 && sparsity < 1, .invalidArgument, "sparsity", expected: "at least 0 and below 1", actual: "\(sparsity)")
}

internal import Foundation

/// A comparison of a sparse result with the dense one: the attention mass that is kept and the error, head by head.
///
/// ```swift
/// let comparison = try AttentionComparison(sparse, with: dense)
/// print(comparison.recall, comparison.error)   // mass kept, and ‖sparse − dense‖ / ‖dense‖
/// ```
public struct AttentionComparison: Sendable, Equatable {
    public struct Head: Sendable, Equatable {
        /// The attention mass that is kept, 0…1: the mean over rows of Σ p_j over kept keys, where p are the dense
        /// probabilities.
        public let recall: Double
        /// ‖output − dense output‖ / ‖dense output‖ over the rows of the head, in the Euclidean norm.
        public let error: Double
    }

    public let heads: [Head]
    /// The mean of `recall` over the heads.
    public let recall: Double
    /// The relative error over all heads together.
    public let error: Double

    /// Compares two results of the same operands and softmax.
    ///
    /// The recall needs no scores. The LSE is the log of the sum of exponentials over the keys that a row attends to, so
    /// e^(LSE − LSE_dense) is the fraction of the dense sum that the kept keys contribute, whatever the pattern. Without rows
    /// the recall is 1 and the error 0.
    ///
    /// - Throws: `.invalidShape` when the shapes differ.
    public init(_ state: AttentionState, with dense: AttentionState) throws(SparseKernelsError) {
        let shape = dense.output.shape
        try require(
            state.output.shape == shape, .invalidShape, "state.output", expected: "\(shape), as the dense one",
            actual: "\(state.output.shape)")
        let (rows, channels) = (shape[1], shape[2])
        let (output, reference) = (state.output.span, dense.output.span)
        let (logs, referenceLogs) = (state.logSumExp.span, dense.logSumExp.span)
        var heads: [Head] = []
        var total = (difference: 0.0, norm: 0.0)
        for head in 0..<shape[0] {
            var recall = 0.0
            for row in head * rows..<(head + 1) * rows {
                // A row that sees no key at all loses nothing.
                let isEmpty = referenceLogs[row] == -.infinity
                recall += isEmpty ? 1 : exp(Double(logs[row]) - Double(referenceLogs[row]))
            }
            var (difference, norm) = (0.0, 0.0)
            for index in head * rows * channels..<(head + 1) * rows * channels {
                let exact = Double(reference[index])
                let deviation = Double(output[index]) - exact
                difference += deviation * deviation
                norm += exact * exact
            }
            heads.append(
                Head(recall: rows == 0 ? 1 : recall / Double(rows), error: Self.relative(difference, norm)))
            total.difference += difference
            total.norm += norm
        }
        self.heads = heads
        recall = heads.isEmpty ? 1 : heads.reduce(0) { $0 + $1.recall } / Double(heads.count)
        error = Self.relative(total.difference, total.norm)
    }

    /// √(difference / norm). Equal results have error 0, even when both are zero.
    private static func relative(_ difference: Double, _ norm: Double) -> Double {
        difference == 0 ? 0 : (difference / norm).squareRoot()
    }
}

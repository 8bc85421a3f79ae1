import Foundation
public import SparseKernels

extension LanguageModel {
    /// The bits that the logits of a sequence need to code it: −Σ log₂ p(next token). The last row predicts nothing.
    ///
    /// - Parameters:
    ///   - logits: `[tokens, vocabularySize]`.
    ///   - tokens: the sequence.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for fewer rows of logits than tokens to predict, `.invalidArgument` for a token to predict that is
    ///   outside the vocabulary.
    public static func codeLength(
        _ logits: Tensor<Float>, _ tokens: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Double {
        let predicted = tokens.dropFirst()
        if predicted.isEmpty { return 0 }
        guard logits.shape.count == 2, logits.shape[0] >= predicted.count else {
            throw SparseKernelsError(
                .invalidShape, "logits", expected: "[\(predicted.count) or more, vocabulary]", actual: "\(logits.shape)")
        }
        let vocabulary = logits.shape[1]
        guard predicted.allSatisfy({ $0 >= 0 && $0 < vocabulary }) else {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "ids from 0 to \(vocabulary - 1)",
                actual: "\(predicted.count), from \(predicted.min()!) to \(predicted.max()!)")
        }
        let statistics = try LogitStatistics(vocabulary: vocabulary)
        var summary = try statistics.makeSummary(rows: predicted.count)
        try statistics.run(
            MatrixView(logits.span, rows: predicted.count, columns: vocabulary, named: "logits"), into: &summary, on: pool)
        var nats = 0.0
        for (row, token) in predicted.enumerated() {
            nats += Double(summary.logSumExp[flat: row]) - Double(logits[flat: row * vocabulary + token])
        }
        return nats / log(2)
    }
}

import Foundation
public import SparseKernels

extension LanguageModel {
    /// The bits that the logits of a sequence need to code it: −Σ log₂ p(next token). The last row predicts nothing.
    ///
    /// - Parameters:
    ///   - logits: `[tokens, vocabularySize]`.
    ///   - tokens: the sequence.
    public static func codeLength(_ logits: Tensor<Float>, _ tokens: [Int]) -> Double {
        let (rows, vocabulary) = (logits.span, logits.shape[1])
        var bits = 0.0
        for (position, next) in tokens.dropFirst().enumerated() {
            let row = position * vocabulary
            var (largest, sum) = (rows[row], 0.0)
            for i in 1..<vocabulary { largest = max(largest, rows[row + i]) }
            for i in 0..<vocabulary { sum += exp(Double(rows[row + i] - largest)) }
            bits += (log(sum) - Double(rows[row + next] - largest)) / log(2)
        }
        return bits
    }
}

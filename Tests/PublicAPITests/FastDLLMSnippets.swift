import FastDLLM
import Testing

@Suite("Snippets of the FastDLLM guide")
struct FastDLLMSnippets {
    /// Knows one sentence, and is the surer of a word the nearer it is to a known one.
    struct Parrot: DiffusionModel {
        let vocabularySize = 8
        let maskToken = 7
        let capacity = 1024
        private var known: [Int] = []

        func check(_ tokens: [Int]) throws(SparseKernelsError) {}

        mutating func logits(
            of rows: [Int], running: Range<Int>, in tokens: [Int], on pool: WorkerPool
        ) throws(SparseKernelsError) -> Tensor<Float> {
            if running.count == tokens.count { known = tokens }
            for position in running { known[position] = tokens[position] }
            var logits = try Tensor<Float>(zeros: [rows.count, vocabularySize])
            for (index, row) in rows.enumerated() {
                let distance = row - (known[..<row].lastIndex { $0 != maskToken } ?? -8)
                logits[index, row % 5] = 12 / Float(distance)
            }
            return logits
        }
    }

    @Test func decoding() throws {
        var model = Parrot()
        let prompt = [0, 1, 2, 3, 4]

        let decoder = try FastDLLMDecoder(FastDLLMConfiguration(blockLength: 32, rule: .threshold(0.9), cache: .dual))
        let result = try decoder.generate(prompt, length: 64, with: &model) { step in
            print("pass \(step.forward) filled", step.commits.map(\.position))
        }
        print(result.tokens, result.forwardPasses, result.tokensPerForward)
        #expect(result.tokens == (0..<64).map { $0 % 5 })
        #expect(result.tokensPerForward > 1.5)
    }

    @Test func rules() throws {
        let logits = try Tensor<Float>([3, 4], [9, 0, 0, 0, 1, 1, 4, 1, 0, 0, 0, 7])

        let predictions = try MaskedPredictions(logits)  // a row per masked position
        let selection = CommitRule.threshold(0.9).select(predictions)
        print(selection.indices)  // [0, 2], the surest first
        print(predictions.tokens)  // [0, 2, 3]
        print(predictions.confidences)  // 0.9996, 0.87, 0.997
        #expect(selection.indices == [0, 2] && predictions.tokens == [0, 2, 3])
    }
}

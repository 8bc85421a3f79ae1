import SparseKernels
import SparseKernelsModels
import Testing

@testable import SparseKernelsFineTuning

@Suite("Windows of a text")
struct TrainingWindowsTests {
    private static let corpus = TextCorpus(tokens: Array(0..<1001), byteCount: 1001)

    @Test("cover the text, share no target, and some are held out")
    func cuts() throws {
        let windows = try TrainingWindows(Self.corpus, length: 10, scored: 3, validation: 7, seed: 4)
        #expect(windows.training.count == 93 && windows.validation.count == 7)
        #expect(Set(windows.training + windows.validation) == Set(stride(from: 0, to: 1000, by: 10)))
        // Evenly: a held-out window in each seventh of the text.
        #expect(Set(windows.validation.map { $0 * 7 / 1000 }) == Set(0..<7))
        let batch = windows.batch(step: 0, size: 4)
        #expect(batch.sequences == 4 && batch.tokens.count == 40)
        for sequence in 0..<4 {
            let start = batch.tokens[sequence * 10]
            #expect(Array(batch.tokens[sequence * 10..<sequence * 10 + 10]) == Array(start..<start + 10))
            let labels: [Int] = Array(repeating: -100, count: 7) + Array(start + 8..<start + 11)
            #expect(batch.labels[sequence] == labels)
        }
        #expect(batch.scoredRows == [7, 8, 9, 17, 18, 19, 27, 28, 29, 37, 38, 39])
    }

    @Test("come in an order that follows from seed and step alone, each once in a pass")
    func order() throws {
        let windows = try TrainingWindows(Self.corpus, length: 10, scored: 3, validation: 7, seed: 4)
        func starts(_ windows: TrainingWindows, _ steps: Range<Int>) -> [Int] {
            steps.flatMap { step -> [Int] in
                let batch = windows.batch(step: step, size: 3)
                return (0..<3).map { batch.tokens[$0 * 10] }
            }
        }
        let pass = starts(windows, 0..<31)
        #expect(Set(pass) == Set(windows.training) && pass != windows.training)
        let second = starts(windows, 31..<62)
        #expect(Set(second) == Set(windows.training) && second != pass)
        let across: [Int] = Array(pass[90...]) + Array(second[..<6])
        #expect(starts(windows, 30..<33) == across)
        let other = try TrainingWindows(Self.corpus, length: 10, scored: 3, validation: 7, seed: 5)
        #expect(starts(other, 0..<31) != pass && other.digest == windows.digest)
    }

    @Test("a text that is too short, and numbers out of range, are errors")
    func errors() throws {
        func error(_ length: Int, _ scored: Int, _ validation: Int, tokens: Int = 1001) -> SparseKernelsError? {
            #expect(throws: SparseKernelsError.self) {
                _ = try TrainingWindows(
                    TextCorpus(tokens: Array(repeating: 1, count: tokens), byteCount: tokens), length: length, scored: scored,
                    validation: validation)
            }
        }
        #expect(error(10, 11, 0)?.actual == "10 tokens, 11 of which count, 0 held out")
        #expect(error(1, 1, 0)?.code == .invalidArgument && error(10, 0, 0)?.code == .invalidArgument)
        #expect(error(10, 3, -1)?.code == .invalidArgument)
        #expect(error(10, 3, 100)?.actual == "1001 tokens" && error(10, 3, 0, tokens: 10)?.actual == "10 tokens")
        #expect(error(10, 3, 0, tokens: 0)?.expected.hasPrefix("of 11 tokens or more") == true)
        let least = try TrainingWindows(TextCorpus(tokens: Array(0..<11), byteCount: 11), length: 10, scored: 10, validation: 0)
        #expect(least.batch(step: 5, size: 1).targets == Array(1...10))
        #expect(least.validationBatches(size: 4).isEmpty)
    }
}

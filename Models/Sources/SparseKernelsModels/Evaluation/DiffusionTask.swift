import Foundation
import SparseKernels

/// Small questions with exact answers, in the form that `diffusion-lm` was trained on: `\n? <task> : <input> = <answer>\n`.
///
/// Each question of a task has a number, and the same seed and number give the same question everywhere. Answers have 8 to 48
/// bytes; the rest of the model's answer is not looked at.
public enum DiffusionTask: String, CaseIterable, Hashable, Sendable {
    /// A list of words in the reverse order.
    case rev
    /// Four to eight numbers of two digits, sorted.
    case sort
    /// Words in upper case.
    case up
    /// The sum of two numbers of 3 to 6 digits, in 8 digits.
    case add
    /// The value of one of six keys that are listed before the question.
    case get
    /// A run-length code such as `a3b2`, expanded.
    case rle

    /// A question and its answer.
    public struct Question: Hashable, Sendable {
        public let task: DiffusionTask
        public let prompt: String
        public let answer: String

        /// The prompt as tokens that are bytes.
        public var tokens: [Int] { prompt.utf8.map { Int($0) } }

        /// Whether generated tokens are the answer and the end of the line.
        public func isAnswered(by tokens: [Int]) -> Bool {
            let expected = answer.utf8.map { Int($0) } + [0x0a]
            return tokens.starts(with: expected)
        }
    }

    /// The first questions of a seed, the tasks in turn.
    public static func questions(_ count: Int, seed: UInt64 = 1) -> [Question] {
        (0..<max(0, count)).map { allCases[$0 % allCases.count].question($0 / allCases.count, seed: seed) }
    }

    /// A question of this task.
    public func question(_ number: Int, seed: UInt64 = 1) -> Question {
        // Tasks and numbers have streams of their own.
        let place = UInt64(Self.allCases.firstIndex(of: self)!)
        var generator = SplitMix64(seed: seed)
        generator = SplitMix64(seed: generator.next() ^ place << 56 ^ UInt64(bitPattern: Int64(number)))
        generator = SplitMix64(seed: generator.next())
        let (before, input, answer) = make(&generator)
        return Question(task: self, prompt: "\(before)\n? \(rawValue) : \(input) = ", answer: answer)
    }

    private static let longest = 47

    private func make(_ generator: inout SplitMix64) -> (before: String, input: String, answer: String) {
        switch self {
        case .rev, .up:
            let words = (0..<Int.random(in: 3...6, using: &generator)).map { _ in Self.text(3...5, &generator) }
            let input = words.joined(separator: " ")
            return ("", input, self == .up ? input.uppercased() : words.reversed().joined(separator: " "))
        case .sort:
            let numbers = (0..<Int.random(in: 4...8, using: &generator)).map { _ in Int.random(in: 10...99, using: &generator) }
            func list(_ numbers: [Int]) -> String { numbers.map { "\($0)" }.joined(separator: " ") }
            return ("", list(numbers), list(numbers.sorted()))
        case .add:
            let (a, b) = (Self.number(&generator), Self.number(&generator))
            let sum = "\(a + b)"
            return ("", "\(a) + \(b)", String(repeating: "0", count: 8 - sum.count) + sum)
        case .get:
            var keys: [String] = []
            while keys.count < 6 {
                let word = NeedleTask.words.randomElement(using: &generator)!
                let key = "\(word)-\(Int.random(in: 10...99, using: &generator))"
                if !keys.contains(key) { keys.append(key) }
            }
            let values = keys.map { _ in Self.text(8...12, &generator) }
            let asked = Int.random(in: 0..<6, using: &generator)
            return (zip(keys, values).map { "\nKEY \($0) = \($1)" }.joined(), keys[asked], values[asked])
        case .rle:
            var (input, answer, last) = ("", "", "")
            let runs = Int.random(in: 4...8, using: &generator)
            for _ in 0..<runs {
                var letter = last
                while letter == last { letter = Self.text(1...1, &generator) }
                let count = Int.random(in: 2...9, using: &generator)
                if answer.count + count > Self.longest { break }
                input += "\(letter)\(count)"
                answer += String(repeating: letter, count: count)
                last = letter
            }
            return ("", input, answer)
        }
    }

    /// A number of 3 to 6 digits.
    private static func number(_ generator: inout SplitMix64) -> Int {
        let smallest = [100, 1000, 10_000, 100_000].randomElement(using: &generator)!
        return Int.random(in: smallest..<smallest * 10, using: &generator)
    }

    /// Lower-case letters.
    private static func text(_ length: ClosedRange<Int>, _ generator: inout SplitMix64) -> String {
        let count = Int.random(in: length, using: &generator)
        return String(decoding: (0..<count).map { _ in UInt8.random(in: 97...122, using: &generator) }, as: UTF8.self)
    }
}

import Foundation
import SparseKernelsModels
import Testing

@Suite("Questions with exact answers")
struct DiffusionTaskTests {
    private func input(_ question: DiffusionTask.Question) -> String {
        let line = question.prompt.split(separator: "\n").last!
        return String(line.drop { $0 != ":" }.dropFirst(2).dropLast(3))
    }

    @Test("answers are right, and of a length that fits", arguments: DiffusionTask.allCases)
    func answers(_ task: DiffusionTask) throws {
        var prompts = Set<String>()
        for number in 0..<200 {
            let question = task.question(number)
            #expect(question.prompt.contains("\n? \(task.rawValue) : ") && question.prompt.hasSuffix(" = "))
            #expect((8...48).contains(question.answer.utf8.count))
            prompts.insert(question.prompt)
            let input = input(question)
            switch task {
            case .rev: #expect(question.answer == input.split(separator: " ").reversed().joined(separator: " "))
            case .up: #expect(question.answer == input.uppercased() && input == input.lowercased())
            case .sort:
                let numbers = input.split(separator: " ").compactMap { Int($0) }
                #expect((4...8).contains(numbers.count) && numbers.allSatisfy { (10...99).contains($0) })
                #expect(question.answer == numbers.sorted().map(String.init).joined(separator: " "))
            case .add:
                let numbers = input.components(separatedBy: " + ").compactMap { Int($0) }
                #expect(numbers.count == 2 && Int(question.answer) == numbers[0] + numbers[1] && question.answer.count == 8)
            case .get:
                #expect(question.prompt.components(separatedBy: "\nKEY ").count == 7)
                #expect(question.prompt.contains("\nKEY \(input) = \(question.answer)\n"))
            case .rle:
                let code = Array(input)
                let text = stride(from: 0, to: code.count, by: 2).map {
                    String(repeating: code[$0], count: Int(String(code[$0 + 1]))!)
                }
                #expect(question.answer == text.joined())
            }
        }
        #expect(prompts.count == 200)
    }

    @Test("questions are the same for the same seed, and an answer ends with the line")
    func seeds() {
        let questions = DiffusionTask.questions(12, seed: 3)
        #expect(questions == DiffusionTask.questions(12, seed: 3) && questions != DiffusionTask.questions(12, seed: 4))
        #expect(questions.map(\.task) == DiffusionTask.allCases + DiffusionTask.allCases)
        #expect(DiffusionTask.questions(0).isEmpty && DiffusionTask.questions(-1).isEmpty)
        let answer = questions[1].answer.utf8.map { Int($0) }
        #expect(questions[1].isAnswered(by: answer + [10, 257, 257]))
        #expect(!questions[1].isAnswered(by: answer) && !questions[1].isAnswered(by: answer + [257]))
    }
}

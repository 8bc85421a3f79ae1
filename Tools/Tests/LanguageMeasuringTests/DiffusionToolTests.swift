import FastDLLM
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Measuring masked-diffusion decoding")
struct DiffusionToolTests {
    /// A tiny model over bytes, without a causal limit; the last byte is its mask.
    private func session() throws -> DiffusionSession {
        let tiny = try TinyBytes()
        let path = URL(fileURLWithPath: tiny.folder + "/config.json")
        let text = try String(contentsOf: path, encoding: .utf8).dropLast() + #", "is_causal": false, "mask_token_id": 255}"#
        try Data(text.utf8).write(to: path)
        return try withExtendedLifetime(tiny) { try DiffusionSession(LanguageModel(folder: tiny.folder), capacity: 512) }
    }

    @Test("rules are read as they are written")
    func rules() throws {
        let expected: [String: CommitRule] = [
            "one": .tokensPerStep(1), "tokens:3": .tokensPerStep(3), "threshold": .threshold(0.9),
            "threshold:0.5": .threshold(0.5),
            "factor": .factor(1), "factor:1.6": .factor(1.6), "released-factor:1": .factor(1, form: .released),
            "schedule:32": .schedule(steps: 32), "random:8": .random(steps: 8), "entropy:8": .entropy(steps: 8),
        ]
        for (text, rule) in expected {
            #expect(try CommitRuleSpec(text).rule == rule && CommitRuleSpec(text).description == text)
        }
        for text in [
            "", "two", "one:1", "tokens", "tokens:0", "threshold:2", "threshold:x", "factor:0", "schedule:-1", "factor:1:2",
        ] {
            let error = #expect(throws: SparseKernelsError.self) { _ = try CommitRuleSpec(text) }
            #expect(error?.code == .invalidArgument)
        }
    }

    @Test("rows count passes and compare with the first way")
    func rows() throws {
        var measurer = DiffusionMeasurer(try session(), on: .serial)
        let cases = DiffusionCase.main(blockLength: 8)
        let questions = DiffusionTask.questions(2)
        let answered = try measurer.answer(questions, with: cases[0], length: 16)
        #expect(answered.forwardPasses == 32 && answered.tokens == 32 && answered.exact == 0 && answered.agreement == nil)
        #expect(answered.queryRows == questions.reduce(0) { $0 + 16 * ($1.tokens.count + 16) })
        let prompts = [[1, 2, 3], [4, 5, 6, 7]]
        let (first, texts) = try measurer.continuations(of: prompts, with: cases[0], length: 16, expected: nil)
        let (same, _) = try measurer.continuations(of: prompts, with: cases[0], length: 16, expected: texts)
        #expect(first.agreement == nil && same.agreement == 1 && first.exact == nil)
        var passes = 0
        let (fast, _) = try measurer.continuations(
            of: prompts, with: DiffusionCase("all", FastDLLMConfiguration(blockLength: 8, rule: .threshold(0))), length: 16,
            expected: texts
        ) { _ in passes += 1 }
        #expect(fast.forwardPasses == 4 && passes == 4 && fast.tokensPerForward == 8)
        #expect(fast.cells(first: first).count == 9)
        #expect(Set((cases + DiffusionCase.sweep(blockLength: 8)).map(\.name)).count == 17)
        let data = try RowFile<DiffusionRow>.encode([first])
        #expect(try JSONDecoder().decode([DiffusionRow].self, from: data) == [first])
    }

    @Test("a report has the steps, and a picture shows a block while it fills")
    func report() throws {
        var session = try session()
        let question = DiffusionTask.add.question(0)
        let configuration = FastDLLMConfiguration(blockLength: 8, rule: .tokensPerStep(2), cache: .dual)
        var picture = BlockPicture(question.tokens + Array(repeating: 255, count: 8), maskToken: 255)
        var pictures: [String] = []
        let result = try FastDLLMDecoder(configuration).generate(question.tokens, length: 8, with: &session, on: .serial) {
            pictures.append(picture.draw($0))
        }
        #expect(pictures.map { $0.count { $0 == "·" } } == [6, 4, 2, 0])
        let report = DiffusionReport(
            prompt: question.prompt, question: question, result, configuration, rule: "tokens:2", seconds: 2,
            stages: session.seconds
        ) { "\($0.count) tokens" }
        #expect(report.text == "8 tokens" && report.isRight == false && report.answer == question.answer)
        #expect(report.steps.map(\.positions) == result.steps.map { $0.commits.map(\.position) })
        #expect(report.summary.hasPrefix("8 positions in 4 passes, 2.0 each, 4.0 per second"))
        #expect(report.summary.contains("(tokens:2, dual), not \"\(question.answer)\""))
    }
}

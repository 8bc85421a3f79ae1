import FastDLLM
import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

/// The snippets on masked-diffusion models in Docs/Operators/LanguageModel.md.
@Suite("Snippets: masked-diffusion models")
struct DiffusionSnippets {
    @Test("a question is answered")
    func question() throws {
        let tiny = try TinyBytes()
        let folder = tiny.folder
        let path = URL(fileURLWithPath: folder + "/config.json")
        let text = try String(contentsOf: path, encoding: .utf8).dropLast() + #", "is_causal": false, "mask_token_id": 255}"#
        try Data(text.utf8).write(to: path)

        let model = try LanguageModel(folder: folder)
        var session = try DiffusionSession(model, capacity: 1024)
        let decoder = try FastDLLMDecoder(FastDLLMConfiguration(blockLength: 32, rule: .threshold(0.9), cache: .dual))
        let question = DiffusionTask.sort.question(0)
        let result = try decoder.generate(question.tokens, length: 64, with: &session)
        print(ByteTokenizer().text(result.tokens), question.isAnswered(by: result.tokens))
        print(result.forwardPasses, result.tokensPerForward, session.seconds.attention)

        #expect(result.tokens.count == 64 && !result.tokens.contains(255))
    }
}

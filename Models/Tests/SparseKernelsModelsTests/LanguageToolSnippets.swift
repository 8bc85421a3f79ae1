import SparseKernels
import SparseKernelsModels
import Testing

/// The snippets of Docs/Operators/LanguageTool.md.
@Suite("Snippets: generating and measuring")
struct LanguageToolSnippets {
    @Test("generate, alone and in a batch")
    func generate() throws {
        let tiny = try TinyBytes()
        let folder = tiny.folder

        let tokenizer = try TokenizerFolder.tokenizer(of: folder)
        let model = try LanguageModel(folder: folder)
        let session = try LanguageSession(model, SessionOptions(decoding: .quest(tokens: 1024), tokenCapacity: 8192))
        let sampling = Sampling(temperature: 0.8, topP: 0.95, seed: 7)
        let request = GenerationRequest(
            prompt: tokenizer.prompt("func sum("), sampling: sampling, maximumTokens: 200, stopStrings: ["\n}\n"])
        let result = try Generator(session, tokenizer: tokenizer).run(request) { event in
            if case .token(_, _, let bytes) = event { print(String(decoding: bytes, as: UTF8.self), terminator: "") }
            return true  // false ends it
        }
        print(result.end, session.statistics.decodingReadFraction)

        #expect(result.tokens.count <= 200)
    }

    @Test("measure")
    func measure() throws {
        let tiny = try TinyBytes()
        let tokenizer = ByteTokenizer()
        let session = try LanguageSession(LanguageModel(folder: tiny.folder), SessionOptions(tokenCapacity: 8192))
        let folder = try #require(ModelData.sources)

        let corpus = try TextCorpus(path: folder, tokenizer: tokenizer)
        let score = try Perplexity(context: 2048, windows: 2)(session, on: corpus, tokenizer: tokenizer)
        let needles = try NeedleTask(context: 2048, trials: 2)(session, in: corpus, tokenizer: tokenizer)
        print(score.bitsPerByte, needles.accuracy)

        #expect(score.bytes == 512 && needles.questions == 12)
    }

    @Test("read a tokenizer")
    func tokenizer() throws {
        let file = try TinyTokenizer(TinyTokenizer.byteLevel(merges: [("h", "e")], moreTokens: ["<|end|>"]))
        let path = file.path

        let tokenizer = try BPETokenizer(path: path, endTokens: [257])
        let tokens = tokenizer.encode("hello")
        print(tokens, tokenizer.text(tokens), tokenizer.vocabularySize)

        #expect(tokenizer.text(tokens) == "hello")
    }
}

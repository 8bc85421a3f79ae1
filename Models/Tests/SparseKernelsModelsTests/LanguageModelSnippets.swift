import Communication
import FastDLLM
import Foundation
import ReasoningBranches
import SparseKernels
import SparseKernelsModels
import Testing

/// The snippets of Docs/Operators/LanguageModel.md.
@Suite("Snippets: language models")
struct LanguageModelSnippets {
    private let prompt = LanguageSessionTests.tokens

    @Test("a prompt and some steps")
    func steps() throws {
        let tiny = try TinyLanguageModel()
        let folder = tiny.folder

        let model = try LanguageModel(folder: folder, linear: .float16)
        let session = try LanguageSession(model, SessionOptions(tokenCapacity: 8192))
        let sequence = session.makeSequence()
        // The prompt, in chunks; then a token at a time. Logits are [rows, vocabularySize].
        var logits = try session.append([prompt], to: [sequence])
        for _ in 0..<8 {
            let row = logits.elements
            let next = row.indices.max { row[$0] < row[$1] }!
            logits = try session.append([[next]], to: [sequence])
        }
        try print(session.length(of: sequence), session.statistics.decodedTokens)

        #expect(try session.length(of: sequence) == 29 && session.statistics.decodedTokens == 8)
    }

    @Test("a batch, forks and drafts")
    func batch() throws {
        let model = try TinyLanguageModel.load()
        let session = try LanguageSession(model)
        let prompts = [Array(prompt[..<5]), prompt]

        let sequences = prompts.map { _ in session.makeSequence() }
        // A row per sequence, after its last token.
        let rows = try session.append(prompts, to: sequences)
        // Two continuations of the first one, which share its pages.
        let other = try session.fork(sequences[0])
        _ = try session.append([[1], [2]], to: [sequences[0], other])
        // Three draft tokens with the logits of all of them, of which the last two are taken back.
        let draft = try session.append([[3, 4, 5]], to: [other], logits: .all)
        try session.truncate(other, to: session.length(of: other) - 2)
        try session.free(sequences[1])

        #expect(rows.shape == [2, 48] && draft.shape == [3, 48])
        #expect(try session.length(of: sequences[0]) == 6 && session.length(of: other) == 7)
    }

    @Test("branches: samples, beams, children that are joined")
    func branches() throws {
        let session = try LanguageSession(try TinyLanguageModel.load(), SessionOptions(tokenCapacity: 2048))

        let branching = try BranchingSession(session, seed: 1)
        let request = BranchRequest(sampling: Sampling(temperature: 0.8), maximumTokens: 16)
        let best = try branching.bestOf(4, after: prompt, request)[0]  // of the highest probability
        let beam = try branching.beamSearch(after: prompt, width: 3, maximumTokens: 16)[0]

        let root = try branching.tree.start(prompt)
        _ = try branching.step()  // the prompt, once
        let children = try branching.tree.spawn([.prompt([1, 2]), .fork(appending: [3])], from: root)
        _ = try branching.decode(children, request)  // together; each has a stream of random numbers of its own
        try branching.tree.join(root, at: prompt.count) { $0.flatMap(\.newTokens) }  // in the order of the spawn
        let logits = try branching.step()!.logits  // of the parent, which goes on

        #expect(best.tokens.count == 16 && beam.tokens.count == 16 && logits.shape == [1, 48])
        #expect(try branching.tree.tokens(of: root).count == prompt.count + 32)
    }

    @Test("a hybrid model, and a checkpoint to go back to")
    func hybrid() throws {
        let tiny = try TinyHybridModel()
        let folder = tiny.folder

        let model = try LanguageModel(folder: folder)
        let session = try LanguageSession(model, SessionOptions(tokenCapacity: 8192))
        let sequence = session.makeSequence()
        _ = try session.append([prompt], to: [sequence])
        try session.checkpoint(sequence)
        let drafts = try session.append([[3, 4, 5]], to: [sequence], logits: .all)
        try session.truncate(sequence, to: prompt.count)  // as if the drafts had not been there
        let other = try session.fork(sequence)

        #expect(try session.append([[3, 4, 5]], to: [other], logits: .all) == drafts)
    }

    @Test("several ranks")
    func ranks() throws {
        let model = try TinyLanguageModel.load()
        let prompt = LanguageSessionTests.tokens

        let rows = try LocalCommunicator.run(ranks: 4) { (ranks) throws(SparseKernelsError) in
            let session = try LanguageSession(
                model, SessionOptions(tokenCapacity: 131_072), communicator: ranks, on: WorkerPool(threads: 2))
            let sequence = session.makeSequence()
            _ = try session.append([prompt], to: [sequence])
            return try session.append([[7]], to: [sequence]).elements  // the same on every rank
        }

        #expect(rows.count == 4 && rows.allSatisfy { $0 == rows[0] && $0.count == 48 })
    }

    @Test("sparse attention over a cache of 4 bits")
    func sparse() throws {
        let model = try TinyLanguageModel.load()

        var options = SessionOptions(
            prefill: .xAttention(threshold: 0.9), decoding: .twilight(tokens: 2048, topP: 0.9), keyFormat: .int4,
            valueFormat: .int4, tokenCapacity: 32_768)
        options.rotatesKeys = true
        options.rotatesValues = true
        let sparse = try LanguageSession(model, options)
        _ = try sparse.append([prompt], to: [sparse.makeSequence()])
        let statistics = sparse.statistics
        print(statistics.prefillDensity, statistics.prefill.attention, statistics.peakByteCount)

        #expect(statistics.prefillDensity <= 1 && statistics.peakByteCount > model.byteCount)
    }
}

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

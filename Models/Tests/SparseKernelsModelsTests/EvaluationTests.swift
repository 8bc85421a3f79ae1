import Foundation
import SparseKernels
import Testing

@testable import SparseKernelsModels

@Suite("Measuring language models")
struct EvaluationTests {
    private let tokenizer = ByteTokenizer()
    private let corpus = TextCorpus(
        tokens: (0..<3000).map { ($0 * 37 + $0 / 11 * 5) % 90 + 32 }, byteCount: 3000)

    private func session(_ folder: String, tokens: Int = 2048, threads: Int = 1) throws -> LanguageSession {
        let model = try LanguageModel(folder: folder, linear: .float32)
        var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: tokens)
        options.chunk = 96
        return try LanguageSession(model, options, on: WorkerPool(threads: threads))
    }

    @Test("code lengths take the rows that predict a token, and say what is wrong with others")
    func codeLengths() throws {
        let logits = try Tensor<Float>([3, 4], [0, 1, 2, 3, 5, 5, 5, 5, 9, 9, 9, 9])
        let first = log(exp(-2.0) + exp(-1) + 1 + exp(1)) / log(2)
        #expect(abs(try LanguageModel.codeLength(logits, [1, 2]) - first) < 1e-6)
        #expect(abs(try LanguageModel.codeLength(logits, [1, 2, 0]) - first - 2) < 1e-6)
        #expect(try LanguageModel.codeLength(logits, [1]) == 0 && LanguageModel.codeLength(logits, []) == 0)
        #expect(throws: SparseKernelsError.self) { try LanguageModel.codeLength(logits, [0, 0, 0, 0, 0]) }
        let error = #expect(throws: SparseKernelsError.self) { try LanguageModel.codeLength(logits, [0, 4]) }
        #expect(error?.argument == "tokens")
    }

    @Test("heads lose what their window does not hold, and nothing when it holds everything")
    func retrievalHeads() throws {
        let model = try TinyLanguageModel.load()
        let texts = [Array(corpus.tokens[..<60]), Array(corpus.tokens[100..<150])].map { $0.map { $0 % 48 } }
        func losses(_ sink: Int, _ local: Int, _ texts: [[Int]]) throws -> [[Double]] {
            var profile = try RetrievalHeadProfile(sink: sink, local: local)
            for text in texts { try profile.add(text, to: model) }
            return profile.losses
        }
        #expect(try losses(0, 60, texts) == Array(repeating: Array(repeating: 0, count: model.configuration.kvHeads), count: 3))
        let (narrow, wide) = (try losses(1, 4, texts), try losses(1, 30, texts))
        for (a, b) in zip(narrow.joined(), wide.joined()) { #expect(a > b && b > 0 && a <= 1) }
        // Of two texts, the loss is between those of either.
        let alone = try texts.map { try losses(1, 4, [$0])[1][0] }
        #expect(narrow[1][0] >= alone.min()! && narrow[1][0] <= alone.max()!)
        var profile = try RetrievalHeadProfile()
        #expect(profile.losses.isEmpty)
        #expect(throws: SparseKernelsError.self) { try profile.add([], to: model) }
        #expect(throws: SparseKernelsError.self) { try profile.add([48], to: model) }
        #expect(throws: SparseKernelsError.self) { try RetrievalHeadProfile(sink: 0, local: 0) }
    }

    @Test("bits are those of the logits of whole windows, through prefill and through decoding")
    func perplexity() throws {
        let tiny = try TinyBytes()
        let session = try session(tiny.folder)
        let prefill = try Perplexity(context: 200, scored: 30, windows: 3)
        let decoding = try Perplexity(context: 200, scored: 30, windows: 3, path: .decoding)
        var expected = 0.0
        for window in try corpus.windows(3, length: 200) {
            let tokens = Array(corpus.tokens[window])
            let logits = try session.model.logits(tokens)
            for position in 170..<200 {
                let row = (0..<256).map { Double(logits[flat: (position - 1) * 256 + $0]) }
                let largest = row.max()!
                let sum = row.reduce(0) { $0 + exp($1 - largest) }
                expected += (log(sum) + largest - row[tokens[position]]) / log(2)
            }
        }
        for perplexity in [prefill, decoding] {
            let score = try perplexity(session, on: corpus, tokenizer: tokenizer)
            #expect(score.tokens == 90 && score.bytes == 90)
            // Single precision in another order: about 10⁻⁵ of each logit.
            #expect(abs(score.bits - expected) < 0.02, "\(score.bits), \(expected)")
            #expect(abs(score.perplexity - exp2(expected / 90)) < 0.1)
        }
        // The session is empty again, so all of it is there for the next.
        _ = try Perplexity(context: 2048, windows: 1)(session, on: corpus, tokenizer: tokenizer)
    }

    @Test("a measurement ends when the caller wants no more, with what there is")
    func stopping() throws {
        let tiny = try TinyBytes()
        let session = try session(tiny.folder)
        var calls: [Int] = []
        let score = try Perplexity(context: 64, scored: 8, windows: 5)(session, on: corpus, tokenizer: tokenizer) {
            index, count, score in
            calls.append(index)
            return index < 1 && count == 5 && score.tokens == 8
        }
        #expect(calls == [0, 1] && score.tokens == 16)
        let needles = try NeedleTask(context: 500, keys: 2, trials: 3)(session, in: corpus, tokenizer: tokenizer) { _, _ in
            false
        }
        #expect(needles.questions == 2)
    }

    @Test("windows go from the start of a text to its end")
    func windows() throws {
        #expect(try corpus.windows(3, length: 1000) == [0..<1000, 1000..<2000, 2000..<3000])
        #expect(try corpus.windows(1, length: 3000) == [0..<3000] && corpus.windows(9, length: 2999).count == 2)
        for (count, length) in [(0, 10), (1, 0), (1, 3001)] {
            #expect(throws: SparseKernelsError.self) { try corpus.windows(count, length: length) }
        }
        for (context, scored, windows) in [(10, 10, 1), (10, 0, 1), (10, 5, 0), (0, 1, 1)] {
            #expect(throws: SparseKernelsError.self) { try Perplexity(context: context, scored: scored, windows: windows) }
        }
    }

    @Test("a folder's texts are read by path, with an end token behind each")
    func folders() throws {
        let folder = NSTemporaryDirectory() + "sparsekernels-texts-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        for name in ["b/x.swift", "a/y.swift", "a/z.txt", ".hidden/w.swift"] {
            let url = URL(fileURLWithPath: "\(folder)/\(name)")
            try FileManager.default.createDirectory(at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data(name.utf8).write(to: url)
        }
        let texts = try TextCorpus(path: folder, tokenizer: tokenizer)
        #expect(texts.tokens == Array("a/y.swift\0b/x.swift\0".utf8).map(Int.init) && texts.byteCount == 18)
        #expect(texts.files == ["\(folder)/a/y.swift", "\(folder)/b/x.swift"])
        #expect(try TextCorpus(path: folder, extensions: ["txt"], tokenizer: tokenizer).files.count == 1)
        #expect(try TextCorpus(path: folder + "/a/z.txt", tokenizer: tokenizer).byteCount == 7)
        #expect(throws: SparseKernelsError.self) { try TextCorpus(path: folder, extensions: ["c"], tokenizer: ByteTokenizer()) }
        #expect(throws: SparseKernelsError.self) { try TextCorpus(path: folder + "/none", tokenizer: ByteTokenizer()) }
    }

    @Test("haystacks have their length, all lines, and the same bytes for a seed")
    func haystacks() throws {
        let task = try NeedleTask(context: 1000, keys: 6, trials: 2, seed: 5)
        let trial = try task.trial(3, in: corpus, tokenizer: tokenizer)
        #expect(try task.trial(3, in: corpus, tokenizer: tokenizer) == trial)
        #expect(try task.trial(4, in: corpus, tokenizer: tokenizer) != trial)
        let text = tokenizer.text(trial.haystack)
        let longest = trial.questions.map(\.count).max()!
        #expect(trial.haystack.count + longest + 6 == 1000)
        #expect(trial.questions.count == 6 && Set(trial.questions).count == 6 && trial.depths == trial.depths.sorted())
        for (question, answer) in zip(trial.questions, trial.answers) {
            let line = tokenizer.text(question) + String(decoding: answer, as: UTF8.self) + "\n"
            #expect(line.hasPrefix("\n// KEY ") && text.contains(line), "\(line)")
            #expect(answer.count == 6 && line.count >= "\n// KEY red-1234 = 567890\n".count)
        }
        for (context, keys, trials) in [(400, 6, 1), (1000, 0, 1), (1000, 6, 0)] {
            #expect(throws: SparseKernelsError.self) { try NeedleTask(context: context, keys: keys, trials: trials) }
        }
        #expect(throws: SparseKernelsError.self) {
            try NeedleTask(context: 4000).trial(0, in: corpus, tokenizer: tokenizer)
        }
    }

    @Test("answers that the model gives are right, others are wrong, on any number of threads")
    func answers() throws {
        let tiny = try TinyBytes()
        let task = try NeedleTask(context: 500, keys: 3, trials: 2)
        let trial = try task.trial(0, in: corpus, tokenizer: tokenizer)
        let session = try session(tiny.folder)
        // What the model says to each question, by itself.
        let spoken = try trial.questions.map { question in
            var request = GenerationRequest(prompt: trial.haystack + question, maximumTokens: 6)
            request.stopsAtEndTokens = false
            return try Generator(session, tokenizer: tokenizer).run(request).bytes
        }
        let answered = NeedleTask.Trial(
            haystack: trial.haystack, questions: trial.questions, answers: [spoken[0], trial.answers[1], spoken[2]],
            depths: trial.depths)
        for threads in [1, 3] {
            let session = try self.session(tiny.folder, threads: threads)
            let score = try task.run(answered, session, tokenizer: tokenizer)
            #expect(score.questions == 3 && score.correct == 2, "\(spoken)")
            #expect(abs(score.accuracy - 2.0 / 3) < 1e-12)
        }
        #expect(try task(session, in: corpus, tokenizer: tokenizer).questions == 6)
    }
}

@Suite("Generating with a model")
struct ModelGenerationTests {
    @Test("texts are equal for 1, 2 and 7 threads, alone and in a batch, and streamed")
    func reproducible() async throws {
        let tiny = try TinyBytes()
        let folder = tiny.folder
        let tokenizer = ByteTokenizer()
        let requests = (0..<3).map { index in
            GenerationRequest(
                prompt: tokenizer.prompt("func number\(index)(") + Array(repeating: 32, count: 20 * index),
                sampling: Sampling(temperature: 0.8, topK: 40, seed: 11), maximumTokens: 24, stream: UInt64(index))
        }
        @Sendable func session(_ threads: Int) throws -> LanguageSession {
            let model = try LanguageModel(folder: folder, linear: .float32)
            return try LanguageSession(model, SessionOptions(tokenCapacity: 1024), on: WorkerPool(threads: threads))
        }
        let first = try Generator(session(1), tokenizer: tokenizer).run(requests)
        #expect(first.allSatisfy { !$0.tokens.isEmpty })
        for threads in [2, 7] {
            #expect(try Generator(session(threads), tokenizer: tokenizer).run(requests) == first)
        }
        for (request, result) in zip(requests, first) {
            #expect(try Generator(session(2), tokenizer: tokenizer).run(request) == result)
        }
        var tokens: [Int] = []
        let stream = Generator.stream(requests[1], tokenizer: tokenizer) { try session(2) }
        for try await event in stream {
            if case .token(_, let token, _) = event { tokens.append(token) }
        }
        #expect(tokens == first[1].tokens)
        // A reader that has enough ends the run.
        var count = 0
        for try await event in Generator.stream(requests[0], tokenizer: tokenizer, makingSession: { try session(1) }) {
            if case .token = event { count += 1 }
            if count == 2 { break }
        }
        #expect(count == 2)
        let failing = Generator.stream(requests[0], tokenizer: tokenizer) {
            throw SparseKernelsError(.notFound, "model", expected: "one", actual: "none")
        }
        await #expect(throws: SparseKernelsError.self) { for try await _ in failing {} }
    }
}

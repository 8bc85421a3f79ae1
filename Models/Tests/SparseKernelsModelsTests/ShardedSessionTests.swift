import Communication
import Foundation
import SparseKernels
import Testing

@testable import SparseKernelsModels

@Suite("Sessions over several ranks")
struct ShardedSessionTests {
    /// Five pages of 16, the last one partly full.
    private static let tokens = (0..<75).map { ($0 * $0 * 5 + $0 * 3 + 7) % 48 }
    private var tokens: [Int] { Self.tokens }

    private static func exact(chunk: Int = 256) -> SessionOptions {
        var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: 512)
        options.chunk = chunk
        options.pageSize = 16
        return options
    }

    /// Runs the same calls of a session on every rank.
    private static func onRanks<Result: Sendable>(
        _ ranks: Int, _ model: LanguageModel, _ options: SessionOptions,
        _ body: @escaping @Sendable (LanguageSession, any Communicator) throws(SparseKernelsError) -> Result
    ) throws -> [Result] {
        try LocalCommunicator.run(ranks: ranks, timeLimit: 60) { (communicator) throws(SparseKernelsError) in
            try body(LanguageSession(model, options, communicator: communicator, on: .serial), communicator)
        }
    }

    /// Logits of a prompt in two calls, of steps, and of a fork.
    private static func rows(_ session: LanguageSession) throws(SparseKernelsError) -> [Float] {
        let sequence = session.makeSequence()
        var rows = try session.append([Array(tokens[..<50])], to: [sequence], logits: .all).elements
        rows += try session.append([Array(tokens[50..<69])], to: [sequence], logits: .all).elements
        for token in tokens[69...] { rows += try session.append([[token]], to: [sequence]).elements }
        let fork = try session.fork(sequence, at: 20)
        rows += try session.append([Array(tokens[20..<30])], to: [fork]).elements
        try session.truncate(sequence, to: 40)
        rows += try session.append([Array(tokens[40..<42]), [tokens[30]]], to: [sequence, fork]).elements
        try session.free(sequence)
        return rows
    }

    @Test("one rank has the bits of a session alone")
    func alone() throws {
        let model = try TinyLanguageModel.load()
        for decoding in [DecodingMethod.dense, .twilight(tokens: 32, topP: 0.9)] {
            var options = Self.exact(chunk: 16)
            options.decoding = decoding
            let expected = try Self.rows(LanguageSession(model, options, on: .serial))
            let rows = try Self.onRanks(1, model, options) { (session, _) throws(SparseKernelsError) in
                try Self.rows(session)
            }
            #expect(rows == [expected])
        }
    }

    /// The oracle is slow: two pages and a part of one, so that the last of four ranks has none.
    @Test(
        "architectures are as in Double on any number of ranks, and all ranks have the same bits",
        arguments: TinyOptions.all.filter { ["gemma2", "sinks"].contains($0.name) })
    func architectures(_ options: TinyOptions) throws {
        let tokens = Array(Self.tokens[..<37])
        let tiny = try TinyLanguageModel(options)
        let (expected, tolerance) = ReferenceLanguageModel.logits(tiny, tokens)
        let model = try LanguageModel(folder: tiny.folder, linear: .float32)
        for (ranks, chunk) in [(2, 256), (3, 7), (4, 16)] {
            let prompts = try Self.onRanks(ranks, model, Self.exact(chunk: chunk)) { (session, _) throws(SparseKernelsError) in
                try session.append([tokens], to: [session.makeSequence()], logits: .all).elements
            }
            for rows in prompts { #expect(rows == prompts[0]) }
            let difference = largestDifference(prompts[0].map(Double.init), expected)
            #expect(difference <= tolerance, "\(ranks) ranks: \(difference) of \(tolerance)")
            let steps = try Self.onRanks(ranks, model, Self.exact(chunk: chunk)) { (session, _) throws(SparseKernelsError) in
                let sequence = session.makeSequence()
                _ = try session.append([Array(tokens[..<25])], to: [sequence])
                var rows: [Float] = []
                for token in tokens[25...] { rows += try session.append([[token]], to: [sequence]).elements }
                return rows
            }
            for rows in steps { #expect(rows == steps[0]) }
            let distance = largestDifference(steps[0].map(Double.init), Array(expected[(25 * 48)...]))
            #expect(distance <= tolerance, "\(ranks) ranks, step by step: \(distance) of \(tolerance)")
        }
    }

    @Test("calls in pieces, forks and cuts give the logits of one rank", arguments: [2, 3, 4])
    func calls(ranks: Int) throws {
        let model = try TinyLanguageModel.load()
        let cases: [(DecodingMethod, KVFormat, KVFormat)] = [
            (.dense, .float32, .float32), (.streaming(sink: 2, local: 20), .float16, .float16),
            (.quest(tokens: 48), .float32, .float32), (.dense, .int8, .int4), (.dense, .bfloat16, .bfloat16),
        ]
        for (decoding, key, value) in cases {
            var options = Self.exact(chunk: 16)
            options.decoding = decoding
            (options.keyFormat, options.valueFormat) = (key, value)
            options.rotatesKeys = key == .int8
            options.rotatesValues = key == .int8
            let expected = try Self.rows(LanguageSession(model, options, on: .serial))
            let rows = try Self.onRanks(ranks, model, options) { (session, _) throws(SparseKernelsError) in
                try Self.rows(session)
            }
            for row in rows { #expect(row == rows[0]) }
            let distance = relativeDistance(rows[0], expected)
            // Sums in another order may move a stored key or value to the next code, as chunks may.
            let limits: [KVFormat: Double] = [.float32: 1e-5, .float16: 2e-3, .bfloat16: 1.5e-2, .int8: 3e-2]
            #expect(distance < limits[key]!, "\(decoding), \(key)/\(value): \(distance)")
        }
    }

    @Test("angles that depend on the length of a sequence are those of one rank")
    func dynamicScaling() throws {
        let model = try TinyLanguageModel.load(TinyOptions.all.first { $0.dependsOnLength }!)
        let options = Self.exact(chunk: 10)
        let expected = try Self.rows(LanguageSession(model, options, on: .serial))
        let rows = try Self.onRanks(3, model, options) { (session, _) throws(SparseKernelsError) in try Self.rows(session) }
        #expect(rows[0] == rows[1] && relativeDistance(rows[0], expected) < 1e-5)
    }

    @Test("a streaming prompt sees its first and last tokens on any rank")
    func streaming() throws {
        let model = try TinyLanguageModel.load()
        var options = Self.exact(chunk: 20)
        options.prefill = .streaming(sink: 3, local: 18)
        options.denseLayers = 1
        let expected = try Self.rows(LanguageSession(model, options, on: .serial))
        let rows = try Self.onRanks(3, model, options) { (session, _) throws(SparseKernelsError) in try Self.rows(session) }
        #expect(rows[0] == rows[2] && relativeDistance(rows[0], expected) < 1e-5)
    }

    @Test("sequences of a batch have the logits of one rank")
    func batches() throws {
        let model = try TinyLanguageModel.load()
        let prompts = [Array(tokens[..<3]), [5], Array(tokens[2..<50]), [], Array(tokens[5..<24])]
        @Sendable func rows(_ session: LanguageSession) throws(SparseKernelsError) -> [Float] {
            let sequences = prompts.map { _ in session.makeSequence() }
            var rows = try session.append(prompts, to: sequences, logits: .all).elements
            rows += try session.append(prompts.indices.map { [$0 + 3] }, to: sequences).elements
            return rows + (try session.append(prompts, to: sequences).elements)
        }
        let expected = try rows(LanguageSession(model, Self.exact(chunk: 16), on: .serial))
        for ranks in [2, 4] {
            let sharded = try Self.onRanks(ranks, model, Self.exact(chunk: 16)) { (session, _) throws(SparseKernelsError) in
                try rows(session)
            }
            #expect(sharded[0] == sharded[1] && relativeDistance(sharded[0], expected) < 1e-5)
        }
    }

    @Test("text is that of one rank, and rank 0 decides when it ends")
    func text() throws {
        let tiny = try TinyBytes()
        let model = try LanguageModel(folder: tiny.folder)
        let tokenizer = ByteTokenizer()
        let requests = ["func sum(", "// The"].map {
            GenerationRequest(prompt: tokenizer.prompt($0), maximumTokens: 24)
        }
        let options = SessionOptions(tokenCapacity: 256)
        let expected = try Generator(LanguageSession(model, options), tokenizer: tokenizer).run(requests)
        for ranks in 1...4 {
            let results = try Self.onRanks(ranks, model, options) { (session, _) throws(SparseKernelsError) in
                try Generator(session, tokenizer: ByteTokenizer()).run(requests)
            }
            for result in results { #expect(result == expected) }
        }
        // Rank 1 would go on, and rank 0 has seen enough.
        let cut = try Self.onRanks(2, model, options) { (session, communicator) throws(SparseKernelsError) in
            var count = 0
            return try Generator(session, tokenizer: ByteTokenizer()).run(requests) { event in
                if case .token = event { count += 1 }
                return communicator.rank > 0 || count < 5
            }
        }
        #expect(cut.allSatisfy { $0.allSatisfy { $0.end == .cancelled } })
        #expect(cut[0].map(\.tokens) == [Array(expected[0].tokens[..<3]), Array(expected[1].tokens[..<2])])
    }

    @Test("measurements are those of one rank")
    func measurements() throws {
        let tiny = try TinyBytes()
        let model = try LanguageModel(folder: tiny.folder, linear: .float32)
        let corpus = TextCorpus(tokens: (0..<1500).map { ($0 * 37 + $0 / 11 * 5) % 90 + 32 }, byteCount: 1500)
        var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: 1024)
        options.chunk = 96
        @Sendable func bits(_ session: LanguageSession) throws(SparseKernelsError) -> [Double] {
            let tokenizer = ByteTokenizer()
            let prefill = try Perplexity(context: 200, scored: 20, windows: 2)(session, on: corpus, tokenizer: tokenizer)
            let decoding = try Perplexity(context: 100, scored: 8, windows: 2, path: .decoding)(
                session, on: corpus, tokenizer: tokenizer)
            let needles = try NeedleTask(context: 300, keys: 2, trials: 1)(session, in: corpus, tokenizer: tokenizer)
            return [prefill.bits, decoding.bits, Double(needles.correct), Double(needles.questions)]
        }
        let expected = try bits(LanguageSession(model, options, on: .serial))
        let sharded = try Self.onRanks(3, model, options) { (session, _) throws(SparseKernelsError) in try bits(session) }
        for score in sharded { #expect(largestDifference(score, expected) < 0.01, "\(score), \(expected)") }
    }

    @Test("statistics count the tokens and pairs of all ranks")
    func statistics() throws {
        let model = try TinyLanguageModel.load()
        let options = Self.exact(chunk: 16)
        @Sendable func statistics(_ session: LanguageSession) throws(SparseKernelsError) -> SessionStatistics {
            let sequence = session.makeSequence()
            _ = try session.append([Self.tokens], to: [sequence])
            _ = try session.append([[3]], to: [sequence])
            return session.statistics
        }
        let expected = try statistics(LanguageSession(model, options, on: .serial))
        let sharded = try Self.onRanks(2, model, options) { (session, _) throws(SparseKernelsError) in
            try statistics(session)
        }
        for own in sharded {
            #expect(own.prefillTokens == 75 && own.decodedTokens == 1 && own.steps == 1)
            #expect(own.attendedPairs == expected.attendedPairs && own.readBytes == expected.readBytes)
            #expect(own.prefill.total > 0 && own.peakByteCount > model.byteCount)
        }
    }

    // MARK: - Errors

    @Test("what several ranks cannot have is named")
    func options() throws {
        func expect(_ argument: String, _ model: LanguageModel, _ change: (inout SessionOptions) -> Void) {
            var options = Self.exact()
            change(&options)
            let error = #expect(throws: SparseKernelsError.self) {
                try Self.onRanks(2, model, options) { (_, _) throws(SparseKernelsError) in 0 }
            }
            #expect(error?.code == .invalidArgument && error?.argument == argument, "\(error!)")
        }
        let model = try TinyLanguageModel.load()
        expect("options.prefill", model) { $0.prefill = .xAttention(threshold: 0.9) }
        expect("options.prefill", model) { $0.prefill = .lServe() }
        expect("options.decoding", model) { $0.decoding = .twilight(tokens: 32, topP: 0.9) }
        expect("options.decoding", model) { $0.decoding = .lServe(tokens: 64) }
        expect("options.decoding", model) { $0.decoding = .polar(heads: 1) }
        let tiny = try TinyHybridModel()
        let hybrid = try LanguageModel(folder: tiny.folder)
        expect("model", hybrid) { _ in }
    }

    @Test("ranks that do not do the same are told so, all of them")
    func disagreement() throws {
        let model = try TinyLanguageModel.load()
        let options = Self.exact()
        let messages = try LocalCommunicator.run(ranks: 3, timeLimit: 60) { (communicator) throws(SparseKernelsError) in
            var messages: [String] = []
            func note(_ body: () throws(SparseKernelsError) -> Void) {
                do throws(SparseKernelsError) {
                    try body()
                    messages.append("nothing")
                } catch { messages.append("\(error.code), \(error.argument), \(error.actual)") }
            }
            note { () throws(SparseKernelsError) in
                var own = options
                if communicator.rank == 2 { own.tokenCapacity += 1 }
                _ = try LanguageSession(model, own, communicator: communicator, on: .serial)
            }
            let session = try LanguageSession(model, options, communicator: communicator, on: .serial)
            let sequence = session.makeSequence()
            note { () throws(SparseKernelsError) in
                _ = try session.append([[1, communicator.rank == 1 ? 2 : 3]], to: [sequence])
            }
            // The session can go on.
            note { () throws(SparseKernelsError) in _ = try session.append([[1, 2, 3]], to: [sequence]) }
            return messages
        }
        for own in messages {
            #expect(own[0].hasPrefix("communication failure, options, on rank 2"), "\(own[0])")
            #expect(own[1] == "communication failure, tokens, others on rank 1" && own[2] == "nothing", "\(own)")
        }
    }

    @Test("calls that cannot be run throw on all ranks and change nothing")
    func errors() throws {
        let model = try TinyLanguageModel.load()
        var options = Self.exact(chunk: 16)
        options.tokenCapacity = 64
        options.sequenceCapacity = 2
        let outcomes = try Self.onRanks(2, model, options) { (session, _) throws(SparseKernelsError) in
            let sequence = session.makeSequence()
            _ = try session.append([Array(Self.tokens[..<21])], to: [sequence])
            let reference = try session.append([[4]], to: [session.fork(sequence)]).elements
            var outcomes: [String] = []
            for tokens in [[[48]], [[-1, 2]], [Array(repeating: 1, count: 1000)]] {
                do throws(SparseKernelsError) { _ = try session.append(tokens, to: [sequence]) } catch {
                    outcomes.append("\(error.code), \(error.argument)")
                }
                guard try session.length(of: sequence) == 21 else { return ["another length"] }
            }
            let again = try session.append([[4]], to: [session.fork(sequence)]).elements
            try session.free(sequence)
            do throws(SparseKernelsError) { _ = try session.append([[1]], to: [sequence]) } catch {
                outcomes.append("\(error.code)")
            }
            return outcomes + [again == reference ? "the same" : "another"]
        }
        for own in outcomes {
            #expect(
                own == [
                    "invalid argument, tokens", "invalid argument, tokens", "capacity exceeded, pageCapacity",
                    "unknown sequence",
                    "the same",
                ])
        }
    }

    @Test("others own no pages of a session on several ranks")
    func pages() throws {
        let model = try TinyLanguageModel.load()
        let none = try Self.onRanks(2, model, Self.exact()) { (session, _) throws(SparseKernelsError) in session.pages == nil }
        #expect(none == [true, true])
    }
}

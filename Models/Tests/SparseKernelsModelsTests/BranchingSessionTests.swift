import Foundation
import ReasoningBranches
import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Branches of a language model")
struct BranchingSessionTests {
    private let prompt = LanguageSessionTests.tokens

    private static func branching(
        _ model: LanguageModel, pageSize: Int = 16, sequences: Int = 20, seed: UInt64 = 1, reuses: Bool = false,
        on pool: WorkerPool = .shared
    ) throws -> BranchingSession {
        var options = SessionOptions(keyFormat: .float32, valueFormat: .float32, tokenCapacity: 512)
        options.pageSize = pageSize
        options.sequenceCapacity = sequences
        return try BranchingSession(LanguageSession(model, options, on: pool), reusesPrefixes: reuses, seed: seed)
    }

    private let request = BranchRequest(sampling: Sampling(temperature: 0.8), maximumTokens: 12, endTokens: [3])

    @Test("what a branch draws does not depend on the batch, on cancelled branches or on threads")
    func batches() throws {
        let model = try TinyLanguageModel.load()
        var samples: [[BranchSample]] = []
        for (count, threads) in [(1, 1), (3, 2), (16, 7)] {
            let branching = try Self.branching(model, on: WorkerPool(threads: threads))
            let root = try branching.tree.start(prompt)
            let children = try branching.tree.spawn(Array(repeating: .fork(), count: count), from: root)
            if count > 3 { for child in children[3..<9] { try branching.tree.cancel(child) } }
            samples.append(try branching.decode(Array(children.prefix(3)), request))
            #expect(branching.tree.cache.sequences.count == 1 + max(0, count - 9))
        }
        #expect(samples[0][0].tokens == samples[1][0].tokens && samples[1].map(\.tokens) == samples[2].map(\.tokens))
        #expect(Set(samples[1].map(\.tokens)).count == 3)
    }

    @Test("a fork draws what a request of its own would, with the same numbers")
    func sameAsGenerator() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model)
        let root = try branching.tree.start(prompt)
        let children = try branching.tree.spawn(Array(repeating: .fork(), count: 2), from: root)
        let seeds = try children.map { try branching.tree.randomSeed(of: $0) }
        let samples = try branching.decode(children, request)
        for (seed, sample) in zip(seeds, samples) {
            var sampling = request.sampling
            sampling.seed = seed
            var sampler = try Sampler(sampling)
            var (tokens, logProbability, drawn) = (prompt, 0.0, [Int]())
            while drawn.count < request.maximumTokens {
                let logits = try model.logits(tokens).elements.suffix(48).map { $0 }
                let token = try sampler.next(logits.span)
                let all = logits.map(Double.init)
                logProbability += all[token] - logSumExp(all)
                if token == 3 { break }
                drawn.append(token)
                tokens.append(token)
            }
            #expect(sample.tokens == drawn)
            #expect(abs(sample.logProbability - logProbability) < 1e-3)
            #expect(sample.meanLogProbability <= 0 && sample.meanLogProbability >= sample.logProbability)
        }
    }

    @Test("after a join the parent has the logits of the text that it now has")
    func join() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model)
        let tree = branching.tree
        let root = try tree.start(prompt)
        _ = try branching.step()
        try tree.append([40, 41], to: root)
        let children = try tree.spawn([.prompt([1, 2, 4]), .fork(at: 10, appending: [5]), .prompt([6])], from: root)
        let samples = try branching.decode(children, request)
        #expect(try tree.outcomes(of: root).map(\.newTokens) == samples.map(\.tokens))
        try tree.join(root, at: 18) { $0.flatMap(\.newTokens) + [7] }
        let rows = try #require(try branching.step())
        let text = Array(prompt.prefix(18)) + samples.flatMap(\.tokens) + [7]
        #expect(try rows.branches == [root] && tree.tokens(of: root) == text)
        let expected = try model.logits(text).elements.suffix(48).map(Double.init)
        #expect(largestDifference(rows.logits.elements.map(Double.init), expected) < 1e-3)
        // The children's pages are free: 18 tokens and what was appended.
        #expect(tree.cache.usedPageCount == (text.count + 15) / 16)
    }

    @Test("the best of n is that of the highest score, and nothing but the remembered prompt stays")
    func bestOf() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model, reuses: true)
        var tokens = 0
        for score in BranchScore.allCases {
            let samples = try branching.bestOf(6, after: prompt, request, by: score) { event in
                if case .token = event { tokens += 1 }
                return true
            }
            #expect(samples.count == 6)
            #expect(zip(samples, samples.dropFirst()).allSatisfy { score($0) >= score($1) })
            #expect(branching.tree.cache.usedPageCount == 2 && branching.tree.branches.isEmpty)
        }
        #expect(tokens > 12)
        // The second call ran the last token of the prompt only, once for the root and once for each fork.
        #expect(branching.session.statistics.prefillTokens == prompt.count)
        #expect(branching.tree.prefixes?.matchLength(prompt) == prompt.count)
    }

    @Test("a beam as wide as the vocabulary finds the most probable texts; one of width 1 is greedy")
    func beams() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model, sequences: 60)
        let found = try branching.beamSearch(after: prompt, width: 48, maximumTokens: 2)
        var expected: [(tokens: [Int], score: Double)] = []
        let first = try model.logits(prompt).elements.suffix(48).map(Double.init)
        for a in 0..<48 {
            let second = try model.logits(prompt + [a]).elements.suffix(48).map(Double.init)
            for b in 0..<48 { expected.append(([a, b], first[a] - logSumExp(first) + second[b] - logSumExp(second))) }
        }
        expected.sort { $0.score > $1.score }
        #expect(found.count == 48)
        for (sample, expected) in zip(found, expected) { #expect(abs(sample.logProbability - expected.score) < 1e-3) }
        #expect(found[0].tokens == expected[0].tokens && found[0].end == .length)
        #expect(branching.tree.cache.usedPageCount == 0)

        let greedy = try branching.beamSearch(after: prompt, width: 1, maximumTokens: 9)[0]
        var tokens = prompt
        for _ in 0..<9 {
            let row = try model.logits(tokens).elements.suffix(48).map { $0 }
            tokens.append(row.indices.max { row[$0] < row[$1] }!)
        }
        #expect(greedy.tokens == Array(tokens.suffix(9)))
        // With every token an end token, hypotheses of one token remain.
        let ends = try branching.beamSearch(after: prompt, width: 3, maximumTokens: 5, endTokens: Set(0..<48))
        #expect(ends.map(\.tokens) == [[], [], []] && ends[0].logProbability >= ends[2].logProbability)
        #expect(branching.tree.cache.sequences.isEmpty)
    }

    @Test("budgets, events that want no more, and branches that are cancelled meanwhile end what they should")
    func ends() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model)
        let tree = branching.tree
        let root = try tree.start(prompt)
        let children = try tree.spawn(Array(repeating: .fork(), count: 3), from: root, budget: .init(tokens: 4))
        var long = request
        long.endTokens = []
        let samples = try branching.decode(children, long) { event throws(SparseKernelsError) in
            if case .token(let branch, _, _) = event, branch == children[0], try tree.state(of: children[1]) == .running {
                try tree.cancel(children[1])
            }
            return true
        }
        #expect(samples.map(\.end) == [.length, .cancelled, .length] && samples.map(\.tokens.count) == [4, 0, 4])
        let more = try tree.spawn([.fork(), .fork()], from: root)
        let stopped = try branching.decode(more, long) { event in
            if case .token = event { false } else { true }
        }
        #expect(stopped.map(\.end) == [.cancelled, .cancelled] && stopped[0].tokens.count == 1)
        #expect(tree.cache.sequences.count == 1)
    }

    @Test("text ends before a stop string")
    func stopStrings() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model)
        var long = request
        (long.endTokens, long.maximumTokens) = ([], 30)
        let free = try branching.bestOf(1, after: prompt, long, tokenizer: ByteTokenizer())[0]
        let stop = String(decoding: free.tokens[4..<6].map(UInt8.init), as: UTF8.self)
        long.stopStrings = [stop]
        let again = try Self.branching(model).bestOf(1, after: prompt, long, tokenizer: ByteTokenizer())[0]
        #expect(again.end == .stopString(stop) && free.text.hasPrefix(again.text) && again.tokens.count <= 6)
    }

    @Test("calls that cannot be run are errors, and leave nothing behind")
    func errors() throws {
        let model = try TinyLanguageModel.load()
        let branching = try Self.branching(model, sequences: 1)
        func expect(_ code: SparseKernelsError.Code, _ argument: String, _ body: () throws -> Void) {
            let error = #expect(throws: SparseKernelsError.self) { try body() }
            #expect(error?.code == code && error?.argument == argument, "\(String(describing: error))")
            #expect(branching.tree.branches.isEmpty && branching.tree.cache.usedPageCount == 0)
        }
        expect(.invalidArgument, "count") { _ = try branching.bestOf(0, after: prompt, request) }
        expect(.invalidArgument, "prompt") { _ = try branching.bestOf(1, after: [], request) }
        expect(.invalidArgument, "tokens") { _ = try branching.bestOf(1, after: [48], request) }
        expect(.invalidArgument, "temperature") {
            _ = try branching.bestOf(1, after: prompt, BranchRequest(sampling: Sampling(temperature: -1)))
        }
        expect(.invalidArgument, "maximumTokens") {
            _ = try branching.bestOf(1, after: prompt, BranchRequest(maximumTokens: -1))
        }
        expect(.invalidArgument, "width") { _ = try branching.beamSearch(after: prompt, width: 0, maximumTokens: 1) }
        expect(.invalidArgument, "lengthPenalty") {
            _ = try branching.beamSearch(after: prompt, width: 1, maximumTokens: 1, lengthPenalty: .nan)
        }
        expect(.capacityExceeded, "pageCapacity") { _ = try branching.bestOf(100, after: prompt, request) }
        expect(.capacityExceeded, "pageCapacity") {
            _ = try branching.beamSearch(after: prompt, width: 40, maximumTokens: 30)
        }
        #expect(try branching.bestOf(2, after: prompt, BranchRequest(maximumTokens: 0)).map(\.end) == [.length, .length])
        #expect(try branching.beamSearch(after: prompt, width: 2, maximumTokens: 0).map(\.tokens) == [[]])

        var options = SessionOptions()
        options.decoding = .lServe(tokens: 64)
        let session = try LanguageSession(model, options)
        #expect(session.pages == nil)
        let error = #expect(throws: SparseKernelsError.self) { try BranchingSession(session) }
        #expect(error?.argument == "session")
        #expect(throws: SparseKernelsError.self) { try session.append([[1]], toPaged: [branching.tree.cache.makeSequence()]) }
    }

    private func logSumExp(_ row: [Double]) -> Double {
        let largest = row.max()!
        return largest + log(row.reduce(0) { $0 + exp($1 - largest) })
    }
}

import SparseKernels
import SparseKernelsModels
import Testing

/// Predicts tokens from all tokens before them by a rule, and counts what is asked of it.
private final class RulePredictor: TokenPredicting {
    struct Failure: Error {}
    private var sequences: [Int: [Int]] = [:]
    private var next = 0
    private(set) var calls: [[[Int]]] = []
    var open: Int { sequences.count }
    /// The logits behind some tokens.
    let rule: ([Int]) -> [Float]
    var failsAtCall: Int?

    init(rule: @escaping ([Int]) -> [Float]) { self.rule = rule }

    /// The next byte of a text, by position.
    convenience init(saying text: [UInt8], after length: Int) {
        self.init { tokens in
            var logits = [Float](repeating: 0, count: 256)
            let position = tokens.count - length
            logits[position < text.count ? Int(text[position]) : 0] = 1
            return logits
        }
    }

    func makeSequence() -> Int {
        next += 1
        sequences[next] = []
        return next
    }

    func free(_ sequence: Int) throws(SparseKernelsError) {
        guard sequences.removeValue(forKey: sequence) != nil else {
            throw SparseKernelsError(.unknownSequence, "sequence", expected: "one", actual: "none")
        }
    }

    func predict(_ tokens: [[Int]], after sequences: [Int]) throws(SparseKernelsError) -> Tensor<Float> {
        calls.append(tokens)
        if calls.count == failsAtCall {
            throw SparseKernelsError(.capacityExceeded, "cache", expected: "room", actual: "none")
        }
        var logits: [Float] = []
        for (tokens, sequence) in zip(tokens, sequences) {
            self.sequences[sequence]! += tokens
            logits += rule(self.sequences[sequence]!)
        }
        return try Tensor([sequences.count, logits.count / max(1, sequences.count)], logits)
    }
}

@Suite("Generating text")
struct GeneratorTests {
    private let prompt = Array("say: ".utf8).map(Int.init)

    private func run(
        _ text: String, maximum: Int = 100, stops: [String] = []
    ) throws -> (result: GenerationResult, events: [GenerationEvent], predictor: RulePredictor) {
        let predictor = RulePredictor(saying: Array(text.utf8), after: prompt.count)
        var events: [GenerationEvent] = []
        let request = GenerationRequest(prompt: prompt, maximumTokens: maximum, stopStrings: stops)
        let result = try Generator(predictor, tokenizer: ByteTokenizer()).run(request) { event in
            events.append(event)
            return true
        }
        #expect(predictor.open == 0)
        return (result, events, predictor)
    }

    @Test("a text ends at an end token, at a stop string, or at its length")
    func ends() throws {
        let ended = try run("héllo")
        #expect(ended.result.text == "héllo" && ended.result.end == .endToken(0) && ended.result.tokens.count == 6)
        #expect(ended.predictor.calls.first == [prompt] && ended.predictor.calls.count == 7)
        let stopped = try run("one\n\ntwo", stops: ["\n\n", "xyz"])
        #expect(stopped.result.text == "one" && stopped.result.end == .stopString("\n\n") && stopped.result.tokens.count == 5)
        let cut = try run("endless", maximum: 3)
        #expect(cut.result.text == "end" && cut.result.end == .length && cut.predictor.calls.count == 3)
        let nothing = try run("x", maximum: 0)
        #expect(nothing.result.bytes.isEmpty && nothing.result.end == .length && nothing.predictor.calls.isEmpty)
        // An end within a character keeps its bytes.
        #expect(try run("é", maximum: 1).result.bytes == [0xc3])
    }

    @Test("the shown bytes are the text, and characters are never cut")
    func streaming() throws {
        let (result, events, _) = try run("a😀é\nb", stops: ["\nc"])
        var shown: [[UInt8]] = []
        for event in events {
            switch event {
            case .prompts: #expect(event == events.first)
            case .token(_, _, let bytes): shown.append(bytes)
            case .finished(let sequence, let end, let bytes):
                #expect(event == events.last && sequence == 0 && end == result.end)
                shown.append(bytes)
            }
        }
        #expect(shown.flatMap { $0 } == result.bytes)
        for bytes in shown { #expect(Array(String(decoding: bytes, as: UTF8.self).utf8) == bytes) }
    }

    @Test("end tokens may be left alone")
    func ignoringEnds() throws {
        let predictor = RulePredictor(saying: Array("a".utf8), after: 1)
        var request = GenerationRequest(prompt: [5], maximumTokens: 4)
        request.stopsAtEndTokens = false
        #expect(try Generator(predictor, tokenizer: ByteTokenizer()).run(request).tokens == [97, 0, 0, 0])
    }

    /// Logits that depend on the tokens before, with much to choose from.
    private static func rule(_ tokens: [Int]) -> [Float] {
        var generator = SplitMix64(seed: UInt64(tokens.suffix(3).reduce(7) { ($0 &* 31 &+ $1) & 0xffff }))
        return (0..<256).map { _ in generator.normal() * 2 }
    }

    @Test("a sequence of a batch is the one that it is alone, of any lengths and ends")
    func batches() throws {
        let requests = (0..<5).map { index in
            GenerationRequest(
                prompt: Array(repeating: 40 + index / 2, count: 1 + index),
                sampling: Sampling(temperature: 1, topP: 0.9, seed: 3),
                maximumTokens: 3 + 7 * index, stopStrings: ["a", "zz"], stream: UInt64(index))
        }
        let batch = try Generator(RulePredictor(rule: Self.rule), tokenizer: ByteTokenizer()).run(requests)
        for (request, result) in zip(requests, batch) {
            #expect(try Generator(RulePredictor(rule: Self.rule), tokenizer: ByteTokenizer()).run(request) == result)
        }
        #expect(Set(batch.map(\.tokens.first)).count > 1)
        #expect(try Generator(RulePredictor(rule: Self.rule), tokenizer: ByteTokenizer()).run([]).isEmpty)
    }

    @Test("the caller ends everything at any event, and sequences are freed")
    func cancellation() throws {
        for limit in 1...12 {
            let predictor = RulePredictor(rule: Self.rule)
            var seen = 0
            let requests = (0..<3).map { GenerationRequest(prompt: [$0 + 1], maximumTokens: 4 + $0) }
            let results = try Generator(predictor, tokenizer: ByteTokenizer()).run(requests) { event in
                if case .finished = event { return true }
                seen += 1
                return seen < limit
            }
            #expect(predictor.open == 0 && results.count == 3)
            #expect(results.contains { $0.end == .cancelled } && results.reduce(0) { $0 + $1.tokens.count } <= limit)
        }
    }

    @Test("after an error nothing is left in the session, and bad requests run nothing")
    func errors() throws {
        let predictor = RulePredictor(rule: Self.rule)
        predictor.failsAtCall = 3
        let request = GenerationRequest(prompt: [1], maximumTokens: 9)
        let generator = Generator(predictor, tokenizer: ByteTokenizer())
        #expect(throws: SparseKernelsError.self) { try generator.run([request, request]) }
        #expect(predictor.open == 0)
        let nan = RulePredictor { _ in [.nan] }
        #expect(throws: SparseKernelsError.self) { try Generator(nan, tokenizer: ByteTokenizer()).run(request) }
        #expect(nan.open == 0)
        let idle = RulePredictor(rule: Self.rule)
        for bad in [
            GenerationRequest(prompt: []), GenerationRequest(prompt: [1], maximumTokens: -1),
            GenerationRequest(prompt: [1], sampling: Sampling(topP: 2)),
        ] {
            #expect(throws: SparseKernelsError.self) { try Generator(idle, tokenizer: ByteTokenizer()).run([request, bad]) }
        }
        #expect(idle.calls.isEmpty && idle.open == 0)
    }
}

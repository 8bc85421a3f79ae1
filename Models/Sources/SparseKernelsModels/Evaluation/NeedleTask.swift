public import SparseKernels

/// Numbers that are hidden in a long text and asked for at its end: does a model find them?
///
/// Lines `// KEY red-1234 = 567890` are put at random places of a text. The text then ends with `// KEY red-1234 = `, and an answer
/// is right if the model's most probable continuation is exactly the six digits. Each haystack has `keys` lines, and all are
/// asked for: the haystack is run once, as a prompt, and the questions continue copies of its sequence, together.
public struct NeedleTask: Hashable, Sendable {
    /// Tokens of haystack, question and answer.
    public let context: Int
    /// Lines in each haystack, and questions.
    public let keys: Int
    public let trials: Int
    public let seed: UInt64

    static let words = ["red", "blue", "green", "amber", "ivory", "coral", "olive", "pearl", "onyx", "topaz", "jade", "ruby"]
    static let digits = 6

    /// - Throws: `.invalidArgument` for no keys or trials, or a context that is too short for them: 64 tokens per key and for the
    ///   question.
    public init(context: Int, keys: Int = 6, trials: Int = 40, seed: UInt64 = 1) throws(SparseKernelsError) {
        guard (1...1000).contains(keys), trials >= 1, context >= 64 * (keys + 1) else {
            throw SparseKernelsError(
                .invalidArgument, "needle task",
                expected: "1 to 1000 keys, a trial or more, and a context of 64 tokens per key and for the question",
                actual: "\(keys) keys, \(trials) trials, \(context) tokens")
        }
        self.context = context
        self.keys = keys
        self.trials = trials
        self.seed = seed
    }

    /// A haystack and its questions.
    public struct Trial: Hashable, Sendable {
        public let haystack: [Int]
        public let questions: [[Int]]
        /// The digits.
        public let answers: [[UInt8]]
        /// Where each line begins, as a part of the haystack.
        public let depths: [Double]
    }

    /// How many answers were right.
    public struct Score: Hashable, Sendable {
        public fileprivate(set) var correct = 0
        public fileprivate(set) var questions = 0
        public var accuracy: Double { questions == 0 ? 0 : Double(correct) / Double(questions) }

        public static func += (a: inout Self, b: Self) {
            a.correct += b.correct
            a.questions += b.questions
        }
    }

    /// A trial, by its number. The same for every model of one tokenizer.
    /// - Throws: `.invalidArgument` for a corpus that is shorter than the context.
    public func trial(
        _ number: Int, in corpus: TextCorpus, tokenizer: any Tokenizing
    ) throws(SparseKernelsError) -> Trial {
        // Numbers of trials are spread over states, so that no two trials share a part of a stream.
        var generator = SplitMix64(seed: seed &+ UInt64(bitPattern: Int64(number)) &* 0x9e37_79b9_7f4a_7c15)
        generator = SplitMix64(seed: generator.next())
        var (names, answers): ([String], [String]) = ([], [])
        while names.count < keys {
            let name = "\(Self.words.randomElement(using: &generator)!)-\(Int.random(in: 1000...9999, using: &generator))"
            guard !names.contains(name) else { continue }
            names.append(name)
            answers.append("\(Int.random(in: 100_000...999_999, using: &generator))")
        }
        let needles = zip(names, answers).map { tokenizer.encode("\n// KEY \($0) = \($1)\n") }
        let questions = names.map { tokenizer.encode("\n// KEY \($0) = ") }
        let reserved = questions.reduce(0) { max($0, $1.count) } + Self.digits + needles.reduce(0) { $0 + $1.count }
        let length = context - reserved
        guard length >= 1, corpus.tokens.count >= length else {
            throw SparseKernelsError(
                .invalidArgument, "texts", expected: "\(max(1, length)) tokens or more, for a context of \(context)",
                actual: "\(corpus.tokens.count)")
        }
        let start = Int.random(in: 0...corpus.tokens.count - length, using: &generator)
        let places = (0..<keys).map { _ in Int.random(in: 0...length, using: &generator) }.sorted()
        var (haystack, depths, position): ([Int], [Double], Int) = (tokenizer.startTokens, [], 0)
        for (place, needle) in zip(places, needles) {
            haystack += corpus.tokens[start + position..<start + place]
            depths.append(Double(haystack.count) / Double(context))
            haystack += needle
            position = place
        }
        haystack += corpus.tokens[start + position..<start + length]
        return Trial(haystack: haystack, questions: questions, answers: answers.map { Array($0.utf8) }, depths: depths)
    }

    /// Runs all trials.
    ///
    /// - Parameters:
    ///   - session: has room for `context` tokens, and `keys` + 1 sequences that share them.
    ///   - onTrial: called after each trial with the score so far. When it returns false, this is the result.
    /// - Throws: the errors of `trial` and of the session.
    public func callAsFunction(
        _ session: LanguageSession, in corpus: TextCorpus, tokenizer: any Tokenizing,
        onTrial: (_ number: Int, _ score: Score) throws(SparseKernelsError) -> Bool = { _, _ in true }
    ) throws(SparseKernelsError) -> Score {
        var score = Score()
        for number in 0..<trials {
            score += try run(try trial(number, in: corpus, tokenizer: tokenizer), session, tokenizer: tokenizer)
            guard try session.goesOn(onTrial(number, score)) else { break }
        }
        return score
    }

    /// Runs one trial.
    public func run(
        _ trial: Trial, _ session: LanguageSession, tokenizer: any Tokenizing
    ) throws(SparseKernelsError) -> Score {
        var sequences = [session.makeSequence()]
        defer { for sequence in sequences { try? session.free(sequence) } }
        _ = try session.append([trial.haystack], to: sequences)
        // The last question continues the haystack itself.
        for _ in trial.questions.dropLast() { sequences.append(try session.fork(sequences[0])) }
        var answers = [[UInt8]](repeating: [], count: trial.questions.count)
        var logits = try session.append(trial.questions, to: sequences)
        for step in 0..<Self.digits {
            var next: [Int] = []
            let vocabulary = logits.shape[1]
            for row in answers.indices {
                next.append(try Self.largest(logits.span.extracting(row * vocabulary..<(row + 1) * vocabulary)))
            }
            next = try session.valuesOfFirstRank(next)
            for (row, token) in next.enumerated() { answers[row] += tokenizer.bytes(of: token) }
            let isDone = zip(answers, trial.answers).allSatisfy { $0.count >= $1.count }
            if isDone || step == Self.digits - 1 { break }
            logits = try session.append(next.map { [$0] }, to: sequences)
        }
        var score = Score()
        score.questions = answers.count
        score.correct = zip(answers, trial.answers).count { $0.starts(with: $1) }
        return score
    }

    private static func largest(_ logits: Span<Float>) throws(SparseKernelsError) -> Int {
        var sampler = try Sampler(.greedy)
        return try sampler.next(logits)
    }
}

import FastDLLM
public import SparseKernels
public import SparseKernelsModels
public import Terminal

/// A row of `sparse-lm diffuse --table`: a way to decode, over questions or over continuations of a text.
public struct DiffusionRow: Codable, Hashable, Sendable {
    public let name: String
    /// "task" or "code".
    public let kind: String
    /// Positions of each answer.
    public let length: Int
    /// Answers.
    public let count: Int
    /// Answers that are exactly right; nil for continuations.
    public let exact: Int?
    /// The part of the tokens of continuations that are those of the first row; nil for questions.
    public let agreement: Double?
    public let forwardPasses: Int
    /// Positions that went through the model.
    public let queryRows: Int
    public let nearTies: Int
    public let seconds: Double

    public var tokens: Int { count * length }
    public var tokensPerSecond: Double { Double(tokens) / seconds }
    public var tokensPerForward: Double { Double(tokens) / Double(max(1, forwardPasses)) }

    /// The columns of tables for people.
    public static let table = TextTable([
        .init("Decoding", width: 24, alignment: .left), .init("Length", width: 6), .init("Right", "%", width: 6),
        .init("Same", "%", width: 6), .init("Passes", "", width: 7), .init("Tokens", "/pass", width: 6),
        .init("Rows", "/token", width: 7), .init("Tokens", "/s", width: 7), .init("Speed", "×", width: 6),
    ])

    /// - Parameter first: the row that this one is compared with.
    public func cells(first: DiffusionRow) -> [String] {
        [
            name, "\(length)", Format.percent(exact.map { Double($0) / Double(max(1, count)) }), Format.percent(agreement),
            Format.number(Double(forwardPasses) / Double(max(1, count))), Format.number(tokensPerForward),
            Format.number(Double(queryRows) / Double(max(1, tokens))), Format.number(tokensPerSecond),
            Format.number(tokensPerSecond / first.tokensPerSecond),
        ]
    }
}

/// Runs ways to decode with one session and adds up what they take.
public struct DiffusionMeasurer {
    private var session: DiffusionSession
    private let pool: WorkerPool

    public init(_ session: DiffusionSession, on pool: WorkerPool) { (self.session, self.pool) = (session, pool) }

    /// Answers questions.
    ///
    /// - Parameters:
    ///   - length: positions of an answer.
    ///   - onAnswer: called after each.
    public mutating func answer(
        _ questions: [DiffusionTask.Question], with decoding: DiffusionCase, length: Int,
        onAnswer: (_ right: Int, _ answered: Int) -> Void = { _, _ in }
    ) throws(SparseKernelsError) -> DiffusionRow {
        let decoder = try FastDLLMDecoder(decoding.configuration)
        var (right, sums) = (0, Sums())
        for (index, question) in questions.enumerated() {
            let result = try sums.time { () throws(SparseKernelsError) in
                try decoder.generate(question.tokens, length: length, with: &session, on: pool)
            }
            if question.isAnswered(by: result.tokens) { right += 1 }
            onAnswer(right, index + 1)
        }
        return sums.row(decoding.name, "task", length: length, count: questions.count, exact: right, agreement: nil)
    }

    /// Continues texts.
    ///
    /// - Parameters:
    ///   - expected: the continuations that these are compared with; nil compares nothing.
    ///   - onStep: called after each forward pass with the tokens that it committed.
    public mutating func continuations(
        of prompts: [[Int]], with decoding: DiffusionCase, length: Int, expected: [[Int]]?, onStep: (Int) -> Void = { _ in }
    ) throws(SparseKernelsError) -> (row: DiffusionRow, texts: [[Int]]) {
        let decoder = try FastDLLMDecoder(decoding.configuration)
        var (texts, sums): ([[Int]], Sums) = ([], Sums())
        for prompt in prompts {
            let result = try sums.time { () throws(SparseKernelsError) in
                try decoder.generate(prompt, length: length, with: &session, on: pool) { onStep($0.commits.count) }
            }
            texts.append(result.tokens)
        }
        let same = expected.map { expected in
            zip(texts, expected).reduce(0) { sum, pair in sum + zip(pair.0, pair.1).count { $0 == $1 } }
        }
        let total = prompts.count * length
        let row = sums.row(
            decoding.name, "code", length: length, count: prompts.count, exact: nil,
            agreement: same.map { Double($0) / Double(max(1, total)) })
        return (row, texts)
    }

    /// What several runs took.
    private struct Sums {
        var (passes, rows, nearTies, seconds) = (0, 0, 0, 0.0)

        mutating func time(
            _ run: () throws(SparseKernelsError) -> FastDLLMResult
        ) throws(SparseKernelsError) -> FastDLLMResult {
            let clock = ContinuousClock()
            let start = clock.now
            let result = try run()
            seconds += (clock.now - start) / .seconds(1)
            passes += result.forwardPasses
            rows += result.queryRows
            nearTies += result.nearTies
            return result
        }

        func row(
            _ name: String, _ kind: String, length: Int, count: Int, exact: Int?, agreement: Double?
        ) -> DiffusionRow {
            DiffusionRow(
                name: name, kind: kind, length: length, count: count, exact: exact, agreement: agreement, forwardPasses: passes,
                queryRows: rows, nearTies: nearTies, seconds: seconds)
        }
    }
}

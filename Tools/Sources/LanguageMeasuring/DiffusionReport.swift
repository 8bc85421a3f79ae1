public import FastDLLM
public import SparseKernelsModels

/// What `sparse-lm diffuse --json` prints.
public struct DiffusionReport: Codable, Hashable, Sendable {
    public struct Step: Codable, Hashable, Sendable {
        /// Positions that went through the model.
        public let rows: Int
        public let positions: [Int]
        public let tokens: [Int]
        public let confidences: [Double]
    }

    public let prompt: String
    public let text: String
    /// Of a question.
    public let answer: String?
    public let isRight: Bool?
    public let tokens: [Int]
    public let rule: String
    public let cache: String
    public let blockLength: Int
    public let forwardPasses: Int
    public let releasedForwardPasses: Int
    public let tokensPerForward: Double
    public let queryRows: Int
    public let projectedRows: Int
    public let nearTies: Int
    public let seconds: Double
    /// Seconds of attention, linear layers and the rest.
    public let attentionSeconds: Double
    public let linearSeconds: Double
    public let otherSeconds: Double
    public let steps: [Step]

    /// - Parameter text: of tokens.
    public init(
        prompt: String, question: DiffusionTask.Question?, _ result: FastDLLMResult, _ configuration: FastDLLMConfiguration,
        rule: String, seconds: Double, stages: StageSeconds, text: ([Int]) -> String
    ) {
        (self.prompt, self.rule, self.seconds) = (prompt, rule, seconds)
        (cache, blockLength) = (configuration.cache.rawValue, configuration.blockLength)
        (tokens, self.text) = (result.tokens, text(result.tokens))
        (answer, isRight) = (question?.answer, question?.isAnswered(by: result.tokens))
        (forwardPasses, releasedForwardPasses) = (result.forwardPasses, result.releasedForwardPasses)
        (queryRows, projectedRows, nearTies) = (result.queryRows, result.projectedRows, result.nearTies)
        tokensPerForward = result.tokensPerForward
        (attentionSeconds, linearSeconds, otherSeconds) = (stages.attention, stages.linear, stages.other)
        steps = result.steps.map { step in
            Step(
                rows: step.running.count, positions: step.commits.map(\.position), tokens: step.commits.map(\.token),
                confidences: step.commits.map(\.confidence))
        }
    }

    /// One line for people.
    public var summary: String {
        let right = isRight.map { $0 ? ", right" : ", not \(String(reflecting: answer ?? ""))" } ?? ""
        return "\(tokens.count) positions in \(forwardPasses) passes, \(Self.short(tokensPerForward)) each, "
            + "\(Self.short(Double(tokens.count) / seconds)) per second; \(queryRows) rows, \(projectedRows) projected"
            + (nearTies > 0 ? ", \(nearTies) near-ties" : "") + " (\(rule), \(cache))" + right
    }

    private static func short(_ value: Double) -> String { "\((value * 10).rounded() / 10)" }
}

/// A block while it fills, on one line.
public struct BlockPicture: Sendable {
    private let maskToken: Int
    private var tokens: [Int]

    /// - Parameter tokens: the sequence, with masks.
    public init(_ tokens: [Int], maskToken: Int) { (self.tokens, self.maskToken) = (tokens, maskToken) }

    /// Takes what a step committed, and draws its block: `·` for a mask, `⏎` for the end of a line, `∅` for a token that is no
    /// character.
    public mutating func draw(_ step: FastDLLMStep) -> String {
        for commit in step.commits { tokens[commit.position] = commit.token }
        return String(tokens[step.block].map { character($0) })
    }

    private func character(_ token: Int) -> Character {
        switch token {
        case maskToken: "·"
        case 0x0a: "⏎"
        case 0x20..<0x7f: Character(UnicodeScalar(UInt8(token)))
        default: "∅"
        }
    }
}

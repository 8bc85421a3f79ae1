public import ReasoningBranches
import SparseKernels

/// What branches draw, and what ends them.
public struct BranchRequest: Hashable, Sendable {
    /// How tokens are drawn. Its seed does not matter: each branch has its own.
    public var sampling: Sampling
    /// Tokens to draw for each branch, at most. 0 or more; a budget of the branch may be less.
    public var maximumTokens: Int
    /// Tokens that end a branch. They are not among what it has drawn.
    public var endTokens: Set<Int>
    /// Strings that end a branch, before which its text ends; they need a tokenizer.
    public var stopStrings: [String]

    public init(
        sampling: Sampling = Sampling(temperature: 1), maximumTokens: Int = 256, endTokens: Set<Int> = [],
        stopStrings: [String] = []
    ) {
        self.sampling = sampling
        self.maximumTokens = maximumTokens
        self.endTokens = endTokens
        self.stopStrings = stopStrings
    }

    func check() throws(SparseKernelsError) {
        try sampling.check()
        guard maximumTokens >= 0 else {
            throw SparseKernelsError(.invalidArgument, "maximumTokens", expected: "0 or more", actual: "\(maximumTokens)")
        }
    }
}

/// What a branch has drawn.
public struct BranchSample: Hashable, Sendable {
    /// The branch; nil for a hypothesis of a beam search, whose branch went on as another one.
    public let branch: BranchTree.Branch?
    /// The tokens that were drawn, without an end token.
    public let tokens: [Int]
    /// Their bytes, up to the stop string; empty without a tokenizer.
    public let bytes: [UInt8]
    /// The sum of the natural logs of the model's probabilities of the tokens, the end token included. Temperature and filters do
    /// not matter to it.
    public let logProbability: Double
    public let end: GenerationResult.End

    /// `logProbability` per token that was drawn, the end token included.
    public var meanLogProbability: Double {
        let isEndToken = if case .endToken = end { true } else { false }
        let count = tokens.count + (isEndToken ? 1 : 0)
        return count == 0 ? 0 : logProbability / Double(count)
    }

    /// The text. Bytes that are not UTF-8 are replacement characters.
    public var text: String { String(decoding: bytes, as: UTF8.self) }
}

/// How samples are ranked.
public enum BranchScore: String, Hashable, Sendable, CaseIterable {
    case logProbability
    case meanLogProbability

    public func callAsFunction(_ sample: BranchSample) -> Double {
        switch self {
        case .logProbability: sample.logProbability
        case .meanLogProbability: sample.meanLogProbability
        }
    }
}

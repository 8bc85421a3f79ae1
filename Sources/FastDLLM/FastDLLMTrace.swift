/// One step of decoding: a forward pass, and the positions that it commits.
public struct FastDLLMStep: Hashable, Sendable {
    /// A position that a step filled.
    public struct Commit: Hashable, Sendable {
        /// In the whole sequence.
        public let position: Int
        public let token: Int
        /// The probability of the token, without noise; within 10⁻⁵ unless the decision needed more.
        public let confidence: Double
    }

    /// The number of the pass, from 0 over the whole run.
    public let forward: Int
    /// The positions of the current block.
    public let block: Range<Int>
    /// The positions that went through the model.
    public let running: Range<Int>
    /// Rows that went through the output projection.
    public let projectedRows: Int
    /// In the order of the rule. The entropy rule may commit none.
    public let commits: [Commit]
    /// How far the nearest other choice of positions was, in units of what the rule looks at; infinite where there was none.
    public let positionMargin: Double
    /// How far the nearest other choice of a token was, over the committed positions, in units of logits.
    public let tokenMargin: Double
}

/// A sequence that was filled, and how.
public struct FastDLLMResult: Hashable, Sendable {
    /// The filled part.
    public let tokens: [Int]
    /// All of it, with the prompt.
    public let sequence: [Int]
    /// The forward passes in their order, with what each of them committed.
    public let steps: [FastDLLMStep]
    /// Passes that the released code makes: with a cache it makes one more when the first pass over a block fills it, because
    /// it looks for masked positions afterwards.
    public let releasedForwardPasses: Int
    /// Steps with a margin below `FastDLLMConfiguration.nearTie`, which rounding may decide otherwise.
    public let nearTies: Int

    public var forwardPasses: Int { steps.count }
    /// Positions that went through the model, over all passes.
    public var queryRows: Int { steps.reduce(0) { $0 + $1.running.count } }
    /// Rows that went through the output projection, over all passes.
    public var projectedRows: Int { steps.reduce(0) { $0 + $1.projectedRows } }
    /// Committed positions per forward pass; 0 without any.
    public var tokensPerForward: Double {
        steps.isEmpty ? 0 : Double(steps.reduce(0) { $0 + $1.commits.count }) / Double(steps.count)
    }
    /// The smallest margins of positions and tokens over all steps.
    public var smallestMargin: (positions: Double, tokens: Double) {
        (steps.map(\.positionMargin).min() ?? .infinity, steps.map(\.tokenMargin).min() ?? .infinity)
    }
}

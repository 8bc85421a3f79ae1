public import SparseKernels

/// How the next token is drawn from the logits of a model.
///
/// The steps have this order, that of the library whose generation most people know: repetition penalty, temperature, top-k, top-p,
/// min-p. Each of the last three works on the probabilities that the one before has left, normalised again.
public struct Sampling: Hashable, Sendable {
    /// Divides the logits. 0 takes the token of the largest logit, the lowest id of several, and ignores the other filters.
    public var temperature = 0.0
    /// Keeps so many tokens, the most probable ones; nil keeps all.
    public var topK: Int?
    /// Keeps the fewest tokens whose probability together is this or more, from above 0 to 1, which keeps all.
    public var topP = 1.0
    /// Keeps the tokens that are at least this part as probable as the most probable one, from 0, which keeps all, to 1.
    public var minP = 0.0
    /// Divides positive logits of tokens that the sequence has, and multiplies negative ones. 1 changes nothing.
    /// - Source: Keskar, McCann, Varshney, Xiong and Socher, "CTRL" (2019), section 4.1.
    public var repetitionPenalty = 1.0
    /// The seed of the numbers that are drawn.
    public var seed: UInt64 = 0

    /// The most probable token at each step.
    public static let greedy = Sampling()

    public init(
        temperature: Double = 0, topK: Int? = nil, topP: Double = 1, minP: Double = 0, repetitionPenalty: Double = 1,
        seed: UInt64 = 0
    ) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
        self.seed = seed
    }

    /// Throws `.invalidArgument` for a value outside of its range, naming it.
    public func check() throws(SparseKernelsError) {
        func expect(_ condition: Bool, _ name: String, _ expected: String, _ value: some Any) throws(SparseKernelsError) {
            if !condition { throw SparseKernelsError(.invalidArgument, name, expected: expected, actual: "\(value)") }
        }
        try expect(temperature >= 0 && temperature.isFinite, "temperature", "0 or more", temperature)
        try expect(topK ?? 1 >= 1, "topK", "1 or more", topK ?? 0)
        try expect(topP > 0 && topP <= 1, "topP", "above 0, at most 1", topP)
        try expect(minP >= 0 && minP <= 1, "minP", "0 to 1", minP)
        try expect(
            repetitionPenalty > 0 && repetitionPenalty.isFinite, "repetitionPenalty", "above 0", repetitionPenalty)
    }
}

/// How `FastDLLMDecoder` fills masked positions. The defaults are those of the paper's tables.
public struct FastDLLMConfiguration: Hashable, Sendable {
    /// What is kept between the passes over a block. All of it is made anew at the start of each block, by a pass over the
    /// whole sequence that is a step of decoding, too.
    public enum Cache: String, Hashable, Sendable, CaseIterable {
        /// Nothing: every pass runs the whole sequence.
        case none
        /// Keys and values before the block. A pass runs the block and all that follows.
        case prefix
        /// Keys and values of all positions. A pass runs the block, whose keys and values are replaced; those after it stay as
        /// they were at the block's start.
        case dual
    }

    /// Positions of a block, a divisor of the length. Blocks are filled from left to right.
    public var blockLength: Int
    /// The positions that a step commits.
    public var rule: CommitRule
    public var cache: Cache
    /// Every so many passes of a block, the first one included, the whole sequence runs and the cache is made anew; nil means
    /// at the start of a block only. LLaDA-V has 2 to 32 with blocks of 96.
    public var refreshEvery: Int?
    /// Whether row i predicts position i + 1, as in Dream. With a cache the first position of a block is then committed by the
    /// pass over the whole sequence, whatever its confidence, because passes over the block have no row for it.
    public var shiftsLogits: Bool
    /// 0 takes the most probable token; otherwise it is drawn by the Gumbel rule. Confidences are not affected.
    public var temperature: Double
    /// The source of random numbers, for the temperature and for `CommitRule.random`. Numbers belong to a pass and a position.
    public var seed: UInt64
    /// A step whose decision on positions or tokens is nearer than this to another one is counted as a near-tie.
    public var nearTie: Double

    public init(
        blockLength: Int = 32, rule: CommitRule = .threshold(0.9), cache: Cache = .prefix, refreshEvery: Int? = nil,
        shiftsLogits: Bool = false, temperature: Double = 0, seed: UInt64 = 0, nearTie: Double = 1e-5
    ) {
        self.blockLength = blockLength
        self.rule = rule
        self.cache = cache
        self.refreshEvery = refreshEvery
        self.shiftsLogits = shiftsLogits
        self.temperature = temperature
        self.seed = seed
        self.nearTie = nearTie
    }
}

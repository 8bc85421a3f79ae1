/// How the ranks of a sequence are arranged.
public enum SequenceParallelMethod: Hashable, Sendable, CustomStringConvertible {
    /// A ring over pieces of the sequence in order: with a causal mask the last rank has the most work.
    case ring
    /// A ring in zigzag order, with even work.
    case zigzag
    /// One group, which exchanges heads for tokens. There are at most as many ranks as query heads.
    case ulysses
    /// Groups of so many ranks in a ring in zigzag order.
    case grid(ulysses: Int)

    public var description: String {
        switch self {
        case .ring: "ring"
        case .zigzag: "zigzag ring"
        case .ulysses: "Ulysses"
        case .grid(let ulysses): "2D, groups of \(ulysses)"
        }
    }

    /// The ranks of a group.
    public func ulysses(ranks: Int) -> Int {
        switch self {
        case .ring, .zigzag: 1
        case .ulysses: ranks
        case .grid(let ulysses): ulysses
        }
    }

    /// The tokens of every rank.
    /// - Throws: `.invalidArgument` when the groups do not divide the ranks; the errors of ``TokenShards``.
    public func shards(length: Int, ranks: Int) throws(SparseKernelsError) -> TokenShards {
        let ulysses = ulysses(ranks: ranks)
        guard ulysses >= 1, ranks % ulysses == 0 else {
            throw SparseKernelsError(
                .invalidArgument, "ulysses", expected: "a divisor of \(ranks) ranks", actual: "\(ulysses)")
        }
        if self == .ring { return try .contiguous(length: length, ranks: ranks) }
        return try .zigzag(length: length, ulysses: ulysses, ring: ranks / ulysses)
    }
}

/// The memory of a rank that fills in a prompt, in bytes.
public struct RankMemory: Hashable, Sendable {
    /// All weights: every rank has them.
    public var weights = 0
    /// Keys and values of its own tokens, of all layers.
    public var cache = 0
    /// Rows between layers of its own tokens: the stream, and what a layer makes of it.
    public var activations = 0
    /// Queries, keys, values and outputs of its own tokens.
    public var operands = 0
    /// Queries of its heads after the exchange, what is packed for it, and outputs that come back.
    public var exchange = 0
    /// The keys and values that are attended, those that come meanwhile, those that the next group still takes, and the outputs of its
    /// heads.
    public var ring = 0

    public init() {}

    public var total: Int { weights + cache + activations + operands + exchange + ring }
    /// Without the weights: what grows with the context.
    public var ofContext: Int { total - weights }
}

/// Time and memory of a prompt that ranks fill in together.
///
/// ```swift
/// let prefill = try PrefillSimulation(
///     .eightBillion, length: 1 << 20, ranks: 64, .grid(ulysses: 8), on: .sixteenCoreHosts)
/// print(prefill.seconds, prefill.efficiency, prefill.memory.total)
/// ```
///
/// Attention of a layer is an ``AttentionSimulation``. Linear layers take their multiply-adds for the rank with the most tokens;
/// everything else of a layer is small beside both and is left out.
public struct PrefillSimulation: Hashable, Sendable {
    public let ranks: Int
    public let ulysses: Int
    /// Attention of a layer.
    public let attention: AttentionSimulation
    /// Linear layers of a layer of the model.
    public let linearSeconds: Double
    /// All layers.
    public let seconds: Double
    /// All layers on one rank that has everything.
    public let secondsOfOneRank: Double
    /// Of the rank with the most tokens.
    public let memory: RankMemory

    public var speedup: Double { secondsOfOneRank / seconds }
    /// Speed-up over ranks.
    public var efficiency: Double { speedup / Double(ranks) }
    public var ring: Int { ranks / ulysses }

    /// The longest sequence.
    public static let largestLength = 1 << 32

    /// - Parameters:
    ///   - model: the sizes.
    ///   - length: tokens of the prompt.
    ///   - ranks: the number of ranks.
    ///   - method: how they are arranged.
    ///   - machine: the constants.
    /// - Throws: `.invalidArgument` for a length outside of 1...2³², for ranks that the method or the heads do not allow, and the errors of
    ///   ``SimulatedModel/validate()`` and ``RankMachine/validate()``.
    public init(
        _ model: SimulatedModel, length: Int, ranks: Int, _ method: SequenceParallelMethod, on machine: RankMachine
    ) throws(SparseKernelsError) {
        try model.validate()
        guard length >= 1 && length <= Self.largestLength else {
            throw SparseKernelsError(.invalidArgument, "length", expected: "of 1 to 2³²", actual: "\(length)")
        }
        let shards = try method.shards(length: length, ranks: ranks)
        let costs = model.costs
        self.ranks = ranks
        ulysses = method.ulysses(ranks: ranks)
        attention = try AttentionSimulation(costs, shards: shards, ulysses: ulysses, on: machine)
        let perToken = Double(model.layerWeights) / machine.linearRate
        linearSeconds = Double(shards.largestCount) * perToken
        seconds = Double(model.layers) * (attention.seconds + linearSeconds)
        let one = try AttentionSimulation(
            costs, shards: .contiguous(length: length, ranks: 1), ulysses: 1, on: machine)
        secondsOfOneRank = Double(model.layers) * (one.seconds + Double(length) * perToken)
        memory = RankMemory(model, costs, shards, ulysses: ulysses)
    }

    /// The fastest arrangement of the ranks, among all groups that divide them and that the heads allow; of equally fast ones that with
    /// the smallest groups.
    /// - Throws: the errors of ``init(_:length:ranks:_:on:)``.
    public static func fastest(
        _ model: SimulatedModel, length: Int, ranks: Int, on machine: RankMachine
    ) throws(SparseKernelsError) -> Self {
        var best = try Self(model, length: length, ranks: ranks, .zigzag, on: machine)
        guard ranks > 1 else { return best }
        for ulysses in 2...ranks where ranks % ulysses == 0 && model.costs.allows(ulysses: ulysses) {
            let other = try Self(model, length: length, ranks: ranks, .grid(ulysses: ulysses), on: machine)
            if other.seconds < best.seconds { best = other }
        }
        return best
    }
}

extension RankMemory {
    fileprivate init(_ model: SimulatedModel, _ costs: SequenceParallelCosts, _ shards: TokenShards, ulysses: Int) {
        let own = shards.largestCount
        let groups = stride(from: 0, to: shards.ranks, by: ulysses).map { first in
            (first..<first + ulysses).reduce(0) { $0 + shards.count(of: $1) }
        }
        let group = groups.max() ?? 0
        let heads = costs.localQueryHeads(ulysses: ulysses)
        let queryRow = heads * costs.headDim * costs.queryElementBytes
        let keyRow = costs.ringBytesPerToken(ulysses: ulysses)
        weights = model.weightBytes
        cache = own * model.cacheBytesPerToken
        activations = own * model.hidden * 2 * 4
        operands = own * (costs.operandBytesPerToken(ulysses: 1) + costs.outputBytesPerToken(ulysses: 1))
        if ulysses > 1 {
            // Queries that came, those that are packed, packed keys and values of all different heads, and outputs that come home.
            let parts = min(ulysses, costs.kvHeads)
            exchange = group * queryRow + own * (ulysses * queryRow + parts * keyRow)
            exchange += own * ulysses * heads * (costs.valueDim * costs.outputElementBytes + 4)
        }
        if shards.ranks > 1 {
            let blocks = min(3, shards.ranks / ulysses)
            ring = group * (blocks * keyRow + heads * (costs.valueDim + 1) * 4)
        }
    }
}

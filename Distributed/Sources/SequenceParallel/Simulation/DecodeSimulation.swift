/// Time and memory of a new token whose context lies in caches of several ranks.
///
/// Every rank runs the layers of the token, attends to its own pages, and sends output and LSE to all others, which merge them. So
/// ranks add up the memory bandwidth that the cache needs, and not that of the weights.
///
/// ```swift
/// let step = try DecodeSimulation(.eightBillion, length: 1 << 20, ranks: 64, on: .sixteenCoreHosts)
/// print(step.seconds, step.attentionSpeedup, step.cacheBytes)
/// ```
public struct DecodeSimulation: Hashable, Sendable {
    public let ranks: Int
    /// Attention of a layer to the pages of the rank with the most: reading or computing, whichever takes longer.
    public let readingSeconds: Double
    /// The exchange of a layer's outputs, with merging.
    public let gatheringSeconds: Double
    /// The weights of a layer.
    public let linearSeconds: Double
    /// All layers, without the logits.
    public let seconds: Double
    /// Attention of all layers on one rank, alone on its host.
    public let attentionSecondsOfOneRank: Double
    /// Bytes of the cache of the rank with the most tokens.
    public let cacheBytes: Int
    /// Bytes that a rank sends per token of the sequence, in all layers.
    public let sentBytes: Int

    /// Attention of all layers.
    public let attentionSeconds: Double
    /// How much faster attention is than on one rank.
    public var attentionSpeedup: Double { attentionSecondsOfOneRank / attentionSeconds }
    public var efficiency: Double { attentionSpeedup / Double(ranks) }

    /// - Parameters:
    ///   - model: the sizes.
    ///   - length: tokens in the cache.
    ///   - ranks: the number of ranks.
    ///   - machine: the constants.
    /// - Throws: `.invalidArgument` for a length outside of 1...2³², no rank or more than 2¹⁶; the errors of ``SimulatedModel/validate()``
    ///   and ``RankMachine/validate()``.
    public init(
        _ model: SimulatedModel, length: Int, ranks: Int, on machine: RankMachine
    ) throws(SparseKernelsError) {
        try model.validate()
        try machine.validate()
        guard length >= 1 && length <= PrefillSimulation.largestLength else {
            throw SparseKernelsError(.invalidArgument, "length", expected: "of 1 to 2³²", actual: "\(length)")
        }
        guard ranks >= 1 && ranks <= TokenShards.largestRankCount else {
            throw SparseKernelsError(
                .invalidArgument, "ranks", expected: "of 1 to \(TokenShards.largestRankCount)", actual: "\(ranks)")
        }
        self.ranks = ranks
        let own = (length + ranks - 1) / ranks
        let layers = Double(model.layers)
        let row = Double(model.cacheBytesPerToken / model.layers)
        let ofHost = min(ranks, machine.ranksPerHost)
        let rate = machine.memoryRate(ranksOfHost: ofHost)
        readingSeconds = Double(own) * row / min(rate, machine.cacheRate)
        let message = model.costs.decodeBytes(ranks: 2)
        var gathering = 0.0
        if ranks > 1 {
            // Messages double at every round; those of other hosts share the link.
            let rounds = Self.rounds(ofHost), allRounds = Self.rounds(ranks)
            gathering = Double(rounds) * machine.within.latency + Double(allRounds - rounds) * machine.between.latency
            gathering += Double((ofHost - 1) * message) / machine.within.bytesPerSecond
            gathering += Double((ranks - ofHost) * message * ofHost) / machine.between.bytesPerSecond
            // Merged: read once.
            gathering += Double(ranks * message) / rate
        }
        gatheringSeconds = gathering
        linearSeconds = Double(model.layerWeights * model.weightBits / 8) / rate
        attentionSeconds = layers * (readingSeconds + gathering)
        seconds = attentionSeconds + layers * linearSeconds
        attentionSecondsOfOneRank = layers * Double(length) * row / min(machine.memoryRate, machine.cacheRate)
        cacheBytes = own * model.cacheBytesPerToken
        sentBytes = model.layers * model.costs.decodeBytes(ranks: ranks)
    }

    /// ⌈log₂ n⌉.
    private static func rounds(_ count: Int) -> Int { count <= 1 ? 0 : Int.bitWidth - (count - 1).leadingZeroBitCount }
}

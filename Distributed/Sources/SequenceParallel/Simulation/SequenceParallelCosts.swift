/// What attention of one layer over a grid of ranks computes and sends, in exact numbers.
///
/// The grid is Ulysses degree U × ring degree R, and rank u + r·U has place u in ring group r. A rank sends, in one call,
///
/// * its query rows of the heads that other ranks of its group compute, and their key and value rows; a key/value head is sent to every
///   rank that computes one of its query heads;
/// * keys and values of the R − 1 ring groups whose rows pass through it, of its own heads;
/// * the output rows of its heads, to the ranks of its group that the rows belong to.
///
/// ``SequenceParallelAttention`` reports these numbers beside those that it counted, and ``PrefillSimulation`` derives times from them.
///
/// ```swift
/// let costs = SequenceParallelCosts(queryHeads: 32, kvHeads: 8, headDim: 128)
/// let sent = costs.sentBytes(by: 0, tokens: [1024, 1024, 1024, 1024], ulysses: 2)
/// print(sent.exchange, sent.ring, sent.total)
/// ```
///
/// Sources: LongVILA, arXiv 2408.10188, section 3.3; DeepSpeed Ulysses, arXiv 2309.14509; Ring Attention, arXiv 2310.01889.
public struct SequenceParallelCosts: Hashable, Sendable {
    public var queryHeads: Int
    public var kvHeads: Int
    public var headDim: Int
    public var valueDim: Int
    /// Bytes of an element of the queries, of keys and values, and of the output.
    public var queryElementBytes: Int
    public var keyElementBytes: Int
    public var outputElementBytes: Int
    /// Whether the LSE of each row, 4 bytes, goes back with the output.
    public var sendsLogSumExp: Bool

    /// - Parameters:
    ///   - queryHeads: query heads of the layer.
    ///   - kvHeads: key/value heads of the layer.
    ///   - headDim: channels of queries and keys.
    ///   - valueDim: channels of values; nil means `headDim`.
    ///   - queryElementBytes: bytes of an element of the queries.
    ///   - keyElementBytes: bytes of an element of keys and values.
    ///   - outputElementBytes: bytes of an element of the output.
    ///   - sendsLogSumExp: whether the caller asks for the LSE.
    public init(
        queryHeads: Int, kvHeads: Int, headDim: Int, valueDim: Int? = nil, queryElementBytes: Int = 4, keyElementBytes: Int = 4,
        outputElementBytes: Int = 4, sendsLogSumExp: Bool = false
    ) {
        (self.queryHeads, self.kvHeads, self.headDim) = (queryHeads, kvHeads, headDim)
        self.valueDim = valueDim ?? headDim
        self.queryElementBytes = queryElementBytes
        self.keyElementBytes = keyElementBytes
        self.outputElementBytes = outputElementBytes
        self.sendsLogSumExp = sendsLogSumExp
    }

    /// Bytes that a rank sends in one call.
    public struct SentBytes: Hashable, Sendable {
        /// Queries, keys and values to the other ranks of the group.
        public var operands = 0
        /// Keys and values to the next ring group, over all steps.
        public var ring = 0
        /// Output, and LSE, back to the ranks of the group.
        public var output = 0

        public init(operands: Int = 0, ring: Int = 0, output: Int = 0) {
            (self.operands, self.ring, self.output) = (operands, ring, output)
        }

        /// Both all-to-all exchanges.
        public var exchange: Int { operands + output }
        public var total: Int { operands + ring + output }
    }

    /// Whether heads can be spread over so many ranks: the query heads divide, and so do the key/value heads, or they are copied
    /// a whole number of times.
    public func allows(ulysses: Int) -> Bool {
        ulysses >= 1 && queryHeads % ulysses == 0 && (kvHeads % ulysses == 0 || ulysses % kvHeads == 0)
    }

    /// Query heads that a rank computes.
    public func localQueryHeads(ulysses: Int) -> Int { queryHeads / ulysses }

    /// Key/value heads that a rank has after the exchange; at least one, which it then shares with others.
    public func localKVHeads(ulysses: Int) -> Int { max(1, kvHeads / ulysses) }

    /// Bytes of the keys and values of a token that a rank passes around the ring.
    public func ringBytesPerToken(ulysses: Int) -> Int {
        localKVHeads(ulysses: ulysses) * (headDim + valueDim) * keyElementBytes
    }

    /// Bytes that a rank sends to one other rank of its group per own token: the queries, keys and values of that rank's heads.
    public func operandBytesPerToken(ulysses: Int) -> Int {
        localQueryHeads(ulysses: ulysses) * headDim * queryElementBytes + ringBytesPerToken(ulysses: ulysses)
    }

    /// Bytes of the output of a token that a rank sends back.
    public func outputBytesPerToken(ulysses: Int) -> Int {
        localQueryHeads(ulysses: ulysses) * (valueDim * outputElementBytes + (sendsLogSumExp ? 4 : 0))
    }

    /// The bytes that a rank sends in one call of attention.
    ///
    /// - Parameters:
    ///   - rank: the rank, u + r·U.
    ///   - tokens: the tokens of every rank, which may differ.
    ///   - ulysses: the ranks of a group, which divides the number of ranks and which the heads allow.
    /// - Complexity: O(ranks).
    public func sentBytes(by rank: Int, tokens: [Int], ulysses: Int) -> SentBytes {
        precondition(
            ulysses >= 1 && tokens.count % ulysses == 0 && tokens.indices.contains(rank),
            "rank \(rank) of \(tokens.count), in groups of \(ulysses)")
        let group = rank / ulysses
        var (ofGroup, ofOthers) = (0, 0)
        for peer in group * ulysses..<(group + 1) * ulysses { ofGroup += tokens[peer] }
        // What passes through: the rows of all groups but the next one, which has them itself.
        let next = (group + 1) % (tokens.count / ulysses)
        for peer in tokens.indices where peer / ulysses != next { ofOthers += tokens[peer] }
        return SentBytes(
            operands: tokens[rank] * (ulysses - 1) * operandBytesPerToken(ulysses: ulysses),
            ring: ofOthers * ringBytesPerToken(ulysses: ulysses),
            output: (ofGroup - tokens[rank]) * outputBytesPerToken(ulysses: ulysses))
    }

    /// The bytes that a rank sends in one step of sharded decoding: output and LSE of its part of the keys, to every other rank.
    public func decodeBytes(ranks: Int, sequences: Int = 1) -> Int {
        (ranks - 1) * sequences * queryHeads * (valueDim + 1) * 4
    }
}

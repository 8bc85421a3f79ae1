/// Keys and values of sequences whose pages live on several ranks: contexts that one machine cannot hold, or cannot read fast
/// enough.
///
/// Every rank has a ``PagedKVCache`` of its own and stores the tokens that it owns. Which rank owns which tokens is known on
/// all of them. ``ShardedPagedAttention`` attends the tokens where they are, and only outputs travel.
///
/// ```swift
/// let cache = try ShardedKVCache(KVCacheConfiguration(kvHeads: 8, headDim: 128, pageCapacity: 1024), on: ranks)
/// let sequence = cache.makeSequence()
/// let shards = try TokenShards.zigzag(length: 4096, ulysses: 1, ring: ranks.count, alignment: 64)
/// try cache.append(key: keys, value: values, to: sequence, shards: shards)    // a prompt: own rows
/// try cache.append(key: key, value: value, toEach: [sequence])                // a step: the same row on every rank
/// ```
///
/// **Owners.** A prompt may be cut in any way. New tokens continue the page of the last token, on its rank; a new page goes to
/// the rank with the fewest tokens of the sequence, of these to the one with the fewest tokens of all sequences, and then to
/// the lowest. So pages go round, and ranks that were behind catch up. Where tokens are cut at multiples of the page size,
/// pages of the ranks are pages of the sequence.
///
/// **Ranks.** Every rank makes the same calls in the same order. What a call could fail for on one rank only, such as too few
/// pages, is settled between the ranks before any of them writes: then all throw the same error, which names the rank, and
/// nothing changes. Appending a step sends a message when a page is begun, and otherwise none.
///
/// **Threads.** As ``PagedKVCache``; and a rank's cache belongs to the thread of its communicator.
///
/// - Source: LongVILA (arXiv 2408.10188) shards prompts; decoding over shards follows from merging states by their LSE, as in
///   FlashDecoding and in Ye et al., FlashInfer (arXiv 2501.01005).
public final class ShardedKVCache {
    /// The name of a sequence, the same on all ranks. A name is never used twice.
    public struct SequenceID: Hashable, Sendable, Codable {
        public let number: Int
    }

    /// The configuration of the pool of every rank: its `pageCapacity` is that of one rank.
    public let configuration: KVCacheConfiguration
    public let communicator: any Communicator
    /// The tokens of this rank, for reading. It must not be written but through this class.
    public let local: PagedKVCache

    /// A sequence.
    struct Entry {
        /// Its name in the local cache.
        let name: PagedKVCache.SequenceID
        /// Who owns the tokens of the longest layer.
        var tokens: ShardedTokens
        /// Tokens in each layer, of all ranks.
        var lengths: [Int]
        /// Tokens whose owners have pages for them that no other sequence shares.
        var claimed = 0..<0
    }

    var entries: [Int: Entry] = [:]
    /// Tokens that each rank owns, of all sequences.
    var totals: [Int]
    let agreement: RankAgreement
    private var nextNumber = 0

    /// This rank and the number of ranks.
    var rank: Int { communicator.rank }
    var ranks: Int { communicator.count }

    /// An empty cache. Every rank calls it.
    ///
    /// - Parameters:
    ///   - configuration: the heads, widths and formats, and the pages of each rank.
    ///   - communicator: the ranks that share the cache.
    ///   - instructionSet: the level of the kernels; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.communication` when ranks have different configurations; the errors of ``PagedKVCache``, on every rank.
    public init(
        _ configuration: KVCacheConfiguration, on communicator: any Communicator, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        self.configuration = configuration
        self.communicator = communicator
        agreement = try RankAgreement(communicator)
        totals = Array(repeating: 0, count: communicator.count)
        if communicator.count > 1 { try communicator.agree(on: "\(configuration)", "configuration") }
        var cache: PagedKVCache?
        let failure = catching { () throws(SparseKernelsError) in
            cache = try PagedKVCache(configuration, instructionSet: instructionSet)
        }
        try agreement.settle(failure, CallFingerprint("cache", 0), "ShardedKVCache")
        local = cache!
    }

    // MARK: - Looking at sequences

    /// All sequences, in the order in which they were made.
    public var sequences: [SequenceID] { entries.keys.sorted().map { SequenceID(number: $0) } }

    /// The number of tokens that a sequence has in a layer, on all ranks together.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a layer that the cache does not have.
    public func length(of sequence: SequenceID, layer: Int = 0) throws(SparseKernelsError) -> Int {
        let entry = try entry(of: sequence)
        try requireLayer(layer)
        return entry.lengths[layer]
    }

    /// The tokens of a sequence that a rank owns, of its longest layer. Row i of the local cache is the i-th of them.
    ///
    /// - Parameters:
    ///   - sequence: the sequence.
    ///   - rank: the owner; nil means this rank.
    /// - Returns: ascending ranges.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a rank that there is not.
    public func tokens(of sequence: SequenceID, ownedBy rank: Int? = nil) throws(SparseKernelsError) -> [Range<Int>] {
        let (entry, rank) = (try entry(of: sequence), rank ?? self.rank)
        guard rank >= 0, rank < ranks else {
            throw SparseKernelsError(.invalidArgument, "rank", expected: "from 0 to \(ranks - 1)", actual: "\(rank)")
        }
        return entry.tokens.runs[rank].map(\.tokens)
    }

    /// The rank that owns a token.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a token that the longest layer does not have.
    public func owner(of token: Int, in sequence: SequenceID) throws(SparseKernelsError) -> Int {
        let tokens = try entry(of: sequence).tokens
        guard token >= 0, token < tokens.length else {
            throw SparseKernelsError(
                .invalidArgument, "token", expected: "within the \(tokens.length) tokens of the sequence", actual: "\(token)")
        }
        return tokens.owner(of: token)
    }

    /// The name of a sequence in the cache of this rank.
    /// - Throws: `.unknownSequence`.
    public func localName(of sequence: SequenceID) throws(SparseKernelsError) -> PagedKVCache.SequenceID {
        try entry(of: sequence).name
    }

    // MARK: - Shared

    func entry(of sequence: SequenceID) throws(SparseKernelsError) -> Entry {
        guard let entry = entries[sequence.number] else {
            throw SparseKernelsError(
                .unknownSequence, "sequence", expected: "one of the \(entries.count) of this cache",
                actual: "number \(sequence.number)")
        }
        return entry
    }

    func requireLayer(_ layer: Int) throws(SparseKernelsError) {
        guard layer >= 0, layer < configuration.layers else {
            throw SparseKernelsError(
                .invalidArgument, "layer", expected: "from 0 to \(configuration.layers - 1)", actual: "\(layer)")
        }
    }

    /// Adds a sequence that the local cache has already.
    func add(_ entry: Entry) -> SequenceID {
        defer { nextNumber += 1 }
        entries[nextNumber] = entry
        count(entry.tokens, times: 1)
        return SequenceID(number: nextNumber)
    }

    /// Adds the tokens of a sequence to the totals, or takes them away.
    func count(_ tokens: ShardedTokens, times sign: Int) {
        for rank in 0..<ranks { totals[rank] += sign * tokens.count(of: rank) }
    }
}

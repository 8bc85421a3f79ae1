public import SparseKernels

/// Attention of one layer after LServe (Yang et al., MLSys 2025, arXiv 2502.14866), with two kinds of key/value heads.
///
/// *Streaming* heads attend to the first and the last tokens, and their cache frees the pages between. *Retrieval* heads keep
/// every token: they attend to all of them in prefill, and to the pages that `PageSelector` selects in decoding. Each kind has
/// its own cache. DuoAttention's gates tell the kinds apart: `DuoAttentionGates.heads(sparsity:)`.
///
/// ```swift
/// let layer = try LServeLayer(queryHeads: 32, headDim: 128, isRetrieval: heads[0], tokenCapacity: 131_072)
/// let sequence = try layer.makeSequence()
/// let prompt = try layer.prefill(query: query.view(), key: key.view(), value: value.view(), sequence: sequence)
/// let next = try layer.decode(query: q.view(), key: k.view(), value: v.view(), sequences: [sequence])
/// ```
///
/// Keys have rotary positions applied. Heads have the model's order in operands and results.
///
/// - Not `Sendable`: it must not be called from two threads at once. Results are bitwise the same for every number of threads.
/// - Source: `omniserve/modeling/models/llama_w8a8_unpad.py` and its kernels.
/// - Complexity: prefill as `BlockSparseAttention`. A decoding step reads `tokenBudget` tokens per retrieval head, the metadata
///   of all its logical pages every `selectionInterval` steps, and decodeSinkTokens + decodeLocalTokens per streaming head.
public final class LServeLayer {
    /// A sequence of a layer. Numbers are never reused, so that a freed sequence is recognised.
    public struct SequenceID: Hashable, Sendable {
        let number: Int
    }

    /// The location of a sequence's tokens.
    struct Entry {
        var retrieval: PagedKVCache.SequenceID?
        var streaming: PagedKVCache.SequenceID?
        var length = 0
        /// Tokens that streaming heads gave back, in whole pages.
        var hidden = 0..<0
    }

    public let configuration: LServeConfiguration
    public let queryHeads: Int
    public let headDim: Int
    public let valueDim: Int
    /// Whether each key/value head is a retrieval head.
    public let isRetrieval: [Bool]
    public let sequenceCapacity: Int
    /// The cache of the retrieval heads in ascending order; nil without any. For inspection: the layer does not notice changes.
    public let retrievalCache: PagedKVCache?
    /// The cache of the streaming heads in ascending order; nil when there are none.
    public let streamingCache: PagedKVCache?

    let retrievalHeads: HeadGroup
    let streamingHeads: HeadGroup
    let retrievalAttention: PagedAttention?
    let streamingAttention: PagedAttention?
    let modifiers: ScoreModifiers
    let instructionSet: InstructionSet
    var selection: ReusableSelection?
    var entries: [SequenceID: Entry] = [:]
    private var nextNumber = 0

    /// The heads of one kind.
    struct HeadGroup {
        /// Key/value heads in ascending order.
        let kv: [Int]
        let query: [Int]

        init(_ isMember: [Bool], queryHeadsPerKVHead group: Int) {
            kv = isMember.indices.filter { isMember[$0] }
            query = kv.flatMap { Array($0 * group..<($0 + 1) * group) }
        }
    }

    /// - Parameters:
    ///   - queryHeads: a multiple of the number of key/value heads.
    ///   - headDim: channels of queries and keys.
    ///   - valueDim: channels of values; nil means `headDim`.
    ///   - heads: whether each key/value head is a retrieval head, such as a layer of `DuoAttentionHeads`.
    ///   - configuration: pages, budget and windows.
    ///   - tokenCapacity: tokens of all sequences together in retrieval heads, at least 1; rounded up to whole pages, plus one
    ///     page per sequence for a partly filled page.
    ///   - sequenceCapacity: largest number of sequences at the same time, at least 1.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for no heads, or query heads that are not a multiple; `.invalidArgument` for a number out of
    ///   its domain; otherwise as `KVCacheConfiguration`, `PagedAttention` and `PageSelector`.
    public init(
        queryHeads: Int, headDim: Int, valueDim: Int? = nil, isRetrieval heads: some Sequence<Bool>,
        configuration: LServeConfiguration = LServeConfiguration(), tokenCapacity: Int, sequenceCapacity: Int = 1,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        let isRetrieval = Array(heads)
        try require(!isRetrieval.isEmpty, .invalidShape, "isRetrieval", expected: "one value per KV head", actual: "none")
        try require(
            queryHeads >= 1 && queryHeads % isRetrieval.count == 0, .invalidShape, "queryHeads",
            expected: "a positive multiple of the \(isRetrieval.count) KV heads", actual: "\(queryHeads)")
        for (name, value) in [("tokenCapacity", tokenCapacity), ("sequenceCapacity", sequenceCapacity)] {
            try require(
                value >= 1 && value <= 1 << 30, .invalidArgument, name, expected: "1 to 2³⁰", actual: "\(value)")
        }
        try configuration.validate()
        self.configuration = configuration
        self.queryHeads = queryHeads
        self.headDim = headDim
        self.valueDim = valueDim ?? headDim
        self.isRetrieval = isRetrieval
        self.sequenceCapacity = sequenceCapacity
        self.instructionSet = try InstructionSet.resolve(instructionSet)
        modifiers = ScoreModifiers(softmaxScale: configuration.softmaxScale)
        let group = queryHeads / isRetrieval.count
        retrievalHeads = HeadGroup(isRetrieval, queryHeadsPerKVHead: group)
        streamingHeads = HeadGroup(isRetrieval.map { !$0 }, queryHeadsPerKVHead: group)

        func cache(
            _ heads: HeadGroup, pages: Int, metadata: PageMetadata?
        ) throws(SparseKernelsError) -> PagedKVCache? {
            if heads.kv.isEmpty { return nil }
            return try PagedKVCache(
                KVCacheConfiguration(
                    kvHeads: heads.kv.count, headDim: headDim, valueDim: valueDim, pageSize: configuration.pageSize,
                    pageCapacity: pages, format: configuration.format, quantization: configuration.quantization,
                    metadata: metadata), instructionSet: instructionSet)
        }
        let metadata = PageMetadata(
            .minMax, logicalPageSize: configuration.logicalPageSize, format: configuration.metadataFormat)
        let tokenPages = LServeConfiguration.pages(tokenCapacity, configuration.pageSize)
        let retrieval = try cache(retrievalHeads, pages: tokenPages + sequenceCapacity, metadata: metadata)
        // One sequence above the capacity and one slice, which an `append` needs in case it is undone.
        let perSequence = min(configuration.streamingPagesPerSequence, tokenPages + 1)
        let held = perSequence * (sequenceCapacity + 1)
        let streaming = try cache(streamingHeads, pages: held + Self.slicePages, metadata: nil)
        retrievalCache = retrieval
        streamingCache = streaming
        if let retrieval {
            retrievalAttention = try PagedAttention(
                queryHeads: retrievalHeads.query.count, configuration: retrieval.configuration, modifiers: modifiers,
                instructionSet: instructionSet)
            selection = try ReusableSelection(
                PageSelector(
                    queryHeads: retrievalHeads.query.count, configuration: retrieval.configuration,
                    tokenBudget: configuration.tokenBudget, sharing: configuration.sharing),
                interval: configuration.selectionInterval)
        } else {
            retrievalAttention = nil
        }
        if let streaming {
            streamingAttention = try PagedAttention(
                queryHeads: streamingHeads.query.count, configuration: streaming.configuration,
                mask: .streaming(sink: configuration.decodeSinkTokens, window: configuration.decodeLocalTokens),
                modifiers: modifiers, instructionSet: instructionSet)
        } else {
            streamingAttention = nil
        }
    }

    // MARK: - Sequences

    /// Makes a sequence without tokens.
    /// - Throws: `.capacityExceeded` when there are `sequenceCapacity` sequences.
    public func makeSequence() throws(SparseKernelsError) -> SequenceID {
        try requireRoom()
        return add(Entry(retrieval: retrievalCache?.makeSequence(), streaming: streamingCache?.makeSequence()))
    }

    /// Makes a sequence with the tokens of another one. Both share each page until one writes to it.
    /// - Throws: `.unknownSequence`; `.capacityExceeded` when there are `sequenceCapacity` sequences.
    public func fork(_ sequence: SequenceID) throws(SparseKernelsError) -> SequenceID {
        let parent = try entry(of: sequence)
        try requireRoom()
        var child = Entry(length: parent.length, hidden: parent.hidden)
        if let cache = retrievalCache, let source = parent.retrieval { child.retrieval = try cache.fork(source) }
        if let cache = streamingCache, let source = parent.streaming { child.streaming = try cache.fork(source) }
        return add(child)
    }

    /// Frees a sequence and its pages.
    /// - Throws: `.unknownSequence`.
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) {
        let entry = try entry(of: sequence)
        if let cache = retrievalCache, let name = entry.retrieval {
            selection?.forget(name)
            try cache.free(name)
        }
        if let cache = streamingCache, let name = entry.streaming { try cache.free(name) }
        entries[sequence] = nil
    }

    /// Number of tokens of a sequence, including those that streaming heads no longer have.
    /// - Throws: `.unknownSequence`.
    public func length(of sequence: SequenceID) throws(SparseKernelsError) -> Int { try entry(of: sequence).length }

    func entry(of sequence: SequenceID) throws(SparseKernelsError) -> Entry {
        guard let entry = entries[sequence] else {
            throw SparseKernelsError(
                .unknownSequence, "sequence", expected: "a sequence of this layer", actual: "number \(sequence.number)")
        }
        return entry
    }

    private func add(_ entry: Entry) -> SequenceID {
        defer { nextNumber += 1 }
        let name = SequenceID(number: nextNumber)
        entries[name] = entry
        return name
    }

    private func requireRoom() throws(SparseKernelsError) {
        try require(
            entries.count < sequenceCapacity, .capacityExceeded, "sequenceCapacity",
            expected: "more than the \(entries.count) sequences that there are", actual: "\(sequenceCapacity)")
    }

    // MARK: - Memory

    /// Bytes of the page pools of both caches.
    public var byteCount: Int { (retrievalCache?.byteCount ?? 0) + (streamingCache?.byteCount ?? 0) }
    /// Bytes of the pages that belong to sequences, in both caches.
    public var usedByteCount: Int { (retrievalCache?.usedByteCount ?? 0) + (streamingCache?.usedByteCount ?? 0) }
    /// Number of selections so far: one per sequence and step without reuse.
    public var selectionCount: Int { selection?.selectionCount ?? 0 }
}

public import Communication
public import SparseKernels

/// The cache of a model, and the sequences in it: runs tokens after those that the sequences hold.
///
/// ```swift
/// let session = try LanguageSession(model, SessionOptions(tokenCapacity: 8192))
/// let sequence = session.makeSequence()
/// var logits = try session.append([prompt], to: [sequence])              // [1, vocabularySize]
/// logits = try session.append([[next]], to: [sequence])
/// ```
///
/// Prompts go through the model in chunks of up to `options.chunk` tokens, which see the tokens that the cache has. How they
/// attend, and how steps of one token do, is what the options say.
///
/// In a model with recurrent layers a sequence has, beside its pages, a state in each of these layers, of a size that does not depend
/// on its length. `sequenceCapacity` of the options says how many sequences can have tokens then. Such states cannot go back, so
/// that sequences are forked as they are and cut to nothing only, or to a checkpoint.
///
/// With a `communicator` of several ranks, each has a session of the same model and calls it in the same way. Tokens of prompts, and
/// keys and values of all tokens, are spread over the ranks; every rank gets all logits.
///
/// - A session has one writer. Memory for passes is allocated when it is made.
/// - Results are bitwise equal for every number of threads.
/// - With exact attention, chunks and batches change results by rounding only: a product of a single row sums in another order
///   than one of several rows. Sparse methods choose by chunk, and may choose otherwise in other chunks.
public final class LanguageSession {
    public let model: LanguageModel
    public let options: SessionOptions
    /// The threads that run.
    public let pool: WorkerPool

    /// The name of a sequence.
    public struct SequenceID: Hashable, Sendable {
        let number: SessionSequence
    }

    /// The positions whose logits are computed.
    public enum LogitRows: Hashable, Sendable {
        /// That of the last token of each sequence.
        case last
        /// Those of all tokens, one sequence after the other.
        case all
    }

    let cache: any SessionCache
    /// The other ranks; nil for a session alone.
    let ranks: SessionRanks?
    private var workspace: LanguageWorkspace
    /// The most tokens of a pass, of all ranks together.
    private let passRows: Int
    /// Beyond so many, a pass of several ranks is no more efficient, and messages of queries and outputs take memory on all of them.
    private static let mostShardedRows = 8192
    /// What was done since the last reset.
    public private(set) var statistics = SessionStatistics()

    /// - Parameters:
    ///   - model: the model.
    ///   - options: the formats of the cache, and the methods of attention.
    ///   - communicator: the ranks that run the model together, each in a session of its own; nil, or a communicator of one rank, for
    ///     a session alone. The call is collective then, and so are `append`, `fork`, `truncate` and `free`.
    ///   - pool: the threads to use in all calls.
    /// - Throws: `.invalidArgument` for options out of their domain or that the model cannot have, such as causal decoding of a
    ///   bidirectional model, and for those that several ranks cannot have; `.communication`, naming `model` or `options`, when ranks
    ///   have others; the errors of the cache.
    public init(
        _ model: LanguageModel, _ options: SessionOptions = SessionOptions(), communicator: (any Communicator)? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try options.check(model.configuration)
        self.model = model
        self.options = options
        self.pool = pool
        let rows = min(options.chunk, options.tokenCapacity)
        if let communicator, communicator.count > 1 {
            let ranks = try SessionRanks(communicator, model, options)
            try options.checkSharded(model)
            let cache = try ShardedSessionCache(model, options, ranks)
            (self.ranks, self.cache) = (ranks, cache)
            passRows = min(options.tokenCapacity, max(rows, min(rows * ranks.count, Self.mostShardedRows)))
            workspace = try LanguageWorkspace(
                model.configuration, rows: (passRows + ranks.count - 1) / ranks.count, hasCATS: model.cats != nil)
            return
        }
        (ranks, passRows) = (nil, rows)
        if case .lServe(let tokens, let interval) = options.decoding, let heads = options.retrievalHeads {
            cache = try LServeSessionCache(model, options, retrievalHeads: heads, tokens: tokens, interval: interval)
        } else {
            cache = try PagedSessionCache(model, options)
        }
        workspace = try LanguageWorkspace(model.configuration, rows: rows, hasCATS: model.cats != nil)
        try SparsePrefill.check(model, options)
    }

    // MARK: - Sequences

    /// Makes a sequence without tokens. It takes memory when it gets some.
    public func makeSequence() -> SequenceID { SequenceID(number: cache.makeSequence()) }

    /// Makes a sequence with the tokens of another one, or the first of them. Both share memory until one of them grows.
    /// - Throws: `.unknownSequence`; `.capacityExceeded` when a page or a slot of recurrent states is missing; `.invalidArgument`
    ///   for a length beyond that of the sequence, and for any other than its own with LServe's layers, or than its own, 0 and checkpoints with
    ///   recurrent ones.
    public func fork(_ sequence: SequenceID, at length: Int? = nil) throws(SparseKernelsError) -> SequenceID {
        SequenceID(number: try cache.fork(sequence.number, at: length))
    }

    /// Takes tokens from the end of a sequence.
    /// - Throws: `.unknownSequence`; `.invalidArgument` for a length beyond that of the sequence, and for any other than its own
    ///   with LServe's layers, whose streaming heads have dropped tokens, or than its own, 0 and
    ///   checkpoints with recurrent ones.
    public func truncate(_ sequence: SequenceID, to length: Int) throws(SparseKernelsError) {
        try cache.truncate(sequence.number, to: length)
    }

    /// Copies the recurrent states of a sequence, so that it can be forked at and cut to its present length later. Sequences whose memory
    /// is in pages alone can go back to any length, and need none.
    ///
    /// - Throws: `.unknownSequence`; `.capacityExceeded` without a free slot; `.invalidArgument` with LServe's layers, which cannot go
    ///   back.
    /// - Complexity: O(bytes of the states).
    public func checkpoint(_ sequence: SequenceID) throws(SparseKernelsError) { try cache.checkpoint(sequence.number) }

    /// Frees the copy that `checkpoint` made at a length.
    /// - Throws: `.unknownSequence`; `.notFound` for a length without a checkpoint, where they are needed.
    public func removeCheckpoint(of sequence: SequenceID, at length: Int) throws(SparseKernelsError) {
        try cache.removeCheckpoint(of: sequence.number, at: length)
    }

    /// Ends a sequence and frees its memory.
    /// - Throws: `.unknownSequence`.
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) { try cache.free(sequence.number) }

    /// The number of tokens of a sequence.
    /// - Throws: `.unknownSequence`.
    public func length(of sequence: SequenceID) throws(SparseKernelsError) -> Int { try cache.length(of: sequence.number) }

    // MARK: - Run

    /// Runs tokens after those that the sequences hold.
    ///
    /// Sequences that get one token are a step of decoding and go through the model together. Others are prompts: each is cut
    /// into chunks from its start on, and last chunks of several go together where they fit.
    ///
    /// - Parameters:
    ///   - tokens: those of each sequence, any number of them.
    ///   - sequences: different sequences of this session.
    ///   - logits: the positions whose logits are computed.
    /// - Returns: `[rows, vocabularySize]`: with `.last` a row per sequence that got a token, with `.all` a row per token, in the
    ///   order of the arguments.
    /// - Throws: `.invalidShape` for other numbers of sequences, `.invalidArgument` for a sequence that is named twice or a token
    ///   outside the vocabulary, `.unknownSequence`, `.capacityExceeded`, and `.invalidArgument` for keys or values that the
    ///   cache's format cannot hold. The sequences are unchanged then; with LServe's layers they are only fit to be freed when
    ///   the last two occur, and with recurrent ones, or to be cut to nothing, when the last one occurs. On several ranks, these are
    ///   thrown on all of them; `.communication` when other ranks run other tokens, died or failed.
    /// - Complexity: memory for the result, and hiddenSize numbers for each of its rows.
    public func append(
        _ tokens: [[Int]], to sequences: [SequenceID], logits: LogitRows = .last
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try ranks?.agree(tokens, sequences.map(\.number), logits)
        let lengths = try check(tokens, sequences)
        try cache.prepare(tokens.map(\.count), for: sequences.map(\.number))
        do throws(SparseKernelsError) {
            return try run(tokens, sequences.map(\.number), lengths, logits)
        } catch {
            ranks?.report(error)
            for (sequence, length) in zip(sequences, lengths) {
                let isUnfinished = cache.states?.unfinished.contains(sequence.number) ?? false
                let present = try cache.length(of: sequence.number)
                if isUnfinished || present != length {
                    try? cache.truncate(sequence.number, to: length)
                }
            }
            throw error
        }
    }

    /// - Returns: the lengths of the sequences.
    private func check(_ tokens: [[Int]], _ sequences: [SequenceID]) throws(SparseKernelsError) -> [Int] {
        guard tokens.count == sequences.count else {
            throw SparseKernelsError(
                .invalidShape, "sequences", expected: "one per list of tokens (\(tokens.count))", actual: "\(sequences.count)")
        }
        guard Set(sequences).count == sequences.count else {
            throw SparseKernelsError(
                .invalidArgument, "sequences", expected: "different sequences", actual: "one of them twice")
        }
        var lengths: [Int] = []
        for (tokens, sequence) in zip(tokens, sequences) {
            try model.check(tokens)
            lengths.append(try cache.length(of: sequence.number))
        }
        return lengths
    }

    private func run(
        _ tokens: [[Int]], _ sequences: [SessionSequence], _ lengths: [Int], _ rows: LogitRows
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let c = model.configuration
        // The row of the result where those of each sequence begin.
        var firstRows: [Int] = []
        var outputs = 0
        for list in tokens {
            firstRows.append(outputs)
            outputs += rows == .all ? list.count : min(1, list.count)
        }
        var finished = try Tensor<Float>(zeros: [outputs, c.hiddenSize])
        var owners = [Int?](repeating: nil, count: ranks == nil ? 0 : outputs)
        var stopwatch = Stopwatch()
        let passes = SessionPass.passes(lengths: tokens.map(\.count), rows: passRows)
        for pass in passes {
            let segments = pass.pieces.map { piece in
                PassSegment(
                    sequence: sequences[piece.list], before: lengths[piece.list] + piece.range.lowerBound,
                    count: piece.range.count, isLast: piece.range.upperBound == tokens[piece.list].count)
            }
            try cache.begin(segments, isDecoding: pass.isDecoding)
            var part = PassRows(rows, rank: ranks?.rank ?? 0)
            for (piece, (segment, shards)) in zip(pass.pieces, zip(segments, cache.shards(of: segments))) {
                part.add(tokens[piece.list], piece.range, segment, firstRow: firstRows[piece.list], shards, in: &owners)
            }
            try reserve(rows: part.tokens.ids.count)
            stopwatch.lap(\.other)
            try model.run(
                part.tokens, needed: rows == .all ? .all : .rows(part.needed), attention: cache,
                workspace: &workspace, stopwatch: &stopwatch, on: pool)
            try cache.end()
            copy(workspace.normalized, into: &finished, at: part.targets)
            stopwatch.lap(\.other)
            take(stopwatch, pass, tokens: segments.reduce(0) { $0 + $1.count })
            stopwatch = Stopwatch()
        }
        try ranks?.complete(&finished, owners: owners)
        var logits = try Tensor<Float>(zeros: [outputs, c.vocabularySize])
        stopwatch.lap(\.other)
        if outputs > 0 { try model.project(finished, rows: outputs, into: &logits, on: pool) }
        stopwatch.lap(\.linear)
        if let last = passes.last { take(stopwatch, last, tokens: 0) }
        statistics.peakByteCount = max(
            statistics.peakByteCount, model.byteCount + byteCount + 4 * outputs * (c.hiddenSize + c.vocabularySize))
        return logits
    }

    /// Makes room for a pass. A share may be larger than `chunk` where shards are whole pages.
    private func reserve(rows: Int) throws(SparseKernelsError) {
        if rows <= workspace.rows { return }
        workspace = try LanguageWorkspace(model.configuration, rows: rows, hasCATS: model.cats != nil)
    }

    /// Copies the first rows to the given ones.
    private func copy(_ rows: Tensor<Float>, into target: inout Tensor<Float>, at targets: [Int]) {
        let width = target.shape[1]
        let source = rows.span
        var elements = target.mutableSpan
        for (row, target) in targets.enumerated() {
            for i in 0..<width { elements[target * width + i] = source[row * width + i] }
        }
    }

    // MARK: - Statistics

    private func take(_ stopwatch: Stopwatch, _ pass: SessionPass, tokens: Int) {
        if pass.isDecoding {
            statistics.decoding += stopwatch.seconds
            statistics.decodedTokens += tokens
            statistics.computedChannels += workspace.channels.computed
            statistics.possibleChannels += workspace.channels.all
            statistics.steps += tokens > 0 ? 1 : 0
        } else {
            statistics.prefill += stopwatch.seconds
            statistics.prefillTokens += tokens
        }
        let counts = cache.counts
        statistics.attendedPairs += counts.attendedPairs
        statistics.reachablePairs += counts.reachablePairs
        statistics.readBytes += counts.readBytes
        statistics.denseBytes += counts.denseBytes
        cache.counts = AttentionCounts()
        workspace.channels = ChannelCounts()
    }

    /// Begins new statistics.
    public func resetStatistics() { statistics = SessionStatistics() }

    /// Bytes that the session uses now: the pages of its sequences and the memory of passes. The model is not among them.
    public var byteCount: Int { cache.usedByteCount + workspace.byteCount }
}

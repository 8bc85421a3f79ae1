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
/// A session has one writer. Its memory is allocated when it is made and used by all passes.
public final class LanguageSession {
    public let model: LanguageModel
    public let options: SessionOptions
    /// The threads that run.
    public let pool: WorkerPool

    /// The name of a sequence.
    public struct SequenceID: Hashable, Sendable {
        let number: Int
    }

    /// The positions whose logits are computed.
    public enum LogitRows: Hashable, Sendable {
        /// That of the last token of each sequence.
        case last
        /// Those of all tokens, one sequence after the other.
        case all
    }

    private let attention: CachedAttention
    private var workspace: LanguageWorkspace
    private var sequences: [SequenceID: PagedKVCache.SequenceID] = [:]
    private var nextNumber = 0
    /// What was done since the last reset.
    public private(set) var statistics = SessionStatistics()

    /// - Throws: `.invalidArgument` for options out of their domain, and the errors of the cache.
    public init(
        _ model: LanguageModel, _ options: SessionOptions = SessionOptions(), on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        for (name, value) in [
            ("tokenCapacity", options.tokenCapacity), ("sequenceCapacity", options.sequenceCapacity), ("chunk", options.chunk),
        ] where value < 1 || value > 1 << 30 {
            throw SparseKernelsError(.invalidArgument, name, expected: "1 to 2³⁰", actual: "\(value)")
        }
        self.model = model
        self.options = options
        self.pool = pool
        attention = try CachedAttention(model, options)
        workspace = try LanguageWorkspace(model.configuration, rows: min(options.chunk, options.tokenCapacity))
    }

    // MARK: - Sequences

    /// Makes a sequence without tokens.
    public func makeSequence() -> SequenceID { add(attention.cache.makeSequence()) }

    /// Makes a sequence with the tokens of another one. Both share memory until one of them grows.
    /// - Throws: `.unknownSequence`, and `.capacityExceeded` when a page is missing.
    public func fork(_ sequence: SequenceID) throws(SparseKernelsError) -> SequenceID {
        add(try attention.cache.fork(try name(of: sequence)))
    }

    /// Takes tokens from the end of a sequence.
    /// - Throws: `.unknownSequence`, and `.invalidArgument` for a length beyond that of the sequence.
    public func truncate(_ sequence: SequenceID, to length: Int) throws(SparseKernelsError) {
        try attention.cache.truncate(try name(of: sequence), to: length)
    }

    /// Ends a sequence and frees its memory.
    /// - Throws: `.unknownSequence`.
    public func free(_ sequence: SequenceID) throws(SparseKernelsError) {
        try attention.cache.free(try name(of: sequence))
        sequences[sequence] = nil
    }

    /// The number of tokens of a sequence.
    /// - Throws: `.unknownSequence`.
    public func length(of sequence: SequenceID) throws(SparseKernelsError) -> Int {
        try attention.cache.length(of: try name(of: sequence))
    }

    private func add(_ sequence: PagedKVCache.SequenceID) -> SequenceID {
        defer { nextNumber += 1 }
        let name = SequenceID(number: nextNumber)
        sequences[name] = sequence
        return name
    }

    private func name(of sequence: SequenceID) throws(SparseKernelsError) -> PagedKVCache.SequenceID {
        guard let name = sequences[sequence] else {
            throw SparseKernelsError(
                .unknownSequence, "sequence", expected: "a sequence of this session", actual: "number \(sequence.number)")
        }
        return name
    }

    // MARK: - Run

    /// Runs tokens after those that the sequences hold.
    ///
    /// Sequences that get one token each are a step of decoding and go through the model together. Others are prompts: they are
    /// cut into chunks, and chunks of several short ones go together.
    ///
    /// - Parameters:
    ///   - tokens: those of each sequence, any number of them.
    ///   - sequences: different sequences of this session.
    ///   - logits: the positions whose logits are computed.
    /// - Returns: `[rows, vocabularySize]`: with `.last` a row per sequence that got a token, with `.all` a row per token, in the
    ///   order of the arguments.
    /// - Throws: `.invalidShape` for other numbers of sequences, `.invalidArgument` for a sequence that is named twice or a token
    ///   outside the vocabulary, `.unknownSequence`, `.capacityExceeded`. The sequences are unchanged then.
    public func append(
        _ tokens: [[Int]], to sequences: [SequenceID], logits: LogitRows = .last
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let names = try check(tokens, sequences)
        var lengths: [Int] = []
        for name in names { lengths.append(try attention.cache.length(of: name)) }
        do throws(SparseKernelsError) {
            return try run(tokens, names, lengths, logits)
        } catch {
            for (name, length) in zip(names, lengths) { try attention.cache.truncate(name, to: length) }
            throw error
        }
    }

    private func check(
        _ tokens: [[Int]], _ sequences: [SequenceID]
    ) throws(SparseKernelsError) -> [PagedKVCache.SequenceID] {
        guard tokens.count == sequences.count else {
            throw SparseKernelsError(
                .invalidShape, "sequences", expected: "one per list of tokens (\(tokens.count))", actual: "\(sequences.count)")
        }
        guard Set(sequences).count == sequences.count else {
            throw SparseKernelsError(
                .invalidArgument, "sequences", expected: "different sequences", actual: "one of them twice")
        }
        var names: [PagedKVCache.SequenceID] = []
        for (tokens, sequence) in zip(tokens, sequences) {
            try model.check(tokens)
            names.append(try name(of: sequence))
        }
        return names
    }

    private func run(
        _ tokens: [[Int]], _ names: [PagedKVCache.SequenceID], _ lengths: [Int], _ rows: LogitRows
    ) throws(SparseKernelsError) -> Tensor<Float> {
        let c = model.configuration
        let outputs = rows == .all ? tokens.reduce(0) { $0 + $1.count } : tokens.count { !$0.isEmpty }
        var logits = try Tensor<Float>(zeros: [outputs, c.vocabularySize])
        var finished = try Tensor<Float>(zeros: [outputs, c.hiddenSize])
        var output = 0
        for (index, list) in tokens.enumerated() {
            var position = 0
            while position < list.count {
                let count = min(workspace.rows, list.count - position)
                let isLast = position + count == list.count
                attention.segments = [PassSegment(sequence: names[index], before: lengths[index] + position, count: count)]
                var stopwatch = Stopwatch()
                try model.run(
                    Array(list[position..<position + count]),
                    positions: Array(lengths[index] + position..<lengths[index] + position + count),
                    needed: rows == .all ? .all : .rows(isLast ? [count - 1] : []), attention: attention,
                    workspace: &workspace, stopwatch: &stopwatch, on: pool)
                let copied = rows == .all ? count : isLast ? 1 : 0
                copy(workspace.normalized, rows: copied, into: &finished, at: output)
                output += copied
                position += count
                statistics.prefill += stopwatch.seconds
            }
        }
        try model.project(finished, rows: outputs, into: &logits, on: pool)
        return logits
    }

    private func copy(_ rows: Tensor<Float>, rows count: Int, into target: inout Tensor<Float>, at row: Int) {
        let width = target.shape[1]
        let source = rows.span
        var elements = target.mutableSpan
        for i in 0..<count * width { elements[row * width + i] = source[i] }
    }

    // MARK: - Statistics

    /// Starts new statistics.
    public func resetStatistics() { statistics = SessionStatistics() }

    /// Bytes of the session: the cache at its capacity, and the memory of passes.
    public var byteCount: Int { attention.cache.byteCount + workspace.byteCount }
}

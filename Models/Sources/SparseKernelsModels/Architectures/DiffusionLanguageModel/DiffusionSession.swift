public import FastDLLM
public import SparseKernels

/// A masked-diffusion language model with one sequence: what `FastDLLMDecoder` drives.
///
/// ```swift
/// let model = try LanguageModel(folder: folder)
/// var session = try DiffusionSession(model, capacity: 1024)
/// let result = try FastDLLMDecoder(FastDLLMConfiguration(cache: .dual)).generate(prompt, length: 64, with: &session)
/// ```
///
/// Every position sees every other one. The session keeps keys and values of all positions, rotated; a call runs some of them,
/// replaces theirs, and attends to all. In the last layer only the rows whose logits are asked for go on after attention.
///
/// - A session has one writer. Memory for passes is allocated when it is made.
/// - Results are bitwise equal for every number of threads.
public final class DiffusionSession: DiffusionModel {
    public let model: LanguageModel
    public let capacity: Int
    public let maskToken: Int
    /// How keys and values are kept; nil is single precision in plain tensors.
    public let cacheFormat: KVFormat?
    private let cache: any DiffusionCache
    private var workspace: LanguageWorkspace
    /// Positions of the sequence whose keys and values are there; 0 before the first pass, and after one that failed.
    private var length = 0
    /// Seconds since the session was made, or since they were set to nothing.
    public var seconds = StageSeconds()

    public var vocabularySize: Int { model.configuration.vocabularySize }

    /// - Parameters:
    ///   - model: a bidirectional model without sliding windows.
    ///   - capacity: the most positions of a sequence, at least 1.
    ///   - maskToken: nil means that of the model's file.
    ///   - cacheFormat: keys and values in pages of this format; nil keeps them in single precision in plain tensors, which is
    ///     the fastest form.
    /// - Throws: `.invalidArgument` for a causal model, one with sliding windows or without a mask, a mask outside the
    ///   vocabulary, or a capacity out of range; the errors of the cache.
    public init(
        _ model: LanguageModel, capacity: Int, maskToken: Int? = nil, cacheFormat: KVFormat? = nil
    ) throws(SparseKernelsError) {
        let c = model.configuration
        guard !c.isCausal, c.slidingWindows.allSatisfy({ $0 == nil }) else {
            throw SparseKernelsError(
                .invalidArgument, "model", expected: "a bidirectional one without windows, as every position sees all",
                actual: c.isCausal ? "a causal one" : "one with windows")
        }
        guard capacity >= 1, capacity <= 1 << 24 else {
            throw SparseKernelsError(.invalidArgument, "capacity", expected: "1 to 2²⁴", actual: "\(capacity)")
        }
        guard let mask = maskToken ?? c.maskToken, mask >= 0, mask < c.vocabularySize else {
            throw SparseKernelsError(
                .invalidArgument, "maskToken", expected: "a token of the vocabulary (0 to \(c.vocabularySize - 1))",
                actual: (maskToken ?? c.maskToken).map { "\($0)" } ?? "none in config.json")
        }
        self.model = model
        self.capacity = capacity
        self.maskToken = mask
        self.cacheFormat = cacheFormat
        cache =
            if let cacheFormat {
                try PagedDiffusionCache(model, capacity: capacity, format: cacheFormat)
            } else {
                try DenseDiffusionCache(model, capacity: capacity)
            }
        workspace = try LanguageWorkspace(c, rows: capacity, hasCATS: model.cats != nil)
    }

    /// Bytes of the cache and of the memory of passes. The model is not among them.
    public var byteCount: Int { cache.usedByteCount + workspace.byteCount }

    /// Throws `.invalidArgument` for tokens outside the vocabulary.
    public func check(_ tokens: [Int]) throws(SparseKernelsError) { try model.check(tokens) }

    /// Runs the tokens of some positions, each of which sees the whole sequence.
    ///
    /// - Parameters:
    ///   - rows: ascending positions of `running` whose logits are computed, maybe none.
    ///   - running: positions that run. A sequence begins with a call over all of its positions.
    ///   - tokens: the whole sequence.
    ///   - pool: the threads to use.
    /// - Returns: `[rows, vocabularySize]`.
    /// - Throws: `.invalidArgument` for positions, rows or tokens that are not there, and a part of a sequence that did not
    ///   begin; nothing is changed then. The errors of the cache's format; the sequence must begin anew then.
    public func logits(
        of rows: [Int], running: Range<Int>, in tokens: [Int], on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try check(rows, running, tokens)
        var logits = try Tensor<Float>(zeros: [rows.count, vocabularySize])
        if running.isEmpty { return logits }
        var pass = PassTokens()
        pass.append(tokens[running], after: running.lowerBound, length: tokens.count)
        length = 0
        var stopwatch = Stopwatch()
        try cache.begin(running, length: tokens.count)
        try model.run(
            pass, needed: .rows(rows.map { $0 - running.lowerBound }), attention: cache, workspace: &workspace,
            stopwatch: &stopwatch, on: pool)
        stopwatch.lap(\.other)
        if !rows.isEmpty { try model.project(workspace.normalized, rows: rows.count, into: &logits, on: pool) }
        stopwatch.lap(\.linear)
        length = tokens.count
        seconds += stopwatch.seconds
        return logits
    }

    private func check(_ rows: [Int], _ running: Range<Int>, _ tokens: [Int]) throws(SparseKernelsError) {
        guard tokens.count <= capacity else {
            throw SparseKernelsError(
                .invalidArgument, "tokens", expected: "at most \(capacity), the session's capacity", actual: "\(tokens.count)")
        }
        guard running.lowerBound >= 0, running.upperBound <= tokens.count else {
            throw SparseKernelsError(
                .invalidArgument, "running", expected: "positions of the sequence (0..<\(tokens.count))", actual: "\(running)")
        }
        guard running == 0..<tokens.count || length == tokens.count else {
            throw SparseKernelsError(
                .invalidArgument, "running", expected: "all \(tokens.count) positions, as the sequence begins",
                actual: "\(running)")
        }
        guard rows.allSatisfy(running.contains), zip(rows, rows.dropFirst()).allSatisfy({ $0 < $1 }) else {
            throw SparseKernelsError(
                .invalidArgument, "rows", expected: "ascending positions of those that run (\(running))", actual: "\(rows)")
        }
        try model.check(tokens)
    }
}

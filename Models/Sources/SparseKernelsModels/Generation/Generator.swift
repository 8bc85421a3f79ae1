public import SparseKernels

/// A sequence to generate.
public struct GenerationRequest: Hashable, Sendable {
    /// The tokens before the ones that are drawn, one or more.
    public var prompt: [Int]
    public var sampling: Sampling
    /// The number of tokens to draw, unless the text ends before. 0 or more.
    public var maximumTokens: Int
    /// Strings that end the text. The text that is given back ends before them.
    public var stopStrings: [String]
    /// Whether the tokenizer's end tokens end the text.
    public var stopsAtEndTokens = true
    /// Tells sequences of equal prompts and seeds apart.
    public var stream: UInt64

    public init(
        prompt: [Int], sampling: Sampling = .greedy, maximumTokens: Int = 256, stopStrings: [String] = [], stream: UInt64 = 0
    ) {
        self.prompt = prompt
        self.sampling = sampling
        self.maximumTokens = maximumTokens
        self.stopStrings = stopStrings
        self.stream = stream
    }
}

/// A sequence that was generated.
public struct GenerationResult: Hashable, Sendable {
    public enum End: Hashable, Sendable {
        /// One of the tokenizer's end tokens, which is not in `tokens`.
        case endToken(Int)
        case stopString(String)
        /// As many tokens as were asked for.
        case length
        /// The caller wanted no more.
        case cancelled
    }

    /// The tokens that were drawn.
    public let tokens: [Int]
    /// Their bytes, up to the stop string. They need not be UTF-8.
    public let bytes: [UInt8]
    public let end: End

    /// The text. Bytes that are not UTF-8 are replacement characters.
    public var text: String { String(decoding: bytes, as: UTF8.self) }
}

/// What happens during generation.
public enum GenerationEvent: Hashable, Sendable {
    /// The prompts of all sequences have run.
    case prompts
    /// A token was drawn for a sequence, by its index. `bytes` are whole characters, and none that a stop string might take back.
    case token(sequence: Int, token: Int, bytes: [UInt8])
    /// A sequence has ended. `bytes` were held back before.
    case finished(sequence: Int, end: GenerationResult.End, bytes: [UInt8])
}

/// What a generator runs tokens with: a `LanguageSession`, or something else that predicts tokens.
public protocol TokenPredicting: AnyObject {
    associatedtype Sequence: Hashable
    func makeSequence() throws(SparseKernelsError) -> Sequence
    func free(_ sequence: Sequence) throws(SparseKernelsError)
    /// Runs tokens after those that the sequences hold. The result has a row per sequence, the logits after its last token.
    func predict(_ tokens: [[Int]], after sequences: [Sequence]) throws(SparseKernelsError) -> Tensor<Float>
    /// The threads that rank logits; `WorkerPool.shared` if nothing else is said.
    var pool: WorkerPool { get }
    /// Numbers to go on with, such as tokens that were drawn: those of the first of several ranks that predict together. A predictor
    /// alone gives back what it gets.
    func valuesOfFirstRank(_ values: [Int]) throws(SparseKernelsError) -> [Int]
}

extension TokenPredicting {
    public var pool: WorkerPool { .shared }
    public func valuesOfFirstRank(_ values: [Int]) throws(SparseKernelsError) -> [Int] { values }

    /// Whether the first of several ranks wants to go on.
    func goesOn(_ wish: Bool) throws(SparseKernelsError) -> Bool { try valuesOfFirstRank([wish ? 1 : 0]) != [0] }
}

extension LanguageSession: TokenPredicting {
    public func predict(_ tokens: [[Int]], after sequences: [SequenceID]) throws(SparseKernelsError) -> Tensor<Float> {
        try append(tokens, to: sequences, logits: .last)
    }

    /// The numbers that rank 0 gives, on every rank: machines of different kinds may round logits differently, and must not part ways. A
    /// session alone gives back what it gets.
    ///
    /// - Parameter values: as many on every rank.
    /// - Throws: `.communication`.
    public func valuesOfFirstRank(_ values: [Int]) throws(SparseKernelsError) -> [Int] { try ranks?.first(values) ?? values }
}

/// Generates text: one sequence, or a batch that goes through the model together.
///
/// ```swift
/// let generator = Generator(session, tokenizer: tokenizer)
/// let request = GenerationRequest(prompt: tokenizer.prompt("func "), stopStrings: ["\n\n"])
/// let result = try generator.run(request) { event in
///     if case .token(_, _, let bytes) = event { print(String(decoding: bytes, as: UTF8.self), terminator: "") }
///     return true
/// }
/// ```
///
/// A sequence depends on its request and its model only: not on the others of its batch, as far as the session computes equal
/// logits alone and in a batch, and not on threads.
public struct Generator<Predictor: TokenPredicting> {
    public let predictor: Predictor
    public let tokenizer: any Tokenizing

    public init(_ predictor: Predictor, tokenizer: any Tokenizing) {
        self.predictor = predictor
        self.tokenizer = tokenizer
    }

    /// Generates one sequence.
    public func run(
        _ request: GenerationRequest, onEvent: (GenerationEvent) throws(SparseKernelsError) -> Bool = { _ in true }
    ) throws(SparseKernelsError) -> GenerationResult {
        try run([request], onEvent: onEvent)[0]
    }

    /// Generates sequences. Their memory in the session is freed when each ends, also after an error.
    ///
    /// - Parameters:
    ///   - requests: one per sequence.
    ///   - onEvent: called with what happens, in the order of the sequences within a step. When it returns false, all sequences
    ///     that are running are cancelled. On several ranks, each calls its own, and what that of rank 0 returns counts.
    /// - Returns: a result per request.
    /// - Throws: `.invalidArgument` for a request that cannot be run, before anything runs; the errors of the predictor, among
    ///   them `.capacityExceeded`, and those of `onEvent`.
    public func run(
        _ requests: [GenerationRequest], onEvent: (GenerationEvent) throws(SparseKernelsError) -> Bool = { _ in true }
    ) throws(SparseKernelsError) -> [GenerationResult] {
        var batch = GenerationBatch<Predictor>(tokenizer: tokenizer)
        for (index, request) in requests.enumerated() { try batch.add(request, index: index) }
        do throws(SparseKernelsError) {
            try batch.run(with: predictor, onEvent)
        } catch {
            try? batch.freeAll(in: predictor)
            throw error
        }
        return batch.results
    }
}

extension Generator where Predictor == LanguageSession {
    /// The events of a sequence as they happen, for `for try await`. Ending the loop, or cancelling its task, ends generation after
    /// the token that is being computed.
    ///
    /// The model runs in a thread of its own. The session may be used again when the loop has ended with `finished` or an error.
    public static func stream(
        _ request: GenerationRequest, tokenizer: any Tokenizing,
        makingSession makeSession: @escaping @Sendable () throws -> LanguageSession
    ) -> AsyncThrowingStream<GenerationEvent, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task.detached {
                do {
                    // A session has one writer, so it is made where it is used.
                    let generator = Generator(try makeSession(), tokenizer: tokenizer)
                    _ = try generator.run(request) { event in
                        if case .terminated = continuation.yield(event) { return false }
                        return !Task.isCancelled
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }
}

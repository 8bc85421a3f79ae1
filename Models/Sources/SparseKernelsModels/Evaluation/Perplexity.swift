import Foundation
public import SparseKernels

/// The bits in which a session codes the ends of windows of a text, given all that is before them in the window.
///
/// A window has `context` tokens. Only its last `scored` ones count, and each of them sees at least `context − scored` tokens, so
/// the number says how a context of this length is used. Windows are spread evenly over the text, and equal for all
/// sessions that are compared.
public struct Perplexity: Hashable, Sendable {
    /// How the tokens that count go through the model.
    public enum Path: String, Hashable, Sendable, CaseIterable {
        /// As the end of a prompt: the method of prefill decides what their queries see.
        case prefill
        /// One by one: the method of decoding decides.
        case decoding
    }

    public let context: Int
    public let scored: Int
    public let windows: Int
    public let path: Path

    /// - Throws: `.invalidArgument` for no windows, or none or as many as all tokens that count.
    public init(context: Int, scored: Int = 256, windows: Int = 16, path: Path = .prefill) throws(SparseKernelsError) {
        guard scored >= 1, scored < context, windows >= 1 else {
            throw SparseKernelsError(
                .invalidArgument, "perplexity", expected: "1 to \(max(1, context - 1)) scored tokens, one window or more",
                actual: "\(scored) of \(context), \(windows) windows")
        }
        self.context = context
        self.scored = scored
        self.windows = windows
        self.path = path
    }

    /// What was coded.
    public struct Score: Hashable, Sendable {
        /// −Σ log₂ p(token), over the tokens that count.
        public fileprivate(set) var bits = 0.0
        public fileprivate(set) var tokens = 0
        /// The bytes that these tokens stand for. A token that separates files counts as one.
        public fileprivate(set) var bytes = 0

        public var bitsPerByte: Double { bits / Double(bytes) }
        public var bitsPerToken: Double { bits / Double(tokens) }
        /// e to the mean of −ln p.
        public var perplexity: Double { exp2(bitsPerToken) }

        /// The score of several parts.
        public static func += (a: inout Self, b: Self) {
            a.bits += b.bits
            a.tokens += b.tokens
            a.bytes += b.bytes
        }
    }

    /// Scores a corpus.
    ///
    /// - Parameters:
    ///   - onWindow: called after each window with its index, how many there are, and the score so far. When it returns false,
    ///     this score is the result.
    /// - Throws: `.invalidArgument` when the corpus is shorter than a window, and the errors of the session, whose capacity must
    ///   be `context` tokens or more.
    public func callAsFunction(
        _ session: LanguageSession, on corpus: TextCorpus, tokenizer: any Tokenizing,
        onWindow: (_ index: Int, _ count: Int, _ score: Score) throws(SparseKernelsError) -> Bool = { _, _, _ in true }
    ) throws(SparseKernelsError) -> Score {
        var score = Score()
        let ranges = try corpus.windows(windows, length: context)
        for (index, range) in ranges.enumerated() {
            score += try self.score(Array(corpus.tokens[range]), session, tokenizer: tokenizer)
            guard try session.goesOn(onWindow(index, ranges.count, score)) else { break }
        }
        return score
    }

    /// Scores one window of `context` tokens.
    public func score(
        _ window: [Int], _ session: LanguageSession, tokenizer: any Tokenizing
    ) throws(SparseKernelsError) -> Score {
        let sequence = session.makeSequence()
        var score = Score()
        do throws(SparseKernelsError) {
            let start = window.count - scored
            // The logits behind a token say what the next one is.
            var logits = try session.append([Array(window[..<start])], to: [sequence])
            score.bits += try bits(logits, [window[start]], session)
            let rest = Array(window[start...].dropLast())
            switch path {
            case .prefill:
                if !rest.isEmpty {
                    logits = try session.append([rest], to: [sequence], logits: .all)
                    score.bits += try bits(logits, Array(window[(start + 1)...]), session)
                }
            case .decoding:
                for (token, next) in zip(rest, window[(start + 1)...]) {
                    logits = try session.append([[token]], to: [sequence])
                    score.bits += try bits(logits, [next], session)
                }
            }
            for token in window[start...] { score.bytes += max(1, tokenizer.bytes(of: token).count) }
            score.tokens = scored
        } catch {
            try? session.free(sequence)
            throw error
        }
        try session.free(sequence)
        return score
    }

    /// Row i of the logits codes token i.
    private func bits(
        _ logits: Tensor<Float>, _ tokens: [Int], _ session: LanguageSession
    ) throws(SparseKernelsError) -> Double {
        try LanguageModel.codeLength(logits, [0] + tokens, on: session.pool)
    }
}

/// How a recurrence is computed. The result is the same but for rounding.
public enum RecurrenceForm: Hashable, Sendable {
    /// This many tokens at a time, 1…256, by products of matrices. A sequence of one token takes a plain step.
    case chunked(Int)
    /// One token at a time, as the recurrence is defined.
    case stepwise

    /// Chunks of 48 tokens. A chunk of *q* tokens costs *q*/2 multiply-adds per token and channel of values beside those with the state,
    /// and as many per channel of keys for all heads that share them, so that short chunks cost little; but each chunk loads and
    /// stores the state once.
    public static let automatic = RecurrenceForm.chunked(48)

    /// Throws `.invalidArgument` for a chunk that is not from 1 to 256 tokens.
    func validate() throws(SparseKernelsError) {
        if case .chunked(let tokens) = self {
            try require(
                tokens >= 1 && tokens <= Self.maximumChunk, .invalidArgument, "form",
                expected: "chunks of 1 to \(Self.maximumChunk)",
                actual: "chunks of \(tokens)")
        }
    }

    /// The longest chunk.
    public static let maximumChunk = 256
}

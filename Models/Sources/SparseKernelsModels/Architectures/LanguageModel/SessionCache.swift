import SequenceParallel
import SparseKernels

/// The tokens of a sequence in a pass.
struct PassSegment {
    let sequence: SessionSequence
    /// Tokens that the sequence has before the pass, and those of the pass.
    let before: Int
    let count: Int
    /// Whether the pass has the last tokens of those that the sequence gets in this call.
    let isLast: Bool

    /// Pairs of a query of the segment and a token that it sees, with a causal mask and perhaps a window.
    func pairs(window: Int?) -> Double {
        // Query t, counted from 1 in its sequence, sees min(t, window) tokens.
        let (first, last) = (Double(before + 1), Double(before + count))
        let all = (first + last) * Double(count) / 2
        guard let window = window.map(Double.init), last > window else { return all }
        let cut = max(first, window + 1)
        return all - ((cut + last) / 2 - window) * (last - cut + 1)
    }
}

/// The sequences of a session's cache, by number.
typealias SessionSequence = Int

/// What a session remembers: keys and values of all layers, and how they are attended, and the states of recurrent layers.
///
/// A session gives the segments of a pass to `begin`; then the model calls `attend` layer by layer, which stores the keys and
/// values of the pass and attends, and asks for the states of recurrent layers.
protocol SessionCache: TokenAttention {
    func makeSequence() -> SessionSequence
    func fork(_ sequence: SessionSequence, at length: Int?) throws(SparseKernelsError) -> SessionSequence
    func truncate(_ sequence: SessionSequence, to length: Int) throws(SparseKernelsError)
    func free(_ sequence: SessionSequence) throws(SparseKernelsError)
    func length(of sequence: SessionSequence) throws(SparseKernelsError) -> Int

    /// Makes sure, for models whose states cannot go back, that a call has the room that it needs.
    ///
    /// - Parameters:
    ///   - counts: tokens that each sequence is about to get.
    ///   - sequences: different sequences.
    /// - Throws: `.capacityExceeded`; `.invalidArgument` for a sequence that an earlier call left in pieces.
    func prepare(_ counts: [Int], for sequences: [SessionSequence]) throws(SparseKernelsError)

    /// - Parameters:
    ///   - segments: in the order of the rows.
    ///   - isDecoding: whether each segment is one token and is attended by the method of decoding.
    func begin(_ segments: [PassSegment], isDecoding: Bool) throws(SparseKernelsError)

    /// Which ranks run the tokens of the segments of the pass; nil for a segment that this rank runs as a whole.
    func shards(of segments: [PassSegment]) -> [TokenShards?]

    /// Says that all layers have run.
    func end() throws(SparseKernelsError)

    /// Makes the present length one that the sequence can go back to, where it could not otherwise.
    func checkpoint(_ sequence: SessionSequence) throws(SparseKernelsError)
    func removeCheckpoint(of sequence: SessionSequence, at length: Int) throws(SparseKernelsError)

    /// The states of recurrent layers; nil in models without.
    var states: SessionStates? { get }

    /// Bytes in use.
    var usedByteCount: Int { get }
    /// What attention has computed and read, since the session took it last.
    var counts: AttentionCounts { get set }
}

extension SessionCache {
    func shards(of segments: [PassSegment]) -> [TokenShards?] { segments.map { _ in nil } }
}

/// What attention computed and read, against what it could have.
struct AttentionCounts {
    var attendedPairs = 0.0
    var reachablePairs = 0.0
    var readBytes = 0.0
    var denseBytes = 0.0
}

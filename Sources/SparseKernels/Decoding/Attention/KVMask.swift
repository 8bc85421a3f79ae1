/// The tokens of its sequence that a query attends, by position.
///
/// Query i of n has position `length` − n + i. With more queries than tokens the first queries have negative positions, and see
/// the tokens that a mask shows from there.
public enum KVMask: Hashable, Sendable {
    /// All tokens up to the query's own.
    case causal
    /// All tokens of the sequence, also those after the query: queries that were appended together see each other.
    case full
    /// From `left` tokens before the query's own to `right` after it, both included, as with `window_size` of FlashAttention.
    /// nil and −1 mean no limit.
    case window(left: Int?, right: Int?)
    /// The first `sink` tokens and the `window` tokens that end at the query's own: StreamingLLM, DuoAttention, LServe.
    case streaming(sink: Int, window: Int)

    func validate() throws(SparseKernelsError) {
        switch self {
        case .causal, .full: break
        case .window(let left, let right): try AttentionWindow(left: left, right: right).validate(named: "mask")
        case .streaming(let sink, let window):
            try require(sink >= 0, .invalidArgument, "mask.sink", expected: "at least 0", actual: "\(sink)")
            try require(window >= 1, .invalidArgument, "mask.window", expected: "at least 1", actual: "\(window)")
        }
    }

    /// The number of tokens after its own that a query attends, if it attends all tokens before; otherwise nil. Where it
    /// exists, the queries of a sequence share one list, and each sees a part from its front.
    var reach: Int? {
        switch self {
        case .causal: 0
        case .full: .max
        case .window(let left, let right):
            switch AttentionWindow(left: left, right: right) {
            case let sides where sides.left == nil: sides.right ?? .max
            default: nil
            }
        case .streaming: nil
        }
    }

    /// The tokens that the query at `position` attends in a sequence of `length` tokens: two ascending, disjoint ranges.
    func tokens(of position: Int, length: Int) -> (sink: Range<Int>, window: Range<Int>) {
        switch self {
        case .causal: return (0..<0, 0..<max(0, position + 1))
        case .full: return (0..<0, 0..<length)
        case .window(let left, let right):
            // The limits of query 0, if the queries started at this position.
            let limits = AttentionWindow(left: left, right: right).limits(
                queryLength: length - position, keyLength: length, isCausal: false)
            let first = max(0, limits.from)
            return (0..<0, first..<max(first, min(length, limits.to)))
        case .streaming(let sink, let window):
            if position < 0 { return (0..<0, 0..<0) }
            let first = max(0, position - min(window, position + 1) + 1)
            return (0..<min(sink, first), first..<position + 1)
        }
    }
}

/// Which tokens of its sequence a query attends, by position.
///
/// Query i of n stands at position `length` − n + i. With more queries than tokens the first ones stand before the sequence, and see what a
/// mask shows of it from there.
public enum KVMask: Hashable, Sendable {
    /// All up to its own.
    case causal
    /// All tokens of the sequence, also those after it: queries that were appended together see each other.
    case full
    /// From `left` tokens before its own to `right` after it, both included: `window_size` of FlashAttention. nil and −1 are no limit.
    case window(left: Int?, right: Int?)
    /// The first `sink` tokens, and the `window` tokens that end at its own: StreamingLLM, DuoAttention's and LServe's streaming heads.
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

    /// Tokens after its own that a query attends, if those before it are all attended: queries of a sequence then share a list, of which each
    /// sees a part from the front. nil when they do not.
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

    /// The tokens that the query at `position` attends of a sequence of `length`: two ranges, ascending and disjoint, either of which may be
    /// empty.
    func tokens(of position: Int, length: Int) -> (sink: Range<Int>, window: Range<Int>) {
        switch self {
        case .causal: return (0..<0, 0..<max(0, position + 1))
        case .full: return (0..<0, 0..<length)
        case .window(let left, let right):
            // Query 0 of as many as stand from this position on.
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

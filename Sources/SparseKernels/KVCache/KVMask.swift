/// Which tokens of its sequence a query attends, by position.
public enum KVMask: Hashable, Sendable {
    /// All up to its own.
    case causal
    /// The first `sink` tokens, and the `window` tokens that end at its own: StreamingLLM, DuoAttention's and LServe's streaming heads.
    case streaming(sink: Int, window: Int)

    func validate() throws(SparseKernelsError) {
        guard case .streaming(let sink, let window) = self else { return }
        try require(sink >= 0, .invalidArgument, "mask.sink", expected: "at least 0", actual: "\(sink)")
        try require(window >= 1, .invalidArgument, "mask.window", expected: "at least 1", actual: "\(window)")
    }

    /// The tokens that the query at `position` attends: two ranges, ascending and disjoint, either of which may be empty.
    func tokens(of position: Int) -> (sink: Range<Int>, window: Range<Int>) {
        switch self {
        case .causal: return (0..<0, 0..<position + 1)
        case .streaming(let sink, let window):
            let first = max(0, position - min(window, position + 1) + 1)
            return (0..<min(sink, first), first..<position + 1)
        }
    }
}

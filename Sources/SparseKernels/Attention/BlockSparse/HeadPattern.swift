/// The keys that one query head attends to.
public enum HeadPattern: Hashable, Sendable {
    /// Every key that the causal limit leaves.
    case dense
    /// The first `sink` keys and the `local` keys that end at the query's own position, in tokens. Needs causal attention.
    ///
    /// Streaming by whole blocks is `.blockSparse(.streaming(…))`.
    case streaming(sink: Int, local: Int)
    /// The blocks that one head of a mask keeps, except what the causal limit hides in them.
    case blockSparse(BlockMask, head: Int)
    /// A band around each query's own position, with global tokens.
    case band(AttentionBand)
    /// Runs and single keys per block of queries.
    case runs(KeyRuns)

    /// Throws unless the pattern fits a sequence of the given lengths.
    func validate(
        queryLength: Int, keyLength: Int, isCausal: Bool, named name: @autoclosure () -> String
    ) throws(SparseKernelsError) {
        switch self {
        case .dense:
            break
        case .streaming(let sink, let local):
            try require(isCausal, .invalidArgument, name(), expected: "causal attention for streaming", actual: "full")
            try require(sink >= 0, .invalidArgument, "\(name()).sink", expected: "at least 0", actual: "\(sink)")
            try require(local >= 1, .invalidArgument, "\(name()).local", expected: "at least 1", actual: "\(local)")
        case .blockSparse(let mask, let head):
            try require(
                head >= 0 && head < mask.heads, .invalidArgument, "\(name()).head",
                expected: "one of the mask's \(mask.heads) heads", actual: "\(head)")
            let grid = mask.grid
            try require(
                grid.query.length == queryLength && grid.key.length == keyLength, .invalidShape, "\(name()).mask",
                expected: "a mask over \(queryLength) × \(keyLength) tokens",
                actual: "\(grid.query.length) × \(grid.key.length)")
            try require(
                grid.isCausal == isCausal, .invalidArgument, "\(name()).mask", expected: isCausal ? "causal" : "not causal",
                actual: grid.isCausal ? "causal" : "not causal")
        case .band(let band):
            try band.validate(queryLength: queryLength, keyLength: keyLength, named: "\(name()).band")
        case .runs(let runs):
            try require(
                runs.query.length == queryLength && runs.keyLength == keyLength, .invalidShape, "\(name()).runs",
                expected: "over \(queryLength) × \(keyLength) tokens", actual: "\(runs.query.length) × \(runs.keyLength)")
        }
    }
}

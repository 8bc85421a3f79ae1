/// What one head of a layer does in prefill: MInference's patterns, assigned offline and filled in from each prompt.
public enum MInferenceHead: Hashable, Sendable {
    /// The heaviest keys and distances, from the attention of the last 64 queries. See `VerticalSlashSelection` for what counts as
    /// kept in any case, and for the least numbers.
    case verticalSlash(vertical: Int, slash: Int)
    /// The best `topK` key blocks of every query block by the product of their means. The paper's block size is 64.
    case blockSparse(topK: Int = 100, blockSize: Int = 64)
    /// The first `initial` keys and the `local` keys that end at the query: a streaming head.
    case aShape(initial: Int, local: Int)
    /// Every key.
    case dense

    /// What a head does that no configuration mentions.
    public static let standard = MInferenceHead.verticalSlash(vertical: 1000, slash: 6096)
    /// The library's own A-shape.
    public static let standardAShape = MInferenceHead.aShape(initial: 128, local: 3968)

    /// Throws unless the numbers are in their domains.
    func validate(named name: @autoclosure () -> String) throws(SparseKernelsError) {
        func check(_ field: String, _ value: Int, least: Int) throws(SparseKernelsError) {
            try require(
                value >= least, .invalidArgument, "\(name()).\(field)", expected: "at least \(least)", actual: "\(value)")
        }
        switch self {
        case .verticalSlash(let vertical, let slash):
            try check("vertical", vertical, least: 0)
            try check("slash", slash, least: 0)
        case .blockSparse(let topK, let blockSize):
            try check("topK", topK, least: 1)
            try check("blockSize", blockSize, least: 1)
        case .aShape(let initial, let local):
            try check("initial", initial, least: 0)
            try check("local", local, least: 1)
        case .dense:
            break
        }
    }
}

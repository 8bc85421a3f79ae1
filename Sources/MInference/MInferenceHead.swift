/// The attention pattern of one head in prefill: chosen offline, and filled in from each prompt.
public enum MInferenceHead: Hashable, Sendable {
    /// The keys and distances with the largest attention from the last 64 queries. `VerticalSlashSelection` documents which are
    /// always kept, and the smallest numbers.
    case verticalSlash(vertical: Int, slash: Int)
    /// The `topK` key blocks of every query block with the largest product of block means. The paper's block size is 64.
    case blockSparse(topK: Int = 100, blockSize: Int = 64)
    /// A streaming head: the first `initial` keys and the `local` keys that end at the query.
    case aShape(initial: Int, local: Int)
    /// All keys.
    case dense

    /// The pattern of heads that a configuration does not mention.
    public static let standard = MInferenceHead.verticalSlash(vertical: 1000, slash: 6096)
    /// The library's own A-shape.
    public static let standardAShape = MInferenceHead.aShape(initial: 128, local: 3968)

    /// Throws unless all numbers are in their domains.
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

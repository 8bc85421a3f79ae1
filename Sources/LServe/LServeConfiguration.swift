public import SparseKernels

/// The pages, windows, budget and formats of an LServe layer. The defaults are those of the released scripts.
///
/// - Source: LServe (arXiv 2502.14866), section 3; `omniserve/engine/arg_utils.py` and `scripts/lserve_e2e.sh` of
///   mit-han-lab/omniserve.
public struct LServeConfiguration: Hashable, Sendable {
    /// Tokens per physical page, the paper's N_P. The released models have 64 hard-coded.
    public var pageSize = 64
    /// Tokens per logical page, the paper's N_L, a divisor of `pageSize`.
    public var logicalPageSize = 16
    /// Tokens that a retrieval head attends to when decoding. Longer contexts are cut to `tokenBudget` / `pageSize` pages.
    public var tokenBudget = 4096
    /// Number of steps between selections.
    public var selectionInterval = 4
    /// Which heads share a list of pages: the query heads of a key/value head, as in the paper, or none, as in the released
    /// code.
    public var sharing: SelectionSharing = .kvHead
    /// Tokens at the start that a streaming head keeps and attends to when decoding.
    public var decodeSinkTokens = 128
    /// Tokens at the end, including the current one, that a streaming head keeps and attends to when decoding.
    public var decodeLocalTokens = 256
    /// Tokens at the start that a streaming head attends to in prefill.
    public var prefillSinkTokens = 128
    /// Tokens up to a query's own that a streaming head attends to in prefill.
    public var prefillLocalTokens = 8192
    /// Largest number of tokens of a piece of a prompt, for prompts that come in several calls of `prefill`; nil when every
    /// prompt comes in one. Streaming heads then keep what the next piece's queries see, until a token is decoded.
    public var promptChunkTokens: Int?
    /// Storage format of keys and values. The released script uses 8 bits per element; the engine's default is 4.
    public var format: KVFormat = .int8
    /// The mapping from codes to keys and values. `.zeroPoint` is the mapping of the released kernels.
    public var quantization: KVQuantization = .minimum
    /// Storage format of the minima and maxima of pages.
    public var metadataFormat: KVFormat = .float16
    /// Factor on q·k; nil means 1/√headDim.
    public var softmaxScale: Float?

    public init() {}

    /// Largest number of pages per sequence in streaming heads: for the sink, a window at any offset, and the current token or
    /// the current piece of a prompt.
    public var streamingPagesPerSequence: Int {
        let window = promptChunkTokens.map { max(decodeLocalTokens, prefillLocalTokens + $0) } ?? decodeLocalTokens
        return Self.pages(keptSinkTokens, pageSize) + Self.pages(window, pageSize) + 1
    }

    /// Tokens at the start that streaming heads keep.
    var keptSinkTokens: Int { promptChunkTokens == nil ? decodeSinkTokens : max(decodeSinkTokens, prefillSinkTokens) }

    /// The number of pages that so many tokens fill.
    static func pages(_ tokens: Int, _ pageSize: Int) -> Int { tokens <= 0 ? 0 : (tokens - 1) / pageSize + 1 }

    /// Throws for invalid numbers, except page sizes, which the caches check, and the budget, which the selector checks.
    func validate() throws(SparseKernelsError) {
        for (name, value, least) in [
            ("pageSize", pageSize, 1), ("promptChunkTokens", promptChunkTokens ?? 1, 1),
            ("decodeSinkTokens", decodeSinkTokens, 0), ("decodeLocalTokens", decodeLocalTokens, 1),
            ("prefillSinkTokens", prefillSinkTokens, 0), ("prefillLocalTokens", prefillLocalTokens, 1),
        ] {
            try require(
                value >= least && value <= 1 << 30, .invalidArgument, name, expected: "\(least) to 2³⁰", actual: "\(value)")
        }
        try require(
            tokenBudget % pageSize == 0, .invalidArgument, "tokenBudget", expected: "a multiple of pageSize (\(pageSize))",
            actual: "\(tokenBudget)")
    }
}

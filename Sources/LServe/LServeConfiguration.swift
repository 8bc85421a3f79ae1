public import SparseKernels

/// What an LServe layer keeps and reads. The defaults are those of the released scripts.
///
/// - Source: LServe (arXiv 2502.14866), section 3; `omniserve/engine/arg_utils.py` and `scripts/lserve_e2e.sh` of
///   mit-han-lab/omniserve.
public struct LServeConfiguration: Hashable, Sendable {
    /// Tokens of a physical page, N_P of the paper. The released models have 64 hard-coded.
    public var pageSize = 64
    /// Tokens of a logical page, N_L of the paper; it divides `pageSize`.
    public var logicalPageSize = 16
    /// Tokens that a retrieval head reads when decoding; longer contexts are cut to `tokenBudget` / `pageSize` pages.
    public var tokenBudget = 4096
    /// Steps from selection to selection.
    public var selectionInterval = 4
    /// One list of pages per key/value head, the selection of the paper that heads share; or per query head, as in the released
    /// code.
    public var sharing: SelectionSharing = .kvHead
    /// Tokens at the start that a streaming head keeps and reads when decoding.
    public var decodeSinkTokens = 128
    /// Tokens at the end that a streaming head keeps and reads when decoding, the current one included.
    public var decodeLocalTokens = 256
    /// Tokens at the start that a streaming head reads in prefill.
    public var prefillSinkTokens = 128
    /// Tokens that end with a query's own, which a streaming head reads in prefill.
    public var prefillLocalTokens = 8192
    /// How keys and values are stored. The released script has 8 bits per element, the engine's default is 4.
    public var format: KVFormat = .int8
    /// What the codes of quantised keys and values stand for. `.zeroPoint` is the rule of the released kernels.
    public var quantization: KVQuantization = .minimum
    /// How minima and maxima of pages are stored.
    public var metadataFormat: KVFormat = .float16
    /// Factor on q·k; nil means 1/√headDim.
    public var softmaxScale: Float?

    public init() {}

    /// Pages that a streaming head holds of a sequence at most: the sink, the window wherever it begins, and the current token.
    public var streamingPagesPerSequence: Int {
        Self.pages(decodeSinkTokens, pageSize) + Self.pages(decodeLocalTokens, pageSize) + 1
    }

    /// Pages of so many tokens.
    static func pages(_ tokens: Int, _ pageSize: Int) -> Int { tokens <= 0 ? 0 : (tokens - 1) / pageSize + 1 }

    /// Throws unless the numbers make sense. Page sizes are checked by the caches, the budget by the selector.
    func validate() throws(SparseKernelsError) {
        for (name, value, least) in [
            ("pageSize", pageSize, 1), ("decodeSinkTokens", decodeSinkTokens, 0), ("decodeLocalTokens", decodeLocalTokens, 1),
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

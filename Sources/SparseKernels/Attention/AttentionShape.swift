/// The sizes of an attention call.
///
/// Query head *h* reads key/value head *h* / (`queryHeads` / `kvHeads`): grouped-query attention, with multi-head
/// (`queryHeads == kvHeads`) and multi-query (`kvHeads == 1`) as its ends.
public struct AttentionShape: Hashable, Sendable {
    /// Tokens on the query side; 0 makes an empty output.
    public let queryLength: Int
    /// Tokens on the key/value side; with 0, every query gets output 0 and LSE −∞.
    public let keyLength: Int
    public let queryHeads: Int
    public let kvHeads: Int
    /// Channels of queries and keys, 1…256.
    public let headDim: Int
    /// Channels of values and output, 1…256.
    public let valueDim: Int

    /// Query heads that share one key/value head.
    public var queryHeadsPerKVHead: Int { queryHeads / kvHeads }

    /// The largest number of channels per head, for which kernel scratch is sized.
    public static let maximumHeadDim = 256

    /// Checks the sizes. `queryHeads` is a multiple of `kvHeads`; `valueDim` is `headDim` unless given.
    /// - Throws: `.invalidShape` when a length is negative, another extent is below 1, a head is wider than `maximumHeadDim`,
    ///   `queryHeads` is not a multiple of `kvHeads`, or full attention takes 2⁶⁰ multiply-adds or more.
    public init(
        queryLength: Int, keyLength: Int, queryHeads: Int, kvHeads: Int, headDim: Int, valueDim: Int? = nil
    ) throws(SparseKernelsError) {
        let valueDim = valueDim ?? headDim
        for (name, extent, least) in [
            ("queryLength", queryLength, 0), ("keyLength", keyLength, 0), ("queryHeads", queryHeads, 1),
            ("kvHeads", kvHeads, 1),
            ("headDim", headDim, 1), ("valueDim", valueDim, 1),
        ] {
            try require(extent >= least, .invalidShape, name, expected: "at least \(least)", actual: "\(extent)")
        }
        for (name, extent) in [("headDim", headDim), ("valueDim", valueDim)] {
            try require(
                extent <= Self.maximumHeadDim, .invalidShape, name, expected: "at most \(Self.maximumHeadDim)",
                actual: "\(extent)")
        }
        try require(
            queryHeads % kvHeads == 0, .invalidShape, "queryHeads", expected: "a multiple of kvHeads (\(kvHeads))",
            actual: "\(queryHeads)")
        // Below this, no position, limit or amount of work computed from the extents overflows. An empty side counts as one
        // token, because the positions of the other side must not overflow either.
        let work = [queryHeads, max(1, queryLength), max(1, keyLength)].reduce(
            (partialValue: headDim + valueDim, overflow: false)
        ) {
            let (product, overflow) = $0.partialValue.multipliedReportingOverflow(by: $1)
            return (product, $0.overflow || overflow)
        }
        try require(
            !work.overflow && work.partialValue < 1 << 60, .invalidShape, "shape",
            expected: "such that queryHeads · queryLength · keyLength · (headDim + valueDim) is below 2⁶⁰",
            actual: "\(queryHeads) · \(queryLength) · \(keyLength) · \(headDim + valueDim)")
        self.queryLength = queryLength
        self.keyLength = keyLength
        self.queryHeads = queryHeads
        self.kvHeads = kvHeads
        self.headDim = headDim
        self.valueDim = valueDim
    }

    /// The shape of the operands.
    /// - Throws: `.invalidShape` when they disagree with each other.
    public init<Q, K, V>(
        query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>
    ) throws(SparseKernelsError) {
        try self.init(
            queryLength: query.tokens, keyLength: key.tokens, queryHeads: query.heads, kvHeads: key.heads,
            headDim: query.channels, valueDim: value.channels)
        try check("key", key.geometry, heads: kvHeads, tokens: keyLength, channels: headDim)
        try check("value", value.geometry, heads: kvHeads, tokens: keyLength, channels: valueDim)
    }

    /// Throws unless an operand has the extents that the plan was made for.
    func check(
        _ name: String, _ geometry: TensorGeometry, heads: Int, tokens: Int, channels: Int
    ) throws(SparseKernelsError) {
        try geometry.requireExtents(name, heads: heads, tokens: tokens, channels: channels)
    }

    /// Throws unless queries have the extents that the plan was made for.
    package func check(query: TensorGeometry) throws(SparseKernelsError) {
        try check("query", query, heads: queryHeads, tokens: queryLength, channels: headDim)
    }

    /// Throws unless keys have the extents that the plan was made for.
    package func check(key: TensorGeometry) throws(SparseKernelsError) {
        try check("key", key, heads: kvHeads, tokens: keyLength, channels: headDim)
    }

    /// Throws unless all operands of a `run` have the extents that the plan was made for.
    package func check(
        query: TensorGeometry, key: TensorGeometry, value: TensorGeometry, output: TensorGeometry, logSumExpCount: Int?
    ) throws(SparseKernelsError) {
        try check(query: query)
        try check(key: key)
        try check("value", value, heads: kvHeads, tokens: keyLength, channels: valueDim)
        try check("output", output, heads: queryHeads, tokens: queryLength, channels: valueDim)
        if let count = logSumExpCount {
            let rows = queryHeads * queryLength
            try require(
                count == rows, .invalidShape, "logSumExp", expected: "queryHeads × queryLength = \(rows) elements",
                actual: "\(count)")
        }
    }
}

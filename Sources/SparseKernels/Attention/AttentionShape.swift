/// The sizes of an attention call.
///
/// Query head *h* reads key/value head *h* / (`queryHeads` / `kvHeads`): grouped-query attention, with multi-head
/// (`queryHeads == kvHeads`) and multi-query (`kvHeads == 1`) as its ends.
public struct AttentionShape: Hashable, Sendable {
    /// Tokens on the query side.
    public let queryLength: Int
    /// Tokens on the key/value side.
    public let keyLength: Int
    public let queryHeads: Int
    public let kvHeads: Int
    /// Channels of queries and keys, 1…256.
    public let headDim: Int
    /// Channels of values and output, 1…256.
    public let valueDim: Int

    /// Query heads that share one key/value head.
    public var queryHeadsPerKVHead: Int { queryHeads / kvHeads }

    /// The most channels a head may have: kernel scratch is sized for it.
    public static let maximumHeadDim = 256

    /// Checks the sizes. `queryHeads` is a multiple of `kvHeads`; `valueDim` is `headDim` unless given.
    /// - Throws: `.invalidShape` when an extent is below 1, a head is wider than `maximumHeadDim`, the heads do not divide, or
    ///   the work of full attention is 2⁶⁰ multiply-adds or more.
    public init(
        queryLength: Int, keyLength: Int, queryHeads: Int, kvHeads: Int, headDim: Int, valueDim: Int? = nil
    ) throws(SparseKernelsError) {
        let valueDim = valueDim ?? headDim
        for (name, extent) in [
            ("queryLength", queryLength), ("keyLength", keyLength), ("queryHeads", queryHeads), ("kvHeads", kvHeads),
            ("headDim", headDim), ("valueDim", valueDim),
        ] {
            try require(extent >= 1, .invalidShape, name, expected: "at least 1", actual: "\(extent)")
        }
        for (name, extent) in [("headDim", headDim), ("valueDim", valueDim)] {
            try require(
                extent <= Self.maximumHeadDim, .invalidShape, name, expected: "at most \(Self.maximumHeadDim)",
                actual: "\(extent)")
        }
        try require(
            queryHeads % kvHeads == 0, .invalidShape, "queryHeads", expected: "a multiple of kvHeads (\(kvHeads))",
            actual: "\(queryHeads)")
        // Below this, no position, limit or amount of work that is computed from the extents overflows.
        let work = [queryHeads, queryLength, keyLength].reduce((partialValue: headDim + valueDim, overflow: false)) {
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

    /// The shape that the operands have.
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

    /// Throws unless an operand has the extents the plan was made for.
    func check(
        _ name: String, _ geometry: TensorGeometry, heads: Int, tokens: Int, channels: Int
    ) throws(SparseKernelsError) {
        try geometry.requireExtents(name, heads: heads, tokens: tokens, channels: channels)
    }

    /// Throws unless queries have the extents the plan was made for.
    package func check(query: TensorGeometry) throws(SparseKernelsError) {
        try check("query", query, heads: queryHeads, tokens: queryLength, channels: headDim)
    }

    /// Throws unless keys have the extents the plan was made for.
    package func check(key: TensorGeometry) throws(SparseKernelsError) {
        try check("key", key, heads: kvHeads, tokens: keyLength, channels: headDim)
    }

    /// Throws unless all operands of a `run` have the extents the plan was made for.
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

/// Which keys a query may see, by position. Query *i* stands at key position *i* + `keyLength` − `queryLength`: the two
/// sequences are aligned at their ends, as when new tokens are appended to a cache.
public struct AttentionMask: Hashable, Sendable {
    /// Keys after the query's position are hidden.
    public let isCausal: Bool
    /// Keys at this distance or more from the query's position are hidden; nil hides none.
    public let window: Int?

    /// Every key.
    public static let full = AttentionMask(isCausal: false, window: nil)
    /// Keys up to the query's own position.
    public static let causal = AttentionMask(isCausal: true, window: nil)
    /// The `window` keys that end at the query's own position.
    public static func causal(window: Int) -> AttentionMask { AttentionMask(isCausal: true, window: window) }
    /// Keys at a distance below `window` on either side of the query's position.
    public static func full(window: Int) -> AttentionMask { AttentionMask(isCausal: false, window: window) }

    /// Limits for query 0: query i sees keys j with i + from ≤ j < i + to. Unlimited sides are ∓2⁶⁰, far beyond any sequence and
    /// far from overflow.
    func limits(_ shape: AttentionShape) -> (from: Int, to: Int) {
        let position = shape.keyLength - shape.queryLength
        let from = window.map { position - $0 + 1 } ?? -(1 << 60)
        let to = isCausal ? position + 1 : window.map { position + $0 } ?? 1 << 60
        return (from, to)
    }
}

/// How scores become probabilities, beyond the softmax itself. The defaults are plain attention.
///
/// A score is `softmaxScale`·q·k; then `logitsSoftCap`·tanh(score/`logitsSoftCap`); then the ALiBi term
/// slope·(j − position of the query); then the bias given to `run`.
public struct AttentionScoring: Hashable, Sendable {
    /// Factor on q·k; nil means 1/√headDim.
    public var softmaxScale: Float?
    /// Bound of the scores; nil is off.
    public var logitsSoftCap: Float?
    /// One ALiBi slope per query head; nil is off.
    public var aliBiSlopes: [Float]?

    public init(softmaxScale: Float? = nil, logitsSoftCap: Float? = nil, aliBiSlopes: [Float]? = nil) {
        self.softmaxScale = softmaxScale
        self.logitsSoftCap = logitsSoftCap
        self.aliBiSlopes = aliBiSlopes
    }

    func validate(_ shape: AttentionShape) throws(SparseKernelsError) {
        if let scale = softmaxScale {
            try require(scale.isFinite, .invalidArgument, "softmaxScale", expected: "finite", actual: "\(scale)")
        }
        if let cap = logitsSoftCap {
            try require(
                cap.isFinite && cap > 0, .invalidArgument, "logitsSoftCap", expected: "finite and positive", actual: "\(cap)")
        }
        if let slopes = aliBiSlopes {
            try require(
                slopes.count == shape.queryHeads, .invalidShape, "aliBiSlopes",
                expected: "one per query head (\(shape.queryHeads))", actual: "\(slopes.count)")
            for (head, slope) in slopes.enumerated() {
                try require(
                    slope.isFinite, .invalidArgument, "aliBiSlopes[\(head)]", expected: "finite", actual: "\(slope)")
            }
        }
    }
}

/// The gradients of one query head with respect to its queries and to a run of keys and values: the unit of work of the backward
/// pass of attention.
///
/// All rows are floats with adjacent channels; strides count floats. Row 0 of queries, outputs and their gradients is the first
/// query of the head, and row 0 of keys, values and their gradients is the first key of the sequence. Query i sees key j when
/// `i + visibleFrom ≤ j < i + visibleTo`.
public struct AttentionGradientArguments {
    public var query: UnsafePointer<Float>
    public var queryStride = 0
    public var key: UnsafePointer<Float>
    public var keyStride = 0
    public var value: UnsafePointer<Float>
    public var valueStride = 0
    public var output: UnsafePointer<Float>
    public var outputStride = 0
    public var outputGradient: UnsafePointer<Float>
    public var outputGradientStride = 0
    /// The natural-log LSE of every query. A query with −∞ has no probabilities, and no gradient.
    public var logSumExp: UnsafePointer<Float>

    /// What these keys contribute to the gradients of the queries from `firstQuery` to `endQuery`, which is overwritten.
    public var queryGradient: UnsafeMutablePointer<Float>
    public var queryGradientStride = 0
    /// The gradients of the keys from `firstKey` to `endKey`.
    public var keyGradient: UnsafeMutablePointer<Float>
    public var keyGradientStride = 0
    public var valueGradient: UnsafeMutablePointer<Float>
    public var valueGradientStride = 0
    /// Whether the gradients of keys and values are added to what is there, as for the second query head of a group.
    public var accumulates = false

    public var headDim = 0
    public var valueDim = 0
    /// The queries that see some of these keys.
    public var firstQuery = 0
    public var endQuery = 0
    public var firstKey = 0
    public var endKey = 0
    /// Callers without a lower or upper limit pass ∓2⁶⁰.
    public var visibleFrom = -(1 << 60)
    public var visibleTo = 1 << 60
    /// Multiplies the scores.
    public var softmaxScale: Float = 1

    /// `AttentionGradientScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        query: UnsafePointer<Float>, key: UnsafePointer<Float>, value: UnsafePointer<Float>, output: UnsafePointer<Float>,
        outputGradient: UnsafePointer<Float>, logSumExp: UnsafePointer<Float>, queryGradient: UnsafeMutablePointer<Float>,
        keyGradient: UnsafeMutablePointer<Float>, valueGradient: UnsafeMutablePointer<Float>, scratch: UnsafeMutableRawPointer
    ) {
        self.query = query
        self.key = key
        self.value = value
        self.output = output
        self.outputGradient = outputGradient
        self.logSumExp = logSumExp
        self.queryGradient = queryGradient
        self.keyGradient = keyGradient
        self.valueGradient = valueGradient
        self.scratch = scratch
    }
}

/// The offsets of the kernel's scratch, in floats, with `queryBlock` queries and `keyBlock` keys at a time.
public struct AttentionGradientScratch: Sendable {
    /// Queries of a step: two panels of 48 lanes, four of 24 or eight of 12. It is the depth of the products with Pᵀ and dSᵀ, whose
    /// sums are loaded and stored once per step. A row of P is 384 bytes, so that a column of it spreads over half of the sets of
    /// a first-level cache.
    public static let queryBlock = 96
    /// Keys of a step. P and dS are 48 KiB each, which stay in a second-level cache of 512 KiB beside everything else at 64 channels.
    public static let keyBlock = 128

    /// Bytes of keys, values and their gradients that all queries of a task pass before the next ones: three quarters of a second-level
    /// cache of 2 MiB. Queries are packed once per pass, which takes about 1 part in 100 of its time.
    public static let passBytes = 3 << 19

    /// Keys of a pass.
    public static func passKeys(headDim: Int, valueDim: Int) -> Int {
        passBytes / (8 * (headDim + valueDim)) / keyBlock * keyBlock
    }

    /// Qᵀ and dOᵀ by panels of queries, both times the scale of the softmax.
    public var packedQuery: Int
    public var packedOutputGradient: Int
    /// Rows of Q and dO, padded to whole vectors.
    public var queryRows: Int
    public var outputGradientRows: Int
    /// −LSE, and −scale · Σ dO∘O.
    public var statistics: Int
    /// P and dS, [keys][queryBlock].
    public var probabilities: Int
    public var scoreGradients: Int
    /// Rows of K and V, padded to whole vectors, where those of the caller cannot be used in place.
    public var keys: Int
    public var values: Int
    /// Rows of K without what is not finite.
    public var finiteKeys: Int
    /// Memory for one tile.
    public var edge: Int
    public var byteCount: Int

    public init(headDim: Int, valueDim: Int) {
        let (head, value) = (Self.padded(headDim), Self.padded(valueDim))
        let rows = (Self.keyBlock + AttentionScratch.maximumTileRows) * Self.queryBlock
        packedQuery = 0
        packedOutputGradient = packedQuery + headDim * Self.queryBlock
        queryRows = packedOutputGradient + valueDim * Self.queryBlock
        outputGradientRows = queryRows + head * Self.queryBlock
        statistics = outputGradientRows + value * Self.queryBlock
        probabilities = statistics + 2 * Self.queryBlock
        scoreGradients = probabilities + rows
        keys = scoreGradients + rows
        values = keys + head * Self.keyBlock
        finiteKeys = values + value * Self.keyBlock
        edge = finiteKeys + head * Self.keyBlock
        byteCount = (edge + AttentionScratch.maximumTileRows * 3 * AttentionScratch.maximumLanes) * 4
    }

    /// Channels filled up to whole vectors of every level.
    public static func padded(_ channels: Int) -> Int {
        (channels + AttentionScratch.maximumLanes - 1) / AttentionScratch.maximumLanes * AttentionScratch.maximumLanes
    }
}

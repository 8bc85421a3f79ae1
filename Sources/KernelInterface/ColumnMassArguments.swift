// The operands of the sums of probabilities per key. Strides count elements.

/// Some query rows against a run of keys: what their probabilities sum to per key, or what makes scores probabilities.
///
///     s[r, k] = softmaxScale · q_r · k_k     for limits[r] ≤ k < limits[`limitStride` + r]; other keys are hidden from the row
///
/// With `mass`, the kernel adds Σ_r e^(s[r, k] − shifts[r]) · weights[r] to mass[k − `firstKey`]. Without, it takes `maxima` and
/// `sums` over the keys: m ← max(m, max_k s), l ← l · e^(m_old − m) + Σ_k e^(s − m).
public struct ColumnMassArguments {
    /// Adjacent rows `[queryRows][headDim]`.
    public var query: UnsafePointer<Float>
    /// 1…`ColumnMassScratch.maximumRows`.
    public var queryRows: Int
    /// Row 0 is key 0 of the sequence.
    public var key: RowOperand
    public var firstKey: Int
    public var endKey: Int
    public var headDim: Int
    public var softmaxScale: Float
    /// The keys of single rows: row i sees key j when limits[i] ≤ j < limits[`limitStride` + i]. Whole vectors of both are read, and
    /// rows from `queryRows` on see nothing.
    public var limits: UnsafePointer<Int32>
    public var limitStride: Int
    /// One number per row, read in whole vectors. Not read without `mass`.
    public var shifts: UnsafePointer<Float>?
    public var weights: UnsafePointer<Float>?
    /// One sum per key of the run, or nil.
    public var mass: UnsafeMutablePointer<Float>?
    /// One number per row, read and written in whole vectors, when there is no `mass`.
    public var maxima: UnsafeMutablePointer<Float>?
    public var sums: UnsafeMutablePointer<Float>?
    /// `ColumnMassScratch.byteCount` bytes, 64-byte aligned, contents undefined.
    public var scratch: UnsafeMutableRawPointer

    public init(
        query: UnsafePointer<Float>, queryRows: Int, key: RowOperand, firstKey: Int, endKey: Int, headDim: Int,
        softmaxScale: Float, limits: UnsafePointer<Int32>, limitStride: Int, scratch: UnsafeMutableRawPointer
    ) {
        self.query = query
        self.queryRows = queryRows
        self.key = key
        self.firstKey = firstKey
        self.endKey = endKey
        self.headDim = headDim
        self.softmaxScale = softmaxScale
        self.limits = limits
        self.limitStride = limitStride
        self.scratch = scratch
    }
}

/// The offsets of the kernel's scratch, in floats. Operators and kernels both compute them here, so that they cannot disagree.
public struct ColumnMassScratch: Sendable {
    /// Keys scored at once, as in `AttentionScratch`.
    public static let keyBlock = AttentionScratch.keyBlock
    /// The most query rows of a call: whole panels of every level.
    public static let maximumRows = AttentionScratch.maximumQueryRows

    public var packedQuery: Int
    public var scores: Int
    public var laneSums: Int
    public var keys: Int
    public var byteCount: Int

    public init(headDim: Int, stagesKeys: Bool) {
        packedQuery = 0
        scores = packedQuery + headDim * Self.maximumRows
        laneSums = scores + (Self.keyBlock + AttentionScratch.maximumTileRows) * 3 * AttentionScratch.maximumLanes
        keys = laneSums + Self.keyBlock * AttentionScratch.maximumLanes
        byteCount = (keys + (stagesKeys ? Self.keyBlock * headDim : 0)) * 4
    }
}

/// One place of tokens over time, each compared with the one before it.
///
/// Similarities are cosines, x_a · x_b / (|x_a| · |x_b|), and 0 when a row has only zeros. The first token has none.
public struct RowChainArguments {
    public var x: RowOperand
    public var channels: Int
    /// The rows of the chain, in their order.
    public var rows: UnsafePointer<Int32>
    public var count: Int
    /// Written at the row of each token but the first.
    public var similarities: UnsafeMutablePointer<Float>

    public init(
        x: RowOperand, channels: Int, rows: UnsafePointer<Int32>, count: Int, similarities: UnsafeMutablePointer<Float>
    ) {
        self.x = x
        self.channels = channels
        self.rows = rows
        self.count = count
        self.similarities = similarities
    }
}

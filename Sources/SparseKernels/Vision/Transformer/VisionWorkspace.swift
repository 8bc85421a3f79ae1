/// The memory of passes through vision layers, and the plan of their attention.
///
/// Layers of one configuration may use it in turn. It grows to what the largest pass needs, and a pass that is not larger
/// allocates nothing.
public struct VisionWorkspace: Sendable {
    /// `[rows, width]`: normalised rows.
    var normalized: Tensor<Float>
    /// `[rows, width]`: what is added to the residual stream.
    var update: Tensor<Float>
    /// `[rows, hidden]`: the inner rows of the MLP.
    var inner: Tensor<Float>
    var heads = HeadWorkspace()

    public init() {
        // An extent of 0 cannot overflow.
        let empty = try! Tensor<Float>(zeros: [0])
        normalized = empty
        update = empty
        inner = empty
    }

    /// Bytes that the workspace holds.
    public var byteCount: Int { (normalized.count + update.count + inner.count) * 4 + heads.byteCount }

    /// Makes room for some rows of a whole layer.
    mutating func prepare(rows: Int, _ c: VisionLayerConfiguration) throws(SparseKernelsError) {
        try reserve(rows, c.width, in: &normalized)
        try reserve(rows, c.width, in: &update)
        try reserve(rows, c.hidden, in: &inner)
        try heads.prepare(rows: rows, c)
    }
}

/// The part of the workspace that attention writes.
struct HeadWorkspace: Sendable {
    /// `[rows, 3 · heads · headDim]`: queries, keys and values.
    var projected: Tensor<Float>
    /// `[rows, heads · headDim]`: the output of attention.
    var attended: Tensor<Float>
    /// Keys, then values of one picture, those of a prefix first, `[heads, prefix + tokens, headDim]` each.
    var joined: Tensor<Float>
    private var plan: DenseAttention?

    init() {
        // An extent of 0 cannot overflow.
        let empty = try! Tensor<Float>(zeros: [0])
        projected = empty
        attended = empty
        joined = empty
    }

    var byteCount: Int { (projected.count + attended.count + joined.count) * 4 }

    /// Makes room for some rows.
    mutating func prepare(rows: Int, _ c: VisionLayerConfiguration) throws(SparseKernelsError) {
        try reserve(rows, 3 * c.innerWidth, in: &projected)
        try reserve(rows, c.innerWidth, in: &attended)
    }

    /// Makes room for keys and values of one picture with its prefix.
    mutating func prepare(keys tokens: Int, _ c: VisionLayerConfiguration) throws(SparseKernelsError) {
        try reserve(tokens, 2 * c.innerWidth, in: &joined)
    }

    /// The plan for one picture, made anew when the lengths change.
    mutating func attention(
        queries: Int, keys: Int, _ c: VisionLayerConfiguration, _ instructionSet: InstructionSet
    ) throws(SparseKernelsError) -> DenseAttention {
        if let plan, plan.shape.queryLength == queries, plan.shape.keyLength == keys, plan.shape.queryHeads == c.heads,
            plan.shape.headDim == c.headDim, plan.instructionSet == instructionSet
        {
            return plan
        }
        let shape = try AttentionShape(
            queryLength: queries, keyLength: keys, queryHeads: c.heads, kvHeads: c.heads, headDim: c.headDim)
        let plan = try DenseAttention(shape, instructionSet: instructionSet)
        self.plan = plan
        return plan
    }
}

/// Makes room for some rows in a tensor, whose contents may be lost.
private func reserve(_ rows: Int, _ columns: Int, in tensor: inout Tensor<Float>) throws(SparseKernelsError) {
    let (count, overflow) = rows.multipliedReportingOverflow(by: columns)
    try require(
        !overflow, .invalidShape, "x", expected: "rows whose memory fits 63 bits", actual: "\(rows) rows of \(columns)")
    if tensor.count < count { tensor = try Tensor(zeros: [count]) }
}

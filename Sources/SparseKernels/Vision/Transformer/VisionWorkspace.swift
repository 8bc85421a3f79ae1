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
    private var plan: VisionPlan?

    init() {
        // An extent of 0 cannot overflow.
        let empty = try! Tensor<Float>(zeros: [0])
        projected = empty
        attended = empty
    }

    var byteCount: Int { (projected.count + attended.count) * 4 }

    /// Makes room for some rows.
    mutating func prepare(rows: Int, _ c: VisionLayerConfiguration) throws(SparseKernelsError) {
        try reserve(rows, 3 * c.innerWidth, in: &projected)
        try reserve(rows, c.innerWidth, in: &attended)
    }

    /// The plan for one picture, made anew when the lengths change. A nil prefix is none.
    mutating func plan(
        tokens: Int, prefix: Int?, _ c: VisionLayerConfiguration, _ instructionSet: InstructionSet
    ) throws(SparseKernelsError) -> VisionPlan {
        if let plan, plan.isFor(tokens: tokens, prefix: prefix, c, instructionSet) { return plan }
        let shape = try AttentionShape(
            queryLength: tokens, keyLength: tokens, queryHeads: c.heads, kvHeads: c.heads, headDim: c.headDim)
        let plan: VisionPlan
        if let prefix {
            plan = .after(try PrefixAttention(shape, prefixLength: prefix, instructionSet: instructionSet))
        } else {
            plan = .own(try DenseAttention(shape, instructionSet: instructionSet))
        }
        self.plan = plan
        return plan
    }
}

/// The attention of the tokens of one picture: to each other, or also to a prefix.
enum VisionPlan: Sendable {
    case own(DenseAttention)
    case after(PrefixAttention)

    private var shape: AttentionShape {
        switch self {
        case .own(let plan): plan.shape
        case .after(let plan): plan.shape
        }
    }

    /// Tokens of the picture.
    var tokens: Int { shape.queryLength }

    /// Bytes of scratch that each thread of the pool needs.
    var scratchByteCount: Int {
        switch self {
        case .own(let plan): plan.scratchByteCount
        case .after(let plan): plan.scratchByteCount
        }
    }

    func isFor(
        tokens: Int, prefix: Int?, _ c: VisionLayerConfiguration, _ instructionSet: InstructionSet
    ) -> Bool {
        guard self.tokens == tokens, shape.queryHeads == c.heads, shape.headDim == c.headDim else { return false }
        switch self {
        case .own(let plan): return prefix == nil && plan.instructionSet == instructionSet
        case .after(let plan): return prefix == plan.prefixLength && plan.instructionSet == instructionSet
        }
    }
}

/// Makes room for some rows in a tensor, whose contents may be lost.
private func reserve(_ rows: Int, _ columns: Int, in tensor: inout Tensor<Float>) throws(SparseKernelsError) {
    let (count, overflow) = rows.multipliedReportingOverflow(by: columns)
    try require(
        !overflow, .invalidShape, "x", expected: "rows whose memory fits 63 bits", actual: "\(rows) rows of \(columns)")
    if tensor.count < count { tensor = try Tensor(zeros: [count]) }
}

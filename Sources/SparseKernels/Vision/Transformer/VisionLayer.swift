internal import KernelInterface

/// A layer of a vision transformer, of the kind that normalises before attention and MLP:
///
///     x ← x + attention(LayerNorm x)        x ← x + down(f(up(LayerNorm x)))
///
/// ```swift
/// let configuration = VisionLayerConfiguration(width: 1152, heads: 16, hidden: 4304)      // heads of 72 channels
/// let layer = try VisionLayer(configuration, weights, linear: .w8a8)
/// var workspace = VisionWorkspace()
/// try layer.run(&x, pictures: 4, workspace: &workspace)                        // x is [4 · tokens, width]
/// try layer.run(&low, keeping: &keys, workspace: &workspace)                   // keys and values of this layer are kept,
/// try layer.run(&high, after: keys, workspace: &workspace)                     // and other tokens attend to them, too
/// ```
///
/// All tokens of a picture attend to all of them. Pictures are computed in groups of about 4096 tokens, so that the rows between the
/// linear layers do not grow with the batch.
///
/// - Results are bitwise equal for every number of threads, and those of a picture do not depend on the other pictures.
/// - Non-finite input affects the rows of its own picture and no other. Tokens after a prefix see a non-finite prefix, too.
/// - Complexity: tokens · width · (4 · heads · headDim + 2 · hidden) multiply-adds of the linear layers and tokens · (prefix + tokens) ·
///   2 · heads · headDim of attention. No allocation when the workspace has seen as many tokens.
/// - Scratch: the workspace has 2 · width + 4 · heads · headDim + hidden floats per token of a group; operators take their scratch from the
///   pool. A prefix is read where it is.
/// - Source: Dosovitskiy et al., 2020 (arXiv 2010.11929); `SiglipEncoderLayer` and `CLIPEncoderLayer` of Hugging Face transformers.
public struct VisionLayer: Sendable {
    public let configuration: VisionLayerConfiguration
    public let linear: VisionLinearFormat
    public let attention: VisionAttention

    private let kernels: any KernelTable.Type
    private let attentionNorm: LayerNorm
    private let mlpNorm: LayerNorm
    private let up: VisionLinear
    private let down: VisionLinear

    /// - Parameters:
    ///   - configuration: the sizes.
    ///   - weights: of the layer.
    ///   - linear: the form of the linear layers.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` for extents that are out of range, and naming a tensor of another shape; `.invalidArgument` for a
    ///   tensor with an element that is not finite, or an ε that is negative; `.unsupportedInstructionSet`.
    public init(
        _ configuration: VisionLayerConfiguration, _ weights: VisionLayerWeights, linear: VisionLinearFormat = .float32,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let c = configuration
        attention = try VisionAttention(c, weights, linear: linear, instructionSet: instructionSet, on: pool)
        let set = attention.instructionSet
        self.configuration = c
        self.linear = linear
        kernels = set.kernels
        attentionNorm = try LayerNorm(
            weights.attentionNorm, named: "attentionNorm", channels: c.width, epsilon: c.epsilon, instructionSet: set)
        mlpNorm = try LayerNorm(
            weights.mlpNorm, named: "mlpNorm", channels: c.width, epsilon: c.epsilon, instructionSet: set)
        var (upWeights, downWeights) = (weights.up, weights.down)
        let epilogue: Epilogue
        switch c.activation {
        case .gelu: epilogue = .geluErf
        case .geluTanh: epilogue = .gelu
        case .quickGELU:
            // x / (1 + e^(−βx)) is SiLU(βx) / β, and both factors go into the weights.
            epilogue = .silu
            let slope: Float = 1.702
            upWeights = try weights.up.multiplied(by: slope, addend: slope)
            downWeights = try weights.down.multiplied(by: 1 / slope, addend: 1)
        }
        up = try VisionLinear(
            upWeights, named: "up", shape: [c.hidden, c.width], format: linear, epilogue: epilogue, instructionSet: set,
            on: pool)
        down = try VisionLinear(
            downWeights, named: "down", shape: [c.width, c.hidden], format: linear, instructionSet: set, on: pool)
    }

    /// The instruction set that `run` executes.
    public var instructionSet: InstructionSet { attention.instructionSet }

    /// Bytes of the weights of the linear layers, as they are in memory.
    public var byteCount: Int { attention.byteCount + up.byteCount + down.byteCount }

    // MARK: - Run

    /// Takes the tokens of some pictures through the layer.
    ///
    /// - Parameters:
    ///   - x: `[pictures · tokens, width]`, picture by picture; overwritten by what the next layer takes. May have no rows.
    ///   - pictures: how many, of equal numbers of tokens.
    ///   - workspace: memory that is used again from call to call.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other columns, no pictures, or rows that are no multiple of them; nothing is written then.
    public func run(
        _ x: inout Tensor<Float>, pictures: Int = 1, workspace: inout VisionWorkspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tokens = try configuration.tokens(of: x.shape, pictures: pictures)
        try run(&x, pictures: pictures, tokens: tokens, keys: .own, workspace: &workspace, on: pool)
    }

    /// Takes the tokens of some pictures through the layer, and keeps their keys and values.
    ///
    /// - Parameters: those of the call that keeps nothing; `keys` is overwritten, and its memory is used again where it fits.
    /// - Throws: the errors of that call.
    public func run(
        _ x: inout Tensor<Float>, pictures: Int = 1, keeping keys: inout VisionKeys, workspace: inout VisionWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tokens = try configuration.tokens(of: x.shape, pictures: pictures)
        try keys.prepare(pictures: pictures, tokens: tokens, configuration)
        try run(
            &x, pictures: pictures, tokens: tokens, keys: .kept(keys.addresses(), firstPicture: 0), workspace: &workspace,
            on: pool)
    }

    /// Takes tokens through the layer that also attend to the tokens of a prefix.
    ///
    /// - Parameters: those of the call without a prefix; `prefix` is what an earlier pass of this layer kept, of one picture, which
    ///   all pictures share, or of as many pictures as there are.
    /// - Throws: the errors of that call, and `.invalidShape` for a prefix of another layer or of other pictures.
    public func run(
        _ x: inout Tensor<Float>, pictures: Int = 1, after prefix: VisionKeys, workspace: inout VisionWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tokens = try configuration.tokens(of: x.shape, pictures: pictures)
        try prefix.validate(configuration, pictures: pictures)
        try run(
            &x, pictures: pictures, tokens: tokens, keys: .joined(prefix, firstPicture: 0), workspace: &workspace, on: pool)
    }

    /// Tokens that are computed together. The inner rows of the MLP, the widest of all, take 70 MB for 4304 channels.
    private static let rowsPerGroup = 4096

    private func run(
        _ x: inout Tensor<Float>, pictures: Int, tokens: Int, keys: VisionAttention.KeyPlace,
        workspace: inout VisionWorkspace, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        if tokens == 0 { return }
        let group = min(pictures, max(1, Self.rowsPerGroup / tokens))
        try workspace.prepare(rows: group * tokens, configuration)
        var first = 0
        while first < pictures {
            let count = min(group, pictures - first)
            let place: VisionAttention.KeyPlace =
                switch keys {
                case .own: .own
                case .kept(let memory, _): .kept(memory, firstPicture: first)
                case .joined(let prefix, _): .joined(prefix, firstPicture: first)
                }
            try run(
                &x, rows: first * tokens..<(first + count) * tokens, tokens: tokens, keys: place,
                normalized: &workspace.normalized, update: &workspace.update, inner: &workspace.inner,
                heads: &workspace.heads, on: pool)
            first += count
        }
    }

    /// Takes some rows of x, those of whole pictures, through the layer. The tensors are the parts of the workspace.
    private func run(
        _ x: inout Tensor<Float>, rows range: Range<Int>, tokens: Int, keys: VisionAttention.KeyPlace,
        normalized: inout Tensor<Float>, update: inout Tensor<Float>, inner: inout Tensor<Float>,
        heads: inout HeadWorkspace, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (c, rows) = (configuration, range.count)
        try attentionNorm.run(
            x.matrixView(named: "x").rows(range),
            into: MutableMatrixView(normalized.mutableSpan, rows: rows, columns: c.width), on: pool)
        try attention.run(
            MatrixView(normalized.span, rows: rows, columns: c.width),
            into: MutableMatrixView(update.mutableSpan, rows: rows, columns: c.width), tokens: tokens, keys: keys,
            workspace: &heads, on: pool)
        var stream = try x.mutableMatrixView(named: "x")
        try mlpNorm.run(
            adding: MatrixView(update.span, rows: rows, columns: c.width), to: stream.rows(range),
            into: MutableMatrixView(normalized.mutableSpan, rows: rows, columns: c.width), on: pool)
        try up.run(
            MatrixView(normalized.span, rows: rows, columns: c.width),
            into: MutableMatrixView(inner.mutableSpan, rows: rows, columns: c.hidden), on: pool)
        try down.run(
            MatrixView(inner.span, rows: rows, columns: c.hidden),
            into: MutableMatrixView(update.mutableSpan, rows: rows, columns: c.width), on: pool)
        var target = stream.rows(range)
        add(update.uniqueAddress(), to: RowTarget(&target), rows: rows, on: pool)
    }

    /// target += x.
    private func add(_ x: UnsafePointer<Float>, to target: RowTarget, rows: Int, on pool: WorkerPool) {
        let tasks = RowTasks(rows: rows, bytesPerRow: 12 * configuration.width)
        pool.run(
            AddRowsCall(kernels: kernels, x: x, target: target, columns: configuration.width, tasks: tasks), tasks)
    }
}

/// Adds rows to others.
private struct AddRowsCall: PoolCall {
    let kernels: any KernelTable.Type
    let x: UnsafePointer<Float>
    let target: RowTarget
    let columns: Int
    let tasks: RowTasks

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let first = tasks.first(task)
        let y = target.from(first).base.assumingMemoryBound(to: Float.self)
        var arguments = AddRowsArguments(
            x: x + first * columns, xStride: columns, y: y, yStride: target.stride, rows: tasks.count(task),
            columns: columns)
        kernels.addScaledRows(&arguments)
    }
}

extension VisionLayerWeights.Affine {
    /// The weight times one factor, and the bias times another.
    fileprivate func multiplied(by factor: Float, addend: Float) throws(SparseKernelsError) -> Self {
        Self(
            weight: try Tensor(weight.shape, weight.elements.map { $0 * factor }),
            bias: try bias.map { bias throws(SparseKernelsError) in
                try Tensor(bias.shape, bias.elements.map { $0 * addend })
            })
    }
}

internal import KernelInterface

/// The attention of a vision transformer's layer: projections to queries, keys and values, attention of every token of a picture to
/// all tokens of the picture, and the projection of its output.
///
///     [q; k; v] = W·x + b        q, k ← LayerNorm of every head, where the layer has them
///     y = P·softmax(q·kᵀ / √headDim)·v + c
///
/// ```swift
/// let attention = try VisionAttention(configuration, weights)
/// try attention.run(x, into: &y, pictures: 2, workspace: &workspace)
/// try attention.run(x, into: &y, keeping: &low, workspace: &workspace)        // its keys and values are kept
/// try attention.run(others, into: &z, after: low, workspace: &workspace)      // and other tokens attend to them, too
/// ```
///
/// There is no mask and no rotation. With a prefix, tokens attend to the prefix and to each other, and the prefix is only read.
///
/// - Results are bitwise equal for every number of threads, and those of a picture do not depend on the other pictures.
/// - Non-finite input affects the rows of its own picture, which all see it, and no other.
/// - Complexity: tokens · width · 4 · heads · headDim multiply-adds of the projections, and tokens · (prefix + tokens) · 2 · heads ·
///   headDim of attention.
/// - Scratch: the workspace has 4 · heads · headDim floats per token; `scratchByteCount` per thread is kept by the pool. A prefix is read
///   where it is.
/// - Source: Dosovitskiy et al., 2020 (arXiv 2010.11929); PS3, `Attention_w_KVCache`, for the prefix.
public struct VisionAttention: Sendable {
    public let configuration: VisionLayerConfiguration
    /// The instruction set that `run` executes.
    public let instructionSet: InstructionSet
    private let kernels: any KernelTable.Type
    private let queryKeyValue: VisionLinear
    private let queryNorm: LayerNorm?
    private let keyNorm: LayerNorm?
    private let projection: VisionLinear

    /// - Parameters:
    ///   - configuration: the sizes.
    ///   - weights: of the layer, of which those of the attention are used.
    ///   - linear: the form of the linear layers.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` for extents that are out of range, and naming a tensor of another shape; `.invalidArgument` for a
    ///   tensor with an element that is not finite, or an ε that is negative; `.unsupportedInstructionSet`.
    public init(
        _ configuration: VisionLayerConfiguration, _ weights: VisionLayerWeights, linear: VisionLinearFormat = .float32,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try configuration.validate()
        let c = configuration
        let set = try InstructionSet.resolve(instructionSet)
        self.configuration = c
        self.instructionSet = set
        kernels = set.kernels
        queryKeyValue = try VisionLinear(
            weights.queryKeyValue, named: "queryKeyValue", shape: [3 * c.innerWidth, c.width], format: linear,
            instructionSet: set, on: pool)
        projection = try VisionLinear(
            weights.projection, named: "projection", shape: [c.width, c.innerWidth], format: linear, instructionSet: set,
            on: pool)
        queryNorm = try weights.queryNorm.map { norm throws(SparseKernelsError) in
            try LayerNorm(norm, named: "queryNorm", channels: c.headDim, epsilon: c.headEpsilon, instructionSet: set)
        }
        keyNorm = try weights.keyNorm.map { norm throws(SparseKernelsError) in
            try LayerNorm(norm, named: "keyNorm", channels: c.headDim, epsilon: c.headEpsilon, instructionSet: set)
        }
    }

    /// Bytes of the weights of the linear layers, as they are in memory.
    public var byteCount: Int { queryKeyValue.byteCount + projection.byteCount }

    /// Bytes of scratch that each thread of the pool needs for tokens after a prefix, the workspace aside.
    public func scratchByteCount(tokens: Int, prefix: Int = 0) throws(SparseKernelsError) -> Int {
        var workspace = HeadWorkspace()
        let plan = try workspace.plan(tokens: tokens, prefix: prefix, configuration, instructionSet)
        return max(plan.scratchByteCount, queryKeyValue.scratchByteCount, projection.scratchByteCount)
    }

    // MARK: - Run

    /// Computes y for the tokens of some pictures.
    ///
    /// - Parameters:
    ///   - x: `[pictures · tokens, width]`, picture by picture.
    ///   - y: as many rows and columns, overwritten.
    ///   - pictures: how many, of equal numbers of tokens.
    ///   - workspace: memory that is used again from call to call.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for other columns, no pictures, or rows that are no multiple of them; nothing is written then.
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, pictures: Int = 1, workspace: inout VisionWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tokens = try tokens(x.shape, y.shape, pictures)
        try workspace.heads.prepare(rows: x.shape[0], configuration)
        try run(
            x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), tokens: tokens, keys: .own,
            workspace: &workspace.heads, on: pool)
    }

    /// Computes y, and keeps the keys and values of the tokens.
    ///
    /// - Parameters: those of the call that keeps nothing; `keys` is overwritten, and its memory is used again where it fits.
    /// - Throws: the errors of that call.
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, pictures: Int = 1, keeping keys: inout VisionKeys,
        workspace: inout VisionWorkspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tokens = try tokens(x.shape, y.shape, pictures)
        try workspace.heads.prepare(rows: x.shape[0], configuration)
        try keys.prepare(pictures: pictures, tokens: tokens, configuration)
        try run(
            x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), tokens: tokens,
            keys: .kept(keys.addresses(), firstPicture: 0), workspace: &workspace.heads, on: pool)
    }

    /// Computes y for tokens that also attend to the tokens of a prefix.
    ///
    /// - Parameters: those of the call without a prefix; `prefix` is what an earlier pass kept, of one picture, which all pictures
    ///   share, or of as many pictures as there are.
    /// - Throws: the errors of that call, and `.invalidShape` for a prefix of another layer or of other pictures.
    public func run(
        _ x: Tensor<Float>, into y: inout Tensor<Float>, pictures: Int = 1, after prefix: VisionKeys,
        workspace: inout VisionWorkspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let tokens = try tokens(x.shape, y.shape, pictures)
        try prefix.validate(configuration, pictures: pictures)
        try workspace.heads.prepare(rows: x.shape[0], configuration)
        try run(
            x.matrixView(named: "x"), into: y.mutableMatrixView(named: "y"), tokens: tokens,
            keys: .joined(prefix, firstPicture: 0), workspace: &workspace.heads, on: pool)
    }

    /// Tokens of each picture.
    private func tokens(_ x: [Int], _ y: [Int], _ pictures: Int) throws(SparseKernelsError) -> Int {
        let tokens = try configuration.tokens(of: x, pictures: pictures)
        try require(y == x, .invalidShape, "y", expected: "\(x), as x", actual: "\(y)")
        return tokens
    }

    // MARK: - Rows

    /// Where the keys and values of a pass are.
    enum KeyPlace {
        /// Where the projection wrote them.
        case own
        /// In memory of the caller's, `[pictures · heads, tokens, headDim]`.
        case kept(
            (keys: UnsafeMutablePointer<Float>, values: UnsafeMutablePointer<Float>), firstPicture: Int)
        /// Where the projection wrote them, and those of a prefix before them.
        case joined(VisionKeys, firstPicture: Int)
    }

    /// Computes y for whole pictures. The workspace has room, and extents were checked.
    func run(
        _ x: MatrixView<Float>, into y: consuming MutableMatrixView<Float>, tokens: Int, keys: KeyPlace,
        workspace: inout HeadWorkspace, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (c, rows) = (configuration, x.rows)
        if rows == 0 { return }
        try queryKeyValue.run(
            x, into: MutableMatrixView(workspace.projected.mutableSpan, rows: rows, columns: 3 * c.innerWidth), on: pool)
        let all = try TensorGeometry(heads: 3 * c.heads, tokens: rows, channels: c.headDim, layout: .nhd)
        if let queryNorm {
            try queryNorm.normalize(
                MutableTensorView(workspace.projected.mutableSpan, geometry: all).heads(0..<c.heads), on: pool)
        }
        if let keyNorm {
            try keyNorm.normalize(
                MutableTensorView(workspace.projected.mutableSpan, geometry: all).heads(c.heads..<2 * c.heads), on: pool)
        }
        var prefix: Int?
        if case .joined(let rows, _) = keys { prefix = rows.tokens }
        let plan = try workspace.plan(tokens: tokens, prefix: prefix, c, instructionSet)
        for picture in 0..<rows / tokens {
            try attend(plan, picture, workspace.projected, all, keys, into: &workspace.attended, on: pool)
        }
        try projection.run(
            MatrixView(workspace.attended.span, rows: rows, columns: c.innerWidth), into: y, on: pool)
    }

    /// Attention of the tokens of one picture.
    private func attend(
        _ plan: VisionPlan, _ picture: Int, _ projected: Tensor<Float>, _ all: TensorGeometry, _ place: KeyPlace,
        into attended: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (c, tokens) = (configuration, plan.tokens)
        let first = picture * tokens
        let rows = try TensorView(projected.span, geometry: all).tokens(first..<first + tokens)
        let geometry = try TensorGeometry(heads: c.heads, tokens: tokens, channels: c.headDim, layout: .nhd)
        let output = try MutableTensorView(
            attended.mutableSpan._consumingExtracting((first * c.innerWidth)...), geometry: geometry)
        let heads = c.heads
        switch (plan, place) {
        case (.after(let attention), .joined(let prefix, let firstPicture)):
            let start = (prefix.pictures == 1 ? 0 : firstPicture + picture) * heads
            try attention.run(
                query: rows.heads(0..<heads), prefixKey: prefix.keys.view(named: "prefix.keys").heads(start..<start + heads),
                prefixValue: prefix.values.view(named: "prefix.values").heads(start..<start + heads),
                key: rows.heads(heads..<2 * heads), value: rows.heads(2 * heads..<3 * heads), output: output, on: pool)
        case (.own(let attention), .kept(let memory, let firstPicture)):
            let count = tokens * c.innerWidth
            let offset = (firstPicture + picture) * count
            copyKeys(of: picture, projected, tokens: tokens, to: (memory.keys + offset, memory.values + offset), on: pool)
            // They are the caller's memory, which outlives the call.
            let keyRows = UnsafeBufferPointer(start: memory.keys + offset, count: count)
            let valueRows = UnsafeBufferPointer(start: memory.values + offset, count: count)
            try attention.run(
                query: rows.heads(0..<heads),
                key: TensorView(keyRows.span, heads: heads, tokens: tokens, channels: c.headDim),
                value: TensorView(valueRows.span, heads: heads, tokens: tokens, channels: c.headDim), output: output, on: pool)
        case (.own(let attention), _):
            try attention.run(
                query: rows.heads(0..<heads), key: rows.heads(heads..<2 * heads), value: rows.heads(2 * heads..<3 * heads),
                output: output, on: pool)
        case (.after, _): preconditionFailure("a plan with a prefix, and none in the call")
        }
    }

    /// Copies the keys and values of a picture to where they are kept, `[heads, tokens, headDim]`.
    private func copyKeys(
        of picture: Int, _ projected: Tensor<Float>, tokens: Int,
        to target: (keys: UnsafeMutablePointer<Float>, values: UnsafeMutablePointer<Float>), on pool: WorkerPool
    ) {
        let c = configuration
        projected.span.withUnsafeBufferPointer { rows in
            let call = HeadRowsCall(
                kernels: kernels, source: rows.baseAddress! + picture * tokens * 3 * c.innerWidth + c.innerWidth,
                stride: 3 * c.innerWidth, valueOffset: c.innerWidth, rows: tokens, heads: c.heads, headDim: c.headDim,
                keys: target.keys, values: target.values)
            pool.run(call, tasks: 2 * c.heads, work: 16 * tokens * c.innerWidth)
        }
    }
}

/// Copies rows of keys and values head by head. A task is one head of one of the two.
private struct HeadRowsCall: PoolCall {
    let kernels: any KernelTable.Type
    /// The keys of the first head, in rows with those of the other heads.
    let source: UnsafePointer<Float>
    let stride: Int
    /// Floats from keys to values.
    let valueOffset: Int
    let rows: Int
    let heads: Int
    let headDim: Int
    let keys: UnsafeMutablePointer<Float>
    let values: UnsafeMutablePointer<Float>

    func perform(task: Int, scratch: UnsafeMutableRawPointer) {
        let (isValue, head) = (task >= heads, task % heads)
        let operand = RowOperand(
            base: UnsafeRawPointer(source + head * headDim + (isValue ? valueOffset : 0)), stride: stride, type: .float32)
        kernels.stageRows(
            operand, first: 0, count: rows, channels: headDim,
            into: (isValue ? values : keys) + head * rows * headDim)
    }
}

extension VisionLayerConfiguration {
    /// Tokens of each of some pictures whose rows are a matrix of this shape.
    /// - Throws: `.invalidShape` for another matrix, no pictures, or rows that are no multiple of them.
    func tokens(of x: [Int], pictures: Int) throws(SparseKernelsError) -> Int {
        try require(pictures >= 1, .invalidShape, "pictures", expected: "at least 1", actual: "\(pictures)")
        try require(
            x.count == 2 && x[1] == width, .invalidShape, "x", expected: "[pictures · tokens, \(width)]", actual: "\(x)")
        try require(
            x[0] % pictures == 0, .invalidShape, "x", expected: "rows of \(pictures) pictures of equal size",
            actual: "\(x[0]) rows")
        return x[0] / pictures
    }
}

extension LayerNorm {
    /// A norm of a layer whose tensors are named after `name`.
    init(
        _ weights: VisionLayerWeights.Affine, named name: String, channels: Int, epsilon: Float,
        instructionSet: InstructionSet
    ) throws(SparseKernelsError) {
        do {
            try self.init(
                channels: channels, weight: weights.weight, bias: weights.bias, epsilon: epsilon,
                instructionSet: instructionSet)
        } catch {
            throw SparseKernelsError(
                error.code, name + "." + error.argument, expected: error.expected, actual: error.actual)
        }
    }
}

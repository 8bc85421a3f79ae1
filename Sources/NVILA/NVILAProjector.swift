public import SparseKernels

/// The projector between vision tower and language model: space-to-channel, norms and linear layers, which leave a quarter or a ninth of
/// the tokens.
///
/// The reshape is a part of the first norm (``SpaceToChannelNorm``), GELU one of the linear layers. Frames are taken a few at a time, so
/// that what lies between the layers stays in the caches.
///
/// ```swift
/// let projector = try NVILAProjector(weights, .twoByTwo, grid: GridSize(side: 32))
/// let y = try projector(features)  // [frames, 1024, channels] → [frames, 256, hidden]
/// ```
///
/// - Exactness: that of the operators. GELU is the exact one, with the error function.
/// - Non-finite features affect their own cell only.
/// - Results are bitwise equal for every number of threads, and those of a frame do not depend on the other frames.
/// - Complexity: the multiply-adds of the linear layers.
/// - Scratch: ``NVILAProjectorWorkspace``, and that of the operators.
/// - Source: NVILA (arXiv 2412.04468), section 2.2; `MultimodalProjector`.
public struct NVILAProjector: Sendable {
    public let downsampling: NVILADownsampling
    /// Grid, cells and channels of a frame.
    public let reshape: SpaceToChannel
    /// Channels of the result.
    public let outFeatures: Int
    private let norm: SpaceToChannelNorm
    private let first: NVILALinear
    private let middle: (norm: LayerNorm, linear: NVILALinear)?
    private let last: NVILALinear

    /// Rows that go through the layers together: enough for products to reach their speed, few enough for the caches.
    private static let rowsPerPass = 1024
    private static let epsilon: Float = 1e-5

    /// - Parameters:
    ///   - weights: norms and linear layers in their order.
    ///   - downsampling: which of the two.
    ///   - grid: tokens of a frame, or of a board of ``DynamicS2Merge``.
    ///   - format: of the linear layers.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads that reorder the weights.
    /// - Throws: `.invalidShape` naming the norm or linear layer that is missing or does not fit the one before, `.invalidArgument` for
    ///   numbers that are not finite, `.unsupportedInstructionSet`.
    public init(
        _ weights: NVILAProjectorWeights, _ downsampling: NVILADownsampling, grid: GridSize,
        format: NVILALinearFormat = .float32, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let isLong = downsampling == .threeByThree
        try require(
            weights.norms.count == (isLong ? 2 : 1), .invalidShape, "norms", expected: isLong ? "2" : "1",
            actual: "\(weights.norms.count)")
        try require(
            weights.linears.count == (isLong ? 3 : 2), .invalidShape, "linears", expected: isLong ? "3" : "2",
            actual: "\(weights.linears.count)")
        let cellChannels = weights.norms[0].weight.count
        let tokens = downsampling.factor * downsampling.factor
        try require(
            cellChannels >= tokens && cellChannels % tokens == 0, .invalidShape, "norms[0].weight",
            expected: "a multiple of \(tokens)", actual: "\(weights.norms[0].weight.shape)")
        self.downsampling = downsampling
        reshape = try SpaceToChannel(grid: grid, factor: downsampling.factor, channels: cellChannels / tokens)
        norm = try SpaceToChannelNorm(
            reshape, weight: weights.norms[0].weight, bias: weights.norms[0].bias, epsilon: Self.epsilon,
            instructionSet: instructionSet)
        var width = cellChannels
        var layers: [NVILALinear] = []
        for (index, part) in weights.linears.enumerated() {
            let shape = part.weight.shape
            try require(
                shape.count == 2 && shape[1] == width && shape[0] >= 1, .invalidShape, "linears[\(index)].weight",
                expected: "[outFeatures, \(width)]", actual: "\(shape)")
            try require(
                part.bias.shape == [shape[0]], .invalidShape, "linears[\(index)].bias", expected: "\([shape[0]])",
                actual: "\(part.bias.shape)")
            let isLast = index + 1 == weights.linears.count
            layers.append(
                try NVILALinear(
                    weight: part.weight, bias: part.bias, epilogue: isLast ? .none : .geluErf, format: format,
                    instructionSet: instructionSet, on: pool))
            width = shape[0]
        }
        first = layers[0]
        last = layers[layers.count - 1]
        outFeatures = width
        if isLong {
            let parameters = weights.norms[1]
            try require(
                parameters.weight.shape == [layers[0].outFeatures], .invalidShape, "norms[1].weight",
                expected: "\([layers[0].outFeatures])", actual: "\(parameters.weight.shape)")
            middle = (
                try LayerNorm(
                    channels: layers[0].outFeatures, weight: parameters.weight, bias: parameters.bias, epsilon: Self.epsilon,
                    instructionSet: instructionSet), layers[1]
            )
        } else {
            middle = nil
        }
    }

    /// Bytes of the linear layers.
    public var byteCount: Int { first.byteCount + (middle?.linear.byteCount ?? 0) + last.byteCount }

    /// Frames that go through the layers together.
    private var framesPerPass: Int { max(1, Self.rowsPerPass / reshape.cells.count) }

    /// Memory between the layers, for up to so many frames per call; more frames need no more.
    public func makeWorkspace(frames: Int = .max) throws(SparseKernelsError) -> NVILAProjectorWorkspace {
        let rows = min(max(1, frames), framesPerPass) * reshape.cells.count
        return try NVILAProjectorWorkspace(
            rows: rows, cellChannels: reshape.cellChannels, hidden: first.outFeatures,
            middle: middle?.linear.outFeatures ?? 0)
    }

    /// Projects tokens.
    ///
    /// - Parameters:
    ///   - x: a row of `reshape.channels` per token, frame after frame, in raster order.
    ///   - y: a row of `outFeatures` per cell, overwritten.
    ///   - workspace: of this projector, grown if it has fewer rows than the call wants.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, workspace: inout NVILAProjectorWorkspace,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let (tokens, cells) = (reshape.grid.count, reshape.cells.count)
        try require(
            x.columns == reshape.channels && x.rows % tokens == 0, .invalidShape, "x",
            expected: "a multiple of the \(tokens) tokens of \(reshape.grid) with \(reshape.channels) channels",
            actual: "\(x.rows) × \(x.columns)")
        let frames = x.rows / tokens
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (frames * cells, outFeatures))
        let step = framesPerPass
        if frames > 0, workspace.rows < min(frames, step) * cells || !workspace.fits(self) {
            workspace = try makeWorkspace(frames: frames)
        }
        var frame = 0
        while frame < frames {
            let count = min(step, frames - frame)
            try pass(
                x.rows(frame * tokens..<(frame + count) * tokens), into: y.rows(frame * cells..<(frame + count) * cells),
                rows: count * cells, &workspace.cells, &workspace.hidden, &workspace.middle, on: pool)
            frame += count
        }
    }

    /// Takes some frames through all layers. The memory between the layers comes in parts, each of which is either read or written.
    private func pass<X: AttentionElement, Y: AttentionElement>(
        _ x: MatrixView<X>, into y: consuming MutableMatrixView<Y>, rows: Int, _ cells: inout Tensor<Float>,
        _ hidden: inout Tensor<Float>, _ narrow: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (channels, width) = (reshape.cellChannels, first.outFeatures)
        try norm.run(x, into: MutableMatrixView(cells.mutableSpan, rows: rows, columns: channels), on: pool)
        try first.run(
            MatrixView(cells.span, rows: rows, columns: channels),
            into: MutableMatrixView(hidden.mutableSpan, rows: rows, columns: width), on: pool)
        guard let middle else {
            try last.run(MatrixView(hidden.span, rows: rows, columns: width), into: y, on: pool)
            return
        }
        // The cells have been read; their memory has room for the narrower rows.
        try middle.norm.run(
            MatrixView(hidden.span, rows: rows, columns: width),
            into: MutableMatrixView(cells.mutableSpan, rows: rows, columns: width), on: pool)
        let narrowWidth = middle.linear.outFeatures
        try middle.linear.run(
            MatrixView(cells.span, rows: rows, columns: width),
            into: MutableMatrixView(narrow.mutableSpan, rows: rows, columns: narrowWidth), on: pool)
        try last.run(MatrixView(narrow.span, rows: rows, columns: narrowWidth), into: y, on: pool)
    }

    /// The projected tokens, `[…, cells, outFeatures]`, in a new tensor.
    /// - Parameter x: `[…, rows, columns, channels]` or `[…, tokens, channels]`.
    /// - Throws: `.invalidShape` for other tokens.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var shape = try reshape.shape(of: x.shape)
        shape[shape.count - 1] = outFeatures
        var y = try Tensor<Float>(zeros: shape)
        var workspace = try makeWorkspace()
        try run(x, into: &y, workspace: &workspace, on: pool)
        return y
    }

    /// Projects tokens into a tensor that is reused from call to call. All axes but the last are rows.
    /// - Throws: the errors of `run` with views.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, workspace: inout NVILAProjectorWorkspace, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x.rowsView(named: "x"), into: y.mutableRowsView(named: "y"), workspace: &workspace, on: pool)
    }
}

/// What lies between the layers of a projector. It is reused from call to call.
public struct NVILAProjectorWorkspace: Sendable {
    let rows: Int
    var cells: Tensor<Float>
    var hidden: Tensor<Float>
    var middle: Tensor<Float>

    init(rows: Int, cellChannels: Int, hidden: Int, middle: Int) throws(SparseKernelsError) {
        self.rows = rows
        cells = try Tensor(zeros: [rows, max(cellChannels, hidden)])
        self.hidden = try Tensor(zeros: [rows, hidden])
        self.middle = try Tensor(zeros: [rows, middle])
    }

    /// Bytes of memory.
    public var byteCount: Int { (cells.count + hidden.count + middle.count) * 4 }

    /// Whether rows are as wide as a projector's.
    func fits(_ projector: NVILAProjector) -> Bool { projector.fits(cells: cells, hidden: hidden, middle: middle) }
}

extension NVILAProjector {
    fileprivate func fits(cells: Tensor<Float>, hidden: Tensor<Float>, middle rows: Tensor<Float>) -> Bool {
        cells.shape[1] == max(reshape.cellChannels, first.outFeatures) && hidden.shape[1] == first.outFeatures
            && rows.shape[1] == middle?.linear.outFeatures ?? 0
    }
}

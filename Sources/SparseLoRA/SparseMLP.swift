public import SparseKernels
internal import SparseKernelsTraining

/// A frozen gated feed-forward layer, forward and backward, of which context tokens use some hidden channels and output tokens all.
///
///     h = f(x·W_gate[I,:]ᵀ) ⊙ (x·W_up[I,:]ᵀ),   y = h·W_down[:,I]ᵀ
///     dh = dy·W_down[:,I],   dx = dgate·W_gate[I,:] + dup·W_up[I,:]
///
/// ```swift
/// let layer = try SparseMLP(gate: gate, up: up, down: down)
/// var (tape, workspace) = (SparseMLP.Tape(), SparseLoRAWorkspace())
/// let kept = try estimator.channels(x, batch: 8, sparsity: 0.99)
/// try layer.run(x: x, split: split, channels: kept, tape: &tape, workspace: &workspace, y: y)
/// try layer.gradient(dy, tape: tape, workspace: &workspace, dx: dx)
/// ```
///
/// There is no gradient of the weights, which are frozen. Without channels the layer is dense.
///
/// Gate and up are one weight of twice the channels, so that a pass is two products. Rows of one kind that are adjacent in the batch are
/// one product of each; nothing is gathered.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: 3 · rows · channels · width multiply-adds forward, and as many backward.
/// - Memory: a tape has 2 · channels floats per row; the workspace 3 · channels for each row of the longest run. Nothing is allocated once
///   both have grown, except a list of channels when these change.
/// - Source: SparseLoRA (arXiv 2506.16500), section 3; `SparseLlamaMLP` in `spft/modules/mlp.py`.
public struct SparseMLP: Sendable {
    /// What the backward pass needs. It belongs to one layer and is reused from step to step.
    public struct Tape: Sendable {
        /// Gate and up side by side: sparse rows with two columns per picked channel, run by run, then dense rows.
        var pairs = FloatBuffer()
        var segments: TokenSegments?
        var channels: ChannelSubset?
        /// The picked channels of gate and of up.
        var pairChannels: ChannelSubset?
        /// Whether sparse rows have two columns for every channel, as adapters need it.
        var hasAllChannels = false
        /// x·aᵀ of the adapters of gate, up and down.
        var projected: [Tensor<Float>] = []

        public init() {}

        /// Bytes that it holds.
        public var byteCount: Int { 4 * (pairs.elements.count + projected.reduce(0) { $0 + $1.count }) }
    }

    /// Gate on top of up.
    let pair: SparseLinear
    let down: SparseLinear
    let activation: GatedActivation
    let activationGradient: GatedActivationGradient
    let adapted: AdaptedMLP?

    /// Makes a layer.
    ///
    /// - Parameters:
    ///   - gate: `[channels, width]`, kept in its type, as the others.
    ///   - up: `[channels, width]`.
    ///   - down: `[width, channels]`.
    ///   - function: f.
    ///   - loraRank: rank of adapters of the three layers; nil means none.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for weights that do not fit each other, and the errors of `SparseLinear` and `LoRAOperator`.
    public init<W: AttentionElement>(
        gate: Tensor<W>, up: Tensor<W>, down: Tensor<W>, function: GatedActivation.Function = .silu,
        loraRank: Int? = nil, instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            gate.shape.count == 2, .invalidShape, "gate", expected: "[channels, width]", actual: "\(gate.shape)")
        try require(up.shape == gate.shape, .invalidShape, "up", expected: "\(gate.shape)", actual: "\(up.shape)")
        let expected = [gate.shape[1], gate.shape[0]]
        try require(down.shape == expected, .invalidShape, "down", expected: "\(expected)", actual: "\(down.shape)")
        pair = try SparseLinear(
            weight: Self.stacked(gate, up), picking: .outputs, instructionSet: instructionSet, on: pool)
        self.down = try SparseLinear(weight: down, picking: .inputs, instructionSet: instructionSet, on: pool)
        activation = try GatedActivation(function, instructionSet: instructionSet)
        activationGradient = try GatedActivationGradient(function, instructionSet: instructionSet)
        if let loraRank { adapted = try AdaptedMLP(pair: pair, down: self.down, rank: loraRank) } else { adapted = nil }
    }

    /// Features of a token.
    public var width: Int { down.outFeatures }
    /// Hidden channels.
    public var channelCount: Int { down.inFeatures }

    // MARK: - Forward

    /// Computes y for a batch.
    ///
    /// - Parameters:
    ///   - x: rows × width, sequence by sequence.
    ///   - split: which positions are dense; nil means that all tokens are sparse.
    ///   - channels: those that sparse tokens use; nil means all, a dense layer.
    ///   - tape: keeps what the backward pass needs.
    ///   - workspace: buffers.
    ///   - y: rows × width, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees; nothing is written then.
    public func run(
        x: MatrixView<Float>, split: TokenSplit? = nil, channels: ChannelSubset? = nil, tape: inout Tape,
        workspace: inout SparseLoRAWorkspace, y: consuming MutableMatrixView<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let segments = try prepare(x, y.rows, y.columns, split: split, channels: channels, &tape)
        tape.hasAllChannels = false
        let sparse = 2 * (tape.channels?.count ?? 0)
        try tape.pairs.reserve(
            rows: 1, columns: checkedSize(segments.sparseRows, sparse, segments.denseRows, 2 * channelCount))
        try workspace.compact.reserve(rows: 1, columns: largestHidden(segments, tape.channels))
        var position = 0
        for index in 0..<segments.sparseCount {
            let rows = segments.sparse(index)
            try run(
                x: x, rows, at: position, tape.channels, tape.pairChannels, &tape.pairs.elements,
                hidden: &workspace.compact.elements, &y, pool)
            position += rows.count * sparse
        }
        for index in 0..<segments.denseCount {
            let rows = segments.dense(index)
            try run(
                x: x, rows, at: position, nil, nil, &tape.pairs.elements, hidden: &workspace.compact.elements, &y, pool)
            position += rows.count * 2 * channelCount
        }
    }

    // Buffers are parameters of their own, because a view of one field of a tape or workspace keeps the others from being used.

    /// One run of rows of a kind.
    private func run(
        x: MatrixView<Float>, _ rows: Range<Int>, at position: Int, _ channels: ChannelSubset?,
        _ pairChannels: ChannelSubset?, _ pairs: inout Tensor<Float>, hidden: inout Tensor<Float>,
        _ y: inout MutableMatrixView<Float>, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        if rows.isEmpty { return }
        let count = channels?.count ?? channelCount
        var span = pairs.mutableSpan
        try pair.run(
            x: x.rows(rows), channels: pairChannels,
            y: MutableMatrixView(span._mutatingExtracting(position...), rows: rows.count, columns: 2 * count), on: pool)
        try activation.run(
            halvesOf: MatrixView(pairs.span.extracting(position...), rows: rows.count, columns: 2 * count),
            into: MutableMatrixView(hidden.mutableSpan, rows: rows.count, columns: count), on: pool)
        try down.run(
            x: MatrixView(hidden.span, rows: rows.count, columns: count), channels: channels, y: y.rows(rows), on: pool)
    }

    // MARK: - Backward

    /// Computes the gradient of the last `run` with respect to x.
    ///
    /// - Parameters:
    ///   - dy: rows × width.
    ///   - tape: that of `run`.
    ///   - workspace: buffers.
    ///   - dx: rows × width.
    ///   - accumulates: whether the gradient is added to what dx holds, instead of replacing it.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with those of `run`, `.invalidArgument` for a new tape; nothing is written
    ///   then.
    public func gradient(
        _ dy: MatrixView<Float>, tape: Tape, workspace: inout SparseLoRAWorkspace,
        dx: consuming MutableMatrixView<Float>, accumulates: Bool = false, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let segments = try check(dy, dx.rows, dx.columns, tape, hasAllChannels: false)
        let hidden = try largestHidden(segments, tape.channels)
        try workspace.compact.reserve(rows: 1, columns: hidden)
        try workspace.pair.reserve(rows: 2, columns: hidden)
        let sparse = 2 * (tape.channels?.count ?? 0)
        var position = 0
        for index in 0..<segments.sparseCount {
            let rows = segments.sparse(index)
            try gradient(
                dy, rows, at: position, tape.channels, tape.pairChannels, tape.pairs.elements,
                hidden: &workspace.compact.elements, pairs: &workspace.pair.elements, &dx, accumulates, pool)
            position += rows.count * sparse
        }
        for index in 0..<segments.denseCount {
            let rows = segments.dense(index)
            try gradient(
                dy, rows, at: position, nil, nil, tape.pairs.elements, hidden: &workspace.compact.elements,
                pairs: &workspace.pair.elements, &dx, accumulates, pool)
            position += rows.count * 2 * channelCount
        }
    }

    /// One run of rows of a kind.
    private func gradient(
        _ dy: MatrixView<Float>, _ rows: Range<Int>, at position: Int, _ channels: ChannelSubset?,
        _ pairChannels: ChannelSubset?, _ values: Tensor<Float>, hidden: inout Tensor<Float>, pairs: inout Tensor<Float>,
        _ dx: inout MutableMatrixView<Float>, _ accumulates: Bool, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        if rows.isEmpty { return }
        let count = channels?.count ?? channelCount
        try down.inputGradient(
            dy.rows(rows), channels: channels,
            into: MutableMatrixView(hidden.mutableSpan, rows: rows.count, columns: count), on: pool)
        try activationGradient.run(
            halvesOf: MatrixView(values.span.extracting(position...), rows: rows.count, columns: 2 * count),
            outputGradient: MatrixView(hidden.span, rows: rows.count, columns: count), into: &pairs, on: pool)
        try pair.inputGradient(
            MatrixView(pairs.span, rows: rows.count, columns: 2 * count), channels: pairChannels, into: dx.rows(rows),
            accumulates: accumulates, on: pool)
    }

    // MARK: - Checks and sizes

    /// Checks the operands, and puts segments and channels on the tape.
    func prepare(
        _ x: MatrixView<Float>, _ yRows: Int, _ yColumns: Int, split: TokenSplit?, channels: ChannelSubset?, _ tape: inout Tape
    ) throws(SparseKernelsError) -> TokenSegments {
        let picked = channels.flatMap { $0.isAll ? nil : $0 }
        let segments = try TokenSegments(rows: x.rows, split: split, isSparse: picked != nil)
        try requireExtents("x", x.rows, x.columns, x.rows, width)
        try requireExtents("y", yRows, yColumns, x.rows, width)
        try requireChannels(channels, of: down)
        if tape.channels != picked || tape.pairChannels?.width != (picked == nil ? nil : 2 * channelCount) {
            tape.pairChannels = try picked.map { picked throws(SparseKernelsError) in
                let second = picked.indices.map { $0 + Int32(channelCount) }
                return try ChannelSubset(picked.indices + second, of: 2 * channelCount)
            }
            tape.channels = picked
        }
        tape.segments = segments
        return segments
    }

    func check(
        _ dy: MatrixView<Float>, _ dxRows: Int, _ dxColumns: Int, _ tape: Tape, hasAllChannels: Bool
    ) throws(SparseKernelsError) -> TokenSegments {
        guard let segments = tape.segments else {
            throw SparseKernelsError(.invalidArgument, "tape", expected: "that of a run", actual: "a new one")
        }
        try requireExtents("dy", dy.rows, dy.columns, segments.rows, width)
        try requireExtents("dx", dxRows, dxColumns, segments.rows, width)
        try require(
            tape.channels.map { $0.width == channelCount } ?? true, .invalidArgument, "tape",
            expected: "that of a layer of \(channelCount) channels", actual: "one of \(tape.channels?.width ?? 0)")
        try require(
            tape.hasAllChannels == hasAllChannels, .invalidArgument, "tape",
            expected: "that of a run \(hasAllChannels ? "with" : "without") adapters",
            actual: "one \(hasAllChannels ? "without" : "with")")
        return segments
    }

    /// Elements of the hidden values of the longest run.
    private func largestHidden(_ segments: TokenSegments, _ channels: ChannelSubset?) throws(SparseKernelsError) -> Int {
        try max(
            checkedSize(segments.longestSparse, channels?.count ?? 0, 0, 0),
            checkedSize(0, 0, segments.longestDense, channelCount))
    }

    /// a·b + c·d, as a size of a buffer.
    func checkedSize(_ a: Int, _ b: Int, _ c: Int, _ d: Int) throws(SparseKernelsError) -> Int {
        let (first, overflow) = a.multipliedReportingOverflow(by: b)
        let (second, secondOverflow) = c.multipliedReportingOverflow(by: d)
        try require(
            !overflow && !secondOverflow && first < 1 << 60 && second < 1 << 60, .invalidShape, "x",
            expected: "fewer than 2⁶⁰ hidden values", actual: "\(a) · \(b) + \(c) · \(d)")
        return first + second
    }

    private static func stacked<W: AttentionElement>(_ top: Tensor<W>, _ bottom: Tensor<W>) throws(SparseKernelsError)
        -> Tensor<W>
    {
        var result = try Tensor<W>(zeros: [2 * top.shape[0], top.shape[1]])
        let half = top.count
        var target = result.mutableSpan
        target.withUnsafeMutableBufferPointer { target in
            guard let base = target.baseAddress, half > 0 else { return }
            top.span.withUnsafeBufferPointer { base.update(from: $0.baseAddress!, count: half) }
            bottom.span.withUnsafeBufferPointer { (base + half).update(from: $0.baseAddress!, count: half) }
        }
        return result
    }
}

extension GatedActivationGradient {
    /// The gradients of gate and up, which are the halves of one matrix, side by side as these are.
    ///
    /// - Parameters:
    ///   - pairs: rows × 2·columns.
    ///   - outputGradient: rows × columns.
    ///   - target: room for as many elements as `pairs` has.
    func run(
        halvesOf pairs: MatrixView<Float>, outputGradient: MatrixView<Float>, into target: inout Tensor<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (rows, columns) = (pairs.rows, pairs.columns / 2)
        if rows == 0 || columns == 0 { return }
        var span = target.mutableSpan
        precondition(span.count >= 2 * rows * columns, "room for \(2 * rows * columns) elements")
        // Rows of both halves alternate in memory, so that two views of it overlap, though no element is in both. The addresses are used
        // only until this call returns, which owns access to the tensor.
        let base = span.withUnsafeMutableBufferPointer { $0.baseAddress! }
        let count = (2 * rows - 1) * columns
        let left = UnsafeMutableBufferPointer(start: base, count: count)
        let right = UnsafeMutableBufferPointer(start: base + columns, count: count)
        try run(
            gate: pairs.columns(0..<columns), up: pairs.columns(columns..<2 * columns), outputGradient: outputGradient,
            gateGradient: MutableMatrixView(left.mutableSpan, rows: rows, columns: columns, rowStride: 2 * columns),
            upGradient: MutableMatrixView(right.mutableSpan, rows: rows, columns: columns, rowStride: 2 * columns), on: pool)
    }
}

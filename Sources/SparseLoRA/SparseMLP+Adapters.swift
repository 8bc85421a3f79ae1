public import SparseKernels
public import SparseKernelsTraining

/// Adapters of the layers of a feed-forward layer; nil means none.
public struct MLPAdapters: Sendable {
    public var gate: LoRAFactors?
    public var up: LoRAFactors?
    public var down: LoRAFactors?

    public init(gate: LoRAFactors? = nil, up: LoRAFactors? = nil, down: LoRAFactors? = nil) {
        self.gate = gate
        self.up = up
        self.down = down
    }
}

/// What a feed-forward layer with adapters needs beside its weights.
struct AdaptedMLP: Sendable {
    let rank: Int
    let pair: SparseProjection
    let down: SparseProjection
    /// Of gate and up.
    let inputs: LoRAOperator
    let output: LoRAOperator

    init(pair: SparseLinear, down: SparseLinear, rank: Int) throws(SparseKernelsError) {
        self.rank = rank
        self.pair = try SparseProjection(pair, bias: nil, loraRank: nil)
        self.down = try SparseProjection(down, bias: nil, loraRank: nil)
        inputs = try LoRAOperator(
            inFeatures: down.outFeatures, outFeatures: down.inFeatures, rank: rank, instructionSet: down.instructionSet)
        output = try LoRAOperator(
            inFeatures: down.inFeatures, outFeatures: down.outFeatures, rank: rank, instructionSet: down.instructionSet)
    }
}

// With adapters, which see all channels, gate and up of sparse tokens are scattered to full width before the activation, and the down
// projection takes the picked channels of its result. The released code cannot run this: its call and its layer disagree about the name of
// an argument.

extension SparseMLP {
    /// Computes y for a batch, with adapters.
    ///
    /// - Parameters:
    ///   - x: rows × width, sequence by sequence.
    ///   - split: which positions are dense; nil means that all tokens are sparse.
    ///   - channels: those of the frozen weights that sparse tokens use; nil means all.
    ///   - adapters: factors of the layer's rank.
    ///   - tape: keeps what the backward pass needs, 2 · channels floats for every row.
    ///   - workspace: buffers.
    ///   - y: rows × width, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees, `.invalidArgument` for a layer that was made without a rank; nothing is
    ///   written then.
    public func run(
        x: MatrixView<Float>, split: TokenSplit? = nil, channels: ChannelSubset? = nil, adapters: MLPAdapters,
        tape: inout Tape, workspace: inout SparseLoRAWorkspace, y: consuming MutableMatrixView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let adapted = try check(adapters)
        let segments = try prepare(x, y.rows, y.columns, split: split, channels: channels, &tape)
        let (rows, count) = (x.rows, channelCount)
        tape.hasAllChannels = true
        try tape.pairs.reserve(rows: 1, columns: checkedSize(rows, 2 * count, 0, 0))
        try workspace.pair.reserve(rows: 1, columns: checkedSize(rows, 2 * count, 0, 0))
        try tape.prepareAdapters(rows: rows, rank: adapted.rank)
        try run(
            x, segments, adapted, adapters, tape.channels, tape.pairChannels, pairs: &tape.pairs.elements,
            projected: &tape.projected, hidden: &workspace.pair.elements, &workspace.compact, y: y, on: pool)
    }

    // Buffers are parameters of their own, because a view of one field of a tape or workspace keeps the others from being used.

    private func run(
        _ x: MatrixView<Float>, _ segments: TokenSegments, _ adapted: AdaptedMLP, _ adapters: MLPAdapters,
        _ channels: ChannelSubset?, _ pairChannels: ChannelSubset?, pairs: inout Tensor<Float>,
        projected: inout [Tensor<Float>], hidden: inout Tensor<Float>, _ compact: inout FloatBuffer,
        y: consuming MutableMatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (rows, count) = (x.rows, channelCount)
        var both = try MutableMatrixView(pairs.mutableSpan, rows: rows, columns: 2 * count)
        try adapted.pair.runFrozen(x: x, segments, pairChannels, &compact, y: &both, on: pool)
        if let gate = adapters.gate {
            try adapted.inputs.run(x: x, factors: gate, projected: &projected[0], adding: both.columns(0..<count), on: pool)
        }
        if let up = adapters.up {
            try adapted.inputs.run(
                x: x, factors: up, projected: &projected[1], adding: both.columns(count..<2 * count), on: pool)
        }
        try activation.run(
            halvesOf: MatrixView(pairs.span, rows: rows, columns: 2 * count),
            into: MutableMatrixView(hidden.mutableSpan, rows: rows, columns: count), on: pool)
        let values = try MatrixView(hidden.span, rows: rows, columns: count)
        try adapted.down.runFrozen(x: values, segments, channels, &compact, y: &y, on: pool)
        if let down = adapters.down {
            try adapted.output.run(x: values, factors: down, projected: &projected[2], adding: y, on: pool)
        }
    }

    /// Computes the gradients of the last `run` with adapters, with respect to x and to their factors.
    ///
    /// - Parameters:
    ///   - dy: rows × width.
    ///   - x: that of `run`.
    ///   - adapters: those of `run`.
    ///   - gradients: gradients of the factors, in the shape of `adapters`; they are added.
    ///   - tape: that of `run`.
    ///   - workspace: buffers.
    ///   - dx: rows × width.
    ///   - accumulates: whether the gradient is added to what dx holds, instead of replacing it.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with those of `run`, `.invalidArgument` for a tape of a run without
    ///   adapters; nothing is written then.
    public func gradient(
        _ dy: MatrixView<Float>, x: MatrixView<Float>, adapters: MLPAdapters, gradients: inout MLPAdapters, tape: Tape,
        workspace: inout SparseLoRAWorkspace, dx: consuming MutableMatrixView<Float>, accumulates: Bool = false,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let adapted = try check(adapters)
        let segments = try check(dy, dx.rows, dx.columns, tape, hasAllChannels: true)
        try requireExtents("x", x.rows, x.columns, dy.rows, width)
        try check(gradients, like: adapters)
        let (rows, count) = (dy.rows, channelCount)
        try workspace.pair.reserve(rows: 1, columns: checkedSize(rows, 2 * count, 0, 0))
        try workspace.wide.reserve(rows: rows, columns: count)
        try hiddenGradient(
            dy, segments, adapted, adapters.down, &gradients.down, tape, hidden: &workspace.pair.elements,
            into: &workspace.wide.elements, &workspace.compact, on: pool)
        try pairGradient(tape, rows: rows, hidden: workspace.wide.elements, into: &workspace.pair.elements, on: pool)
        try inputGradient(
            x, segments, adapted, adapters, &gradients, tape, pairs: workspace.pair.elements, &workspace.compact, dx: dx,
            accumulates: accumulates, on: pool)
    }

    /// Of the hidden values, which are computed again instead of kept.
    private func hiddenGradient(
        _ dy: MatrixView<Float>, _ segments: TokenSegments, _ adapted: AdaptedMLP, _ factors: LoRAFactors?,
        _ gradient: inout LoRAFactors?, _ tape: Tape, hidden: inout Tensor<Float>, into target: inout Tensor<Float>,
        _ compact: inout FloatBuffer, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (rows, count) = (dy.rows, channelCount)
        var dh = try MutableMatrixView(target.mutableSpan, rows: rows, columns: count)
        try adapted.down.frozenGradient(dy, segments, tape.channels, &compact, dx: &dh, accumulates: false, on: pool)
        guard let factors, var sums = gradient else { return }
        gradient = nil
        defer { gradient = sums }
        try activation.run(
            halvesOf: MatrixView(tape.pairs.elements.span, rows: rows, columns: 2 * count),
            into: MutableMatrixView(hidden.mutableSpan, rows: rows, columns: count), on: pool)
        try adapted.output.gradient(
            x: MatrixView(hidden.span, rows: rows, columns: count), projected: tape.projected[2], factors: factors,
            outputGradient: dy, a: &sums.a, b: &sums.b, adding: dh, on: pool)
    }

    /// Of gate and up, from those of the hidden values.
    private func pairGradient(
        _ tape: Tape, rows: Int, hidden: Tensor<Float>, into target: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try activationGradient.run(
            halvesOf: MatrixView(tape.pairs.elements.span, rows: rows, columns: 2 * channelCount),
            outputGradient: MatrixView(hidden.span, rows: rows, columns: channelCount), into: &target, on: pool)
    }

    /// Of the input, from those of gate and up side by side.
    private func inputGradient(
        _ x: MatrixView<Float>, _ segments: TokenSegments, _ adapted: AdaptedMLP, _ adapters: MLPAdapters,
        _ gradients: inout MLPAdapters, _ tape: Tape, pairs: Tensor<Float>, _ compact: inout FloatBuffer,
        dx: consuming MutableMatrixView<Float>, accumulates: Bool, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (rows, count) = (x.rows, channelCount)
        let both = try MatrixView(pairs.span, rows: rows, columns: 2 * count)
        try adapted.pair.frozenGradient(
            both, segments, tape.pairChannels, &compact, dx: &dx, accumulates: accumulates, on: pool)
        if let gate = adapters.gate, var sums = gradients.gate {
            gradients.gate = nil
            defer { gradients.gate = sums }
            try adapted.inputs.gradient(
                x: x, projected: tape.projected[0], factors: gate, outputGradient: both.columns(0..<count), a: &sums.a,
                b: &sums.b, adding: dx.rows(0..<rows), on: pool)
        }
        if let up = adapters.up, var sums = gradients.up {
            gradients.up = nil
            defer { gradients.up = sums }
            try adapted.inputs.gradient(
                x: x, projected: tape.projected[1], factors: up, outputGradient: both.columns(count..<2 * count), a: &sums.a,
                b: &sums.b, adding: dx.rows(0..<rows), on: pool)
        }
    }

    private func check(_ adapters: MLPAdapters) throws(SparseKernelsError) -> AdaptedMLP {
        guard let adapted else {
            throw SparseKernelsError(
                .invalidArgument, "adapters", expected: "none, as the layer was made without a rank", actual: "adapters")
        }
        if let factors = adapters.gate {
            try requireFactors(
                factors, named: "adapters.gate", inFeatures: width, outFeatures: channelCount, rank: adapted.rank)
        }
        if let factors = adapters.up {
            try requireFactors(
                factors, named: "adapters.up", inFeatures: width, outFeatures: channelCount, rank: adapted.rank)
        }
        if let factors = adapters.down {
            try requireFactors(
                factors, named: "adapters.down", inFeatures: channelCount, outFeatures: width, rank: adapted.rank)
        }
        return adapted
    }

    private func check(_ gradients: MLPAdapters, like adapters: MLPAdapters) throws(SparseKernelsError) {
        try check(gradients.gate, like: adapters.gate, named: "gradients.gate")
        try check(gradients.up, like: adapters.up, named: "gradients.up")
        try check(gradients.down, like: adapters.down, named: "gradients.down")
    }

    private func check(
        _ gradient: LoRAFactors?, like factors: LoRAFactors?, named name: String
    ) throws(SparseKernelsError) {
        func shapes(_ factors: LoRAFactors?) -> String { factors.map { "\($0.a.shape) and \($0.b.shape)" } ?? "none" }
        try require(
            gradient?.a.shape == factors?.a.shape && gradient?.b.shape == factors?.b.shape, .invalidShape, name,
            expected: shapes(factors), actual: shapes(gradient))
    }
}

extension SparseMLP.Tape {
    /// Makes room for what adapters project.
    fileprivate mutating func prepareAdapters(rows: Int, rank: Int) throws(SparseKernelsError) {
        if projected.count == 3 && projected[0].shape[0] >= rows && projected[0].shape[1] == rank { return }
        projected = []
        for _ in 0..<3 { projected.append(try Tensor(zeros: [rows, rank])) }
    }
}

public import SparseKernels
public import SparseKernelsTraining

/// A frozen projection with an adapter, forward and backward, of which context tokens use some channels and output tokens all.
///
/// Queries, keys and values pick outputs: what is not picked is 0 for sparse tokens, and rows keep their full width. The output projection
/// picks inputs: what is not picked counts as 0. The adapter sees all tokens and channels.
///
///     sparse tokens:  y = x·W[I,:]ᵀ in columns I,  dx = dy_I·W[I,:]          or  y = x_I·W[:,I]ᵀ,  dx_I = dy·W[:,I]
///     all tokens:     y += scale·(x·aᵀ)·bᵀ,  and its gradients
///
/// ```swift
/// let query = try SparseProjection(weight: w, picking: .outputs, loraRank: 32)
/// try query.run(x: x, split: split, channels: kept, lora: factors, tape: &tape, workspace: &workspace, y: y)
/// try query.gradient(
///     dy, x: x, lora: factors, aGradient: &da, bGradient: &db, tape: tape, workspace: &workspace, dx: dx, accumulates: true)
/// ```
///
/// A bias is added to all channels of all tokens: it costs nothing, so nothing is dropped. The released code drops it; for that, give none.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: rows · picked channels · other features multiply-adds for a pass, and those of the adapter.
/// - Memory: a tape has rows · rank floats; the workspace the picked columns of the longest run of sparse rows. Nothing is allocated once
///   both have grown.
/// - Source: SparseLoRA (arXiv 2506.16500), section 3; `spft/modules/linear.py`.
public struct SparseProjection: Sendable {
    /// What the backward pass needs. It belongs to one projection and is reused from step to step.
    public struct Tape: Sendable {
        /// x·aᵀ.
        var projected: Tensor<Float>
        /// Whether the run had an adapter.
        var hasAdapter = false
        var segments: TokenSegments?
        var channels: ChannelSubset?

        public init() {
            // No elements: cannot fail.
            projected = try! Tensor(zeros: [0, 0])
        }
    }

    /// The frozen weight, with the bias.
    public let linear: SparseLinear
    /// Rank of the adapter; nil means none.
    public let loraRank: Int?

    private let bias: Tensor<Float>?
    private let moves: ColumnMoves
    private let adapter: LoRAOperator?

    /// Makes a projection.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`, kept in its type.
    ///   - side: `.outputs` for queries, keys and values, `.inputs` for the output projection.
    ///   - bias: `[outFeatures]`.
    ///   - loraRank: rank of the adapter; nil means none.
    ///   - instructionSet: the level that runs; nil means the default.
    ///   - pool: the threads to use.
    /// - Throws: the errors of `SparseLinear` and `LoRAOperator`.
    public init<W: AttentionElement>(
        weight: Tensor<W>, picking side: SparseLinear.Side, bias: Tensor<Float>? = nil, loraRank: Int? = nil,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try self.init(
            SparseLinear(weight: weight, picking: side, bias: bias, instructionSet: instructionSet, on: pool), bias: bias,
            loraRank: loraRank)
    }

    /// A projection whose weight is shared with something else.
    init(_ linear: SparseLinear, bias: Tensor<Float>?, loraRank: Int?) throws(SparseKernelsError) {
        self.linear = linear
        self.bias = bias
        self.loraRank = loraRank
        moves = try ColumnMoves(instructionSet: linear.instructionSet)
        if let loraRank {
            adapter = try LoRAOperator(
                inFeatures: linear.inFeatures, outFeatures: linear.outFeatures, rank: loraRank,
                instructionSet: linear.instructionSet)
        } else {
            adapter = nil
        }
    }

    public var inFeatures: Int { linear.inFeatures }
    public var outFeatures: Int { linear.outFeatures }

    // MARK: - Forward

    /// Computes y for a batch.
    ///
    /// - Parameters:
    ///   - x: rows × inFeatures, sequence by sequence.
    ///   - split: which positions are dense; nil means that all tokens are sparse.
    ///   - channels: those that sparse tokens use; nil means all, a dense layer.
    ///   - lora: the adapter's factors, of the projection's rank; nil means none.
    ///   - tape: keeps what the backward pass needs.
    ///   - workspace: buffers.
    ///   - y: rows × outFeatures, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees; nothing is written then.
    public func run(
        x: MatrixView<Float>, split: TokenSplit? = nil, channels: ChannelSubset? = nil, lora: LoRAFactors? = nil,
        tape: inout Tape, workspace: inout SparseLoRAWorkspace, y: consuming MutableMatrixView<Float>,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let picked = channels.flatMap { $0.isAll ? nil : $0 }
        let segments = try TokenSegments(rows: x.rows, split: split, isSparse: picked != nil)
        try requireExtents("x", x.rows, x.columns, x.rows, inFeatures)
        try requireExtents("y", y.rows, y.columns, x.rows, outFeatures)
        try requireChannels(channels, of: linear)
        if let lora { try requireAdapter(lora) }
        tape.segments = segments
        tape.channels = picked
        tape.hasAdapter = lora != nil
        try runFrozen(x: x, segments, picked, &workspace.compact, y: &y, on: pool)
        guard let lora, let adapter else { return }
        if tape.projected.shape[0] < x.rows || tape.projected.shape[1] != lora.a.shape[0] {
            tape.projected = try Tensor(zeros: [x.rows, lora.a.shape[0]])
        }
        try adapter.run(x: x, factors: lora, projected: &tape.projected, adding: y, on: pool)
    }

    /// The frozen part of operands that were checked.
    func runFrozen(
        x: MatrixView<Float>, _ segments: TokenSegments, _ picked: ChannelSubset?, _ compact: inout FloatBuffer,
        y: inout MutableMatrixView<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        for index in 0..<segments.denseCount {
            let rows = segments.dense(index)
            try linear.run(x: x.rows(rows), y: y.rows(rows), on: pool)
        }
        guard let picked else { return }
        try compact.reserve(rows: segments.longestSparse, columns: picked.count)
        for index in 0..<segments.sparseCount {
            let rows = segments.sparse(index)
            if rows.isEmpty { continue }
            switch linear.side {
            case .outputs:
                try linear.run(
                    x: x.rows(rows), channels: picked,
                    y: MutableMatrixView(compact.elements.mutableSpan, rows: rows.count, columns: picked.count), on: pool)
                let columns = try MatrixView(compact.elements.span, rows: rows.count, columns: picked.count)
                if let bias {
                    var target = y.rows(rows)
                    target.fillRows(with: bias, on: pool)
                }
                try moves.scatter(columns, picked, into: y.rows(rows), keepsOthers: bias != nil, on: pool)
            case .inputs:
                try moves.gather(
                    x.rows(rows), picked,
                    into: MutableMatrixView(compact.elements.mutableSpan, rows: rows.count, columns: picked.count),
                    on: pool)
                let columns = try MatrixView(compact.elements.span, rows: rows.count, columns: picked.count)
                try linear.run(x: columns, channels: picked, y: y.rows(rows), on: pool)
            }
        }
    }

    // MARK: - Backward

    /// Computes the gradients of the last `run` with an adapter, with respect to x and to the factors.
    ///
    /// - Parameters:
    ///   - dy: rows × outFeatures.
    ///   - x: that of `run`.
    ///   - lora: that of `run`.
    ///   - aGradient: as `lora.a`; the gradient is added.
    ///   - bGradient: as `lora.b`; the gradient is added.
    ///   - tape: that of `run`.
    ///   - workspace: buffers.
    ///   - dx: rows × inFeatures.
    ///   - accumulates: whether the gradient is added to what dx holds, instead of replacing it.
    ///   - passesFrozenGradient: whether dx of sparse tokens has the part of the frozen weight. The released code leaves it out (see
    ///     `SparseLoRAConfiguration.Mode`).
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with those of `run`; nothing is written then.
    public func gradient(
        _ dy: MatrixView<Float>, x: MatrixView<Float>, lora: LoRAFactors, aGradient: inout Tensor<Float>,
        bGradient: inout Tensor<Float>, tape: Tape, workspace: inout SparseLoRAWorkspace,
        dx: consuming MutableMatrixView<Float>, accumulates: Bool = false, passesFrozenGradient: Bool = true,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let segments = try check(dy, dx.rows, dx.columns, tape)
        try requireExtents("x", x.rows, x.columns, dy.rows, inFeatures)
        try requireAdapter(lora)
        try require(
            tape.hasAdapter && tape.projected.shape[0] >= x.rows && tape.projected.shape[1] == lora.a.shape[0],
            .invalidArgument, "tape", expected: "that of a run with an adapter of rank \(lora.a.shape[0])",
            actual: tape.hasAdapter ? "one with rank \(tape.projected.shape[1])" : "one without an adapter")
        try requireGradient(aGradient, like: lora.a, named: "aGradient")
        try requireGradient(bGradient, like: lora.b, named: "bGradient")
        try frozenGradient(
            dy, segments, tape.channels, &workspace.compact, dx: &dx, accumulates: accumulates,
            passesSparse: passesFrozenGradient, on: pool)
        guard let adapter else { return }
        try adapter.gradient(
            x: x, projected: tape.projected, factors: lora, outputGradient: dy, a: &aGradient, b: &bGradient, adding: dx,
            on: pool)
    }

    /// Computes the gradient of the last `run` without an adapter, with respect to x.
    ///
    /// - Parameters:
    ///   - dy: rows × outFeatures.
    ///   - tape: that of `run`.
    ///   - workspace: buffers.
    ///   - dx: rows × inFeatures.
    ///   - accumulates: whether the gradient is added to what dx holds, instead of replacing it.
    ///   - passesFrozenGradient: whether dx of sparse tokens is computed; otherwise it is 0.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with those of `run`; nothing is written then.
    public func gradient(
        _ dy: MatrixView<Float>, tape: Tape, workspace: inout SparseLoRAWorkspace,
        dx: consuming MutableMatrixView<Float>, accumulates: Bool = false, passesFrozenGradient: Bool = true,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        let segments = try check(dy, dx.rows, dx.columns, tape)
        try frozenGradient(
            dy, segments, tape.channels, &workspace.compact, dx: &dx, accumulates: accumulates,
            passesSparse: passesFrozenGradient,
            on: pool)
    }

    /// The frozen part of operands that were checked.
    func frozenGradient(
        _ dy: MatrixView<Float>, _ segments: TokenSegments, _ picked: ChannelSubset?, _ compact: inout FloatBuffer,
        dx: inout MutableMatrixView<Float>, accumulates: Bool, passesSparse: Bool = true, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        for index in 0..<segments.denseCount {
            let rows = segments.dense(index)
            try linear.inputGradient(dy.rows(rows), into: dx.rows(rows), accumulates: accumulates, on: pool)
        }
        guard let picked else { return }
        try compact.reserve(rows: segments.longestSparse, columns: picked.count)
        for index in 0..<segments.sparseCount {
            let rows = segments.sparse(index)
            if rows.isEmpty { continue }
            if !passesSparse {
                if !accumulates {
                    var target = dx.rows(rows)
                    target.fillRows(on: pool)
                }
                continue
            }
            switch linear.side {
            case .outputs:
                try moves.gather(
                    dy.rows(rows), picked,
                    into: MutableMatrixView(compact.elements.mutableSpan, rows: rows.count, columns: picked.count),
                    on: pool)
                let columns = try MatrixView(compact.elements.span, rows: rows.count, columns: picked.count)
                try linear.inputGradient(columns, channels: picked, into: dx.rows(rows), accumulates: accumulates, on: pool)
            case .inputs:
                // The picked columns of dx are read and written once more, instead of all of them.
                if accumulates {
                    try moves.gather(
                        dx.readableRows(rows), picked,
                        into: MutableMatrixView(
                            compact.elements.mutableSpan, rows: rows.count, columns: picked.count), on: pool)
                }
                try linear.inputGradient(
                    dy.rows(rows), channels: picked,
                    into: MutableMatrixView(compact.elements.mutableSpan, rows: rows.count, columns: picked.count),
                    accumulates: accumulates, on: pool)
                let columns = try MatrixView(compact.elements.span, rows: rows.count, columns: picked.count)
                try moves.scatter(columns, picked, into: dx.rows(rows), keepsOthers: accumulates, on: pool)
            }
        }
    }

    // MARK: - Checks

    private func check(
        _ dy: MatrixView<Float>, _ dxRows: Int, _ dxColumns: Int, _ tape: Tape
    ) throws(SparseKernelsError) -> TokenSegments {
        guard let segments = tape.segments else {
            throw SparseKernelsError(.invalidArgument, "tape", expected: "that of a run", actual: "a new one")
        }
        try requireExtents("dy", dy.rows, dy.columns, segments.rows, outFeatures)
        try requireExtents("dx", dxRows, dxColumns, segments.rows, inFeatures)
        return segments
    }

    private func requireAdapter(_ lora: LoRAFactors) throws(SparseKernelsError) {
        guard let loraRank else {
            throw SparseKernelsError(
                .invalidArgument, "lora", expected: "none, as the projection was made without a rank",
                actual: "factors of rank \(lora.a.shape[0])")
        }
        try requireFactors(lora, named: "lora", inFeatures: inFeatures, outFeatures: outFeatures, rank: loraRank)
    }
}

// No array is made where nothing is wrong: these run in every step.

func requireFactors(
    _ lora: LoRAFactors, named name: String, inFeatures: Int, outFeatures: Int, rank: Int
) throws(SparseKernelsError) {
    let (a, b) = (lora.a.shape, lora.b.shape)
    try require(
        a.count == 2 && b.count == 2 && a[0] == rank && a[1] == inFeatures && b[0] == outFeatures && b[1] == rank,
        .invalidShape, name, expected: "factors [\(rank), \(inFeatures)] and [\(outFeatures), \(rank)]",
        actual: "\(a) and \(b)")
}

func requireGradient(
    _ gradient: Tensor<Float>, like factor: Tensor<Float>, named name: String
) throws(SparseKernelsError) {
    try require(
        gradient.shape == factor.shape, .invalidShape, name, expected: "\(factor.shape)", actual: "\(gradient.shape)")
}

func requireExtents(
    _ name: String, _ rows: Int, _ columns: Int, _ expectedRows: Int, _ expectedColumns: Int
) throws(SparseKernelsError) {
    try require(
        rows == expectedRows && columns == expectedColumns, .invalidShape, name,
        expected: "\(expectedRows) × \(expectedColumns)", actual: "\(rows) × \(columns)")
}

func requireChannels(_ channels: ChannelSubset?, of linear: SparseLinear) throws(SparseKernelsError) {
    guard let channels else { return }
    try require(
        channels.width == linear.channels, .invalidShape, "channels", expected: "a subset of \(linear.channels) channels",
        actual: "one of \(channels.width)")
}

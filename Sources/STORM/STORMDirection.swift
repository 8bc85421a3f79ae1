internal import SparseKernels

/// One direction of a layer: convolution, projections, scan.
struct STORMDirection: Sendable {
    let convolution: CausalConvolution
    let projection: FloatLinear
    let stepProjection: FloatLinear
    let scan: SelectiveScan
    let rank: Int

    init(
        _ weights: STORMDirectionWeights, _ configuration: STORMConfiguration, named name: String, _ set: InstructionSet?
    ) throws(SparseKernelsError) {
        let (inner, states) = (configuration.innerWidth, configuration.stateSize)
        rank = configuration.dtRank
        let width = configuration.convolutionWidth
        var taps = weights.convolution
        if taps.shape == [inner, 1, width] { taps = try Tensor([inner, width], taps.elements) }
        for (part, tensor, shape) in [
            ("convolution", taps, [inner, width]), ("convolutionBias", weights.convolutionBias, [inner]),
            ("projection", weights.projection, [rank + 2 * states, inner]),
            ("stepProjection", weights.stepProjection, [inner, rank]), ("stepBias", weights.stepBias, [inner]),
            ("aLog", weights.aLog, [inner, states]), ("skip", weights.skip, [inner]),
        ] {
            try require(
                tensor.shape == shape, .invalidShape, "\(name).\(part)", expected: "\(shape)", actual: "\(tensor.shape)")
        }
        convolution = try CausalConvolution(
            weight: taps, bias: weights.convolutionBias, activation: .silu, instructionSet: set)
        projection = try FloatLinear(weight: weights.projection, instructionSet: set)
        stepProjection = try FloatLinear(weight: weights.stepProjection, instructionSet: set)
        scan = try SelectiveScan(
            aLog: weights.aLog, skip: weights.skip, deltaBias: weights.stepBias, instructionSet: set)
    }

    /// Scans the tokens of `buffers.projected` into `output`, from a column of its rows on.
    func run(
        _ buffers: STORMBuffers, isGated: Bool, into output: inout Tensor<Float>, column: Int, _ direction: RecurrenceDirection,
        _ batch: PackedSequences, _ states: STORMDirectionStates, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (tokens, columns) = (batch.tokenCount, rank + 2 * scan.stateSize)
        try convolution.run(
            buffers.projected, rowStride: 2 * scan.channels, into: &buffers.convolved, direction, batch, states.convolution,
            on: pool)
        try projection.run(tokens, of: buffers.convolved, into: &buffers.selected, on: pool)
        try stepProjection.run(tokens, of: buffers.selected, rowStride: columns, into: &buffers.steps, on: pool)
        try runScan(
            x: buffers.convolved, delta: buffers.steps, selected: buffers.selected, gate: isGated ? buffers.projected : nil,
            into: &output, column: column, direction, batch, states.scan, pool)
    }

    private func runScan(
        x: Tensor<Float>, delta: Tensor<Float>, selected: Tensor<Float>, gate: Tensor<Float>?, into output: inout Tensor<Float>,
        column: Int, _ direction: RecurrenceDirection, _ batch: PackedSequences, _ states: RecurrentStates, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (tokens, inner, n) = (batch.tokenCount, scan.channels, scan.stateSize)
        let (columns, stride) = (rank + 2 * n, output.shape[1])
        var rows = output.mutableSpan
        if let gate {
            try scan.run(
                x: MatrixView(x.span, rows: tokens, columns: inner),
                delta: MatrixView(delta.span, rows: tokens, columns: inner),
                b: MatrixView(selected.span.extracting(rank...), rows: tokens, columns: n, rowStride: columns),
                c: MatrixView(selected.span.extracting((rank + n)...), rows: tokens, columns: n, rowStride: columns),
                gate: MatrixView(gate.span.extracting(inner...), rows: tokens, columns: inner, rowStride: 2 * inner),
                into: MutableMatrixView(rows._mutatingExtracting(column...), rows: tokens, columns: inner, rowStride: stride),
                direction: direction, batch: batch, states: states, on: pool)
        } else {
            try scan.run(
                x: MatrixView(x.span, rows: tokens, columns: inner),
                delta: MatrixView(delta.span, rows: tokens, columns: inner),
                b: MatrixView(selected.span.extracting(rank...), rows: tokens, columns: n, rowStride: columns),
                c: MatrixView(selected.span.extracting((rank + n)...), rows: tokens, columns: n, rowStride: columns),
                into: MutableMatrixView(rows._mutatingExtracting(column...), rows: tokens, columns: inner, rowStride: stride),
                direction: direction, batch: batch, states: states, on: pool)
        }
    }
}

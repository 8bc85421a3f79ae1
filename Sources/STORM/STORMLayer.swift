public import SparseKernels

/// A layer of the temporal encoder: X ← X + MambaMixer(LayerNorm(X)), over all tokens of a video as one sequence.
///
/// The mixer is that of Mamba, in one or both directions over the tokens:
///
///     [x, z] = u · W_inᵀ          x ← silu(conv(x))          [δ, B, C] = x · W_xᵀ
///     y = scan(x, δ · W_dtᵀ, B, C)                           out = (y ⊙ silu(z)) · W_outᵀ
///
/// where z and both projections of a layer serve both directions, and convolution, W_x, W_dt and scan belong to a direction.
public struct STORMLayer: Sendable {
    public let configuration: STORMConfiguration
    private let norm: LayerNorm
    private let inputProjection: FloatLinear
    private let outputProjection: FloatLinear
    private let activation: GatedActivation
    let forward: STORMDirection
    /// nil when there is no backward direction, or it has the parameters of the forward one.
    let backward: STORMDirection?

    /// - Parameters:
    ///   - weights: the parameters.
    ///   - configuration: the sizes; `layers` is not used.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    /// - Throws: `.invalidShape` naming the tensor of another shape than the configuration says, `.invalidArgument` for sizes below 1
    ///   and for numbers that are not finite, `.notFound` for a backward direction that is missing, `.unsupportedInstructionSet`.
    public init(
        _ weights: STORMLayerWeights, _ configuration: STORMConfiguration, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try configuration.check()
        self.configuration = configuration
        let (width, inner) = (configuration.width, configuration.innerWidth)
        let outputs = configuration.combination == .concatenation ? 2 * inner : inner
        for (name, tensor, shape) in [
            ("inputProjection", weights.inputProjection, [2 * inner, width]),
            ("outputProjection", weights.outputProjection, [width, outputs]),
        ] {
            try require(tensor.shape == shape, .invalidShape, name, expected: "\(shape)", actual: "\(tensor.shape)")
        }
        norm = try LayerNorm(
            channels: width, weight: weights.normWeight, bias: weights.normBias, epsilon: configuration.epsilon,
            instructionSet: instructionSet)
        inputProjection = try FloatLinear(weight: weights.inputProjection, instructionSet: instructionSet)
        outputProjection = try FloatLinear(weight: weights.outputProjection, instructionSet: instructionSet)
        activation = try GatedActivation(.silu, instructionSet: instructionSet)
        forward = try STORMDirection(weights.forward, configuration, named: "forward", instructionSet)
        if configuration.combination.hasBackwardWeights {
            guard let direction = weights.backward else {
                throw SparseKernelsError(
                    .notFound, "backward", expected: "parameters, for the combination \(configuration.combination)",
                    actual: "none")
            }
            backward = try STORMDirection(direction, configuration, named: "backward", instructionSet)
        } else {
            backward = nil
        }
    }

    /// Adds the mixer to the tokens of a packed batch.
    func run(
        _ x: inout Tensor<Float>, _ batch: PackedSequences, forward states: STORMDirectionStates,
        backward backwardStates: STORMDirectionStates?, _ buffers: STORMBuffers, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let (tokens, width, inner) = (batch.tokenCount, configuration.width, configuration.innerWidth)
        try buffers.reserve(tokens: tokens)
        try norm.run(tokens, of: x, into: &buffers.normalized, on: pool)
        try inputProjection.run(tokens, of: buffers.normalized, into: &buffers.projected, on: pool)
        let combination = configuration.combination
        // Directions that are added are gated once, after the sum.
        let isSum = combination.isBidirectional && combination != .concatenation
        try forward.run(buffers, isGated: !isSum, into: &buffers.scanned, column: 0, .forward, batch, states, pool)
        if let backwardStates {
            for slot in batch.slots { try backwardStates.reset(slot) }
            let direction = backward ?? forward
            if isSum {
                try direction.run(
                    buffers, isGated: false, into: &buffers.second, column: 0, .backward, batch, backwardStates, pool)
                RowArithmetic.add(
                    buffers.second, to: &buffers.scanned, count: tokens * inner, factor: combination == .average ? 0.5 : 1, pool
                )
                try gate(buffers.scanned, by: buffers.projected, into: &buffers.second, tokens, pool)
            } else {
                try direction.run(
                    buffers, isGated: true, into: &buffers.scanned, column: inner, .backward, batch, backwardStates, pool)
            }
        }
        try outputProjection.run(
            tokens, of: isSum ? buffers.second : buffers.scanned, into: &buffers.normalized, on: pool)
        RowArithmetic.add(buffers.normalized, to: &x, count: tokens * width, factor: 1, pool)
    }

    /// The sums of the directions, gated by the right half of the projected rows.
    private func gate(
        _ sums: Tensor<Float>, by projected: Tensor<Float>, into y: inout Tensor<Float>, _ tokens: Int, _ pool: WorkerPool
    ) throws(SparseKernelsError) {
        let inner = configuration.innerWidth
        try activation.run(
            gate: MatrixView(projected.span.extracting(inner...), rows: tokens, columns: inner, rowStride: 2 * inner),
            up: MatrixView(sums.span, rows: tokens, columns: inner),
            into: MutableMatrixView(y.mutableSpan, rows: tokens, columns: inner), on: pool)
    }
}

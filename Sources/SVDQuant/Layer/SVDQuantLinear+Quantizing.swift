public import SparseKernels

extension SVDQuantLinear {
    /// Quantises a layer: searches smoothing factors on the calibration tokens, takes the low-rank branch off the smoothed
    /// weight and rounds the rest to nearest.
    ///
    /// `LowRankQuantizer` has more settings, such as the format, and tells what the search found: pass its result to
    /// `init(_:activation:)`.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`. Projections of one input, such as q, k and v, may be stacked.
    ///   - bias: `[outFeatures]`; nil: none.
    ///   - calibration: `[tokens, inFeatures]`, inputs that the layer gets to see.
    ///   - rank: of the branch; the paper has 32, and 16 to 128 in its studies. 0: no branch.
    ///   - activation: the format that the search takes for granted, and that the layer runs with. For the layer behind a GELU
    ///     take `.uint4(shift: ActivationFormat.geluShift)`; the bias is corrected.
    ///   - epilogue: what follows the layer.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for tensors that disagree or are empty; `.invalidArgument` for an element that is not finite,
    ///   or a rank above an extent of the weight; `.unsupportedInstructionSet`.
    /// - Complexity: that of `LowRankQuantizer`: 39 trials of a factorisation and a product with some tokens.
    public init(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, calibration: Tensor<Float>, rank: Int = 32,
        activation: ActivationFormat = .int4, epilogue: Epilogue = .none, instructionSet: InstructionSet? = nil,
        on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        var configuration = LowRankQuantizer.Configuration()
        configuration.rank = rank
        configuration.activation = activation
        let result = try LowRankQuantizer(configuration)(weight: weight, bias: bias, calibration: calibration, on: pool)
        try self.init(result, activation: activation, epilogue: epilogue, instructionSet: instructionSet)
    }

    /// The layer that a quantiser has made.
    ///
    /// - Parameters:
    ///   - result: its parts.
    ///   - activation: the format that the quantiser was told. For another one take the layer `with(activation:)`, which keeps
    ///     the bias right.
    ///   - epilogue: what follows the layer.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.unsupportedInstructionSet`.
    public init(
        _ result: LowRankQuantizer.Result, activation: ActivationFormat, epilogue: Epilogue = .none,
        instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            weight: result.weight, smooth: result.smooth, lowRank: result.lowRank, bias: result.bias, activation: activation,
            epilogue: epilogue, instructionSet: instructionSet)
    }
}

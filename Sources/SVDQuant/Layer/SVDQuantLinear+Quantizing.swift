public import SparseKernels

extension SVDQuantLinear {
    /// Quantises a layer: searches smoothing factors on calibration tokens, subtracts the low-rank branch from the smoothed
    /// weight and rounds the residual to nearest.
    ///
    /// `LowRankQuantizer` has more settings, such as the format, and returns the results of the search. Pass them to
    /// `init(_:activation:)`.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`. Projections of one input, such as q, k and v, may be stacked.
    ///   - bias: `[outFeatures]`; nil for none.
    ///   - calibration: `[tokens, inFeatures]`, typical inputs of the layer.
    ///   - rank: rank of the branch: 32 in the paper, 16 to 128 in its studies; 0 for no branch.
    ///   - activation: the format of activations in the search and in the layer. After a GELU use
    ///     `.uint4(shift: ActivationFormat.geluShift)`; the bias is corrected.
    ///   - epilogue: operations after the layer.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for tensors that disagree or are empty; `.invalidArgument` for an element that is not finite,
    ///   or a rank above an extent of the weight; `.unsupportedInstructionSet`.
    /// - Complexity: that of `LowRankQuantizer`: 39 trials, each a factorisation and a product with some tokens.
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

    /// Makes a layer from the result of a quantiser.
    ///
    /// - Parameters:
    ///   - result: the parts of the layer.
    ///   - activation: the format that the quantiser used. For another format use `with(activation:)` of the layer, which
    ///     corrects the bias.
    ///   - epilogue: operations after the layer.
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

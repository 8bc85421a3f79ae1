public import SparseKernels

/// A linear layer in SVDQuant form (Li et al., 2024, arXiv 2411.05007): a smoothed 4-bit residual and a low-rank branch in
/// higher precision.
///
///     y = epilogue(Q(x / smooth) · weightᵀ + (x · downᵀ) · upᵀ + bias)
///
/// ```swift
/// let layer = try SVDQuantLinear(weight: weight, bias: bias, calibration: tokens)
/// let y = try layer(x)
/// try layer.write(to: "layer.safetensors")
/// ```
///
/// The layer stores the same numbers in two forms: logical tensors, row-major and independent of the instruction set, for
/// saving, exporting and adding adapters; and `linear`, packed for one instruction set, for running. A program that only runs a
/// layer can keep `linear` alone, which needs half a byte per weight, and scales.
public struct SVDQuantLinear: Sendable {
    /// The residual R = W · diag(smooth) − up · (down · diag(smooth)), quantised, in the smoothed basis.
    public let weight: QuantizedWeight
    /// The divisors of activations before quantisation, `[inFeatures]`; nil for none.
    public let smooth: Tensor<Float>?
    /// The low-rank branch. Its activations are neither smoothed nor shifted.
    public let lowRank: LowRankBranch?
    /// The bias, `[outFeatures]`. It includes the correction for the shift of `.uint4`.
    public let bias: Tensor<Float>?
    /// The same layer, packed for the instruction set that runs it.
    public let linear: QuantizedLinear

    /// Makes a layer from its parts.
    ///
    /// - Parameters:
    ///   - weight: the residual, in the smoothed basis.
    ///   - smooth: `[inFeatures]`, positive.
    ///   - lowRank: the branch. Its factor `down` acts on raw activations: the paper's A already divided by `smooth`.
    ///   - bias: `[outFeatures]`; with `.uint4` it must correct the shift.
    ///   - activation: `.int4` as released; `.int8PerGroup` and `.int8PerToken` (W4A8) and `.float` (W4A16) lose less accuracy
    ///     with the same weights.
    ///   - epilogue: operations after the layer.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for parts that disagree with the weight, `.invalidArgument` for smoothing factors that are not
    ///   positive and finite, or a bias or shift that is not finite; `.unsupportedInstructionSet`.
    /// - Complexity: O(inFeatures · outFeatures), for packing the weight.
    public init(
        weight: QuantizedWeight, smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil, bias: Tensor<Float>? = nil,
        activation: ActivationFormat = .int4, epilogue: Epilogue = .none, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            weight: weight, packed: PackedWeight(weight, instructionSet: instructionSet), smooth: smooth, lowRank: lowRank,
            bias: bias, activation: activation, epilogue: epilogue)
    }

    /// Makes a layer whose weight is already packed.
    private init(
        weight: QuantizedWeight, packed: PackedWeight, smooth: Tensor<Float>?, lowRank: LowRankBranch?, bias: Tensor<Float>?,
        activation: ActivationFormat, epilogue: Epilogue
    ) throws(SparseKernelsError) {
        self.weight = weight
        self.smooth = smooth
        self.lowRank = lowRank
        self.bias = bias
        linear = try QuantizedLinear(
            packed, activation: activation, smooth: smooth, lowRank: lowRank, bias: bias, epilogue: epilogue)
    }

    public var outFeatures: Int { weight.outFeatures }
    public var inFeatures: Int { weight.inFeatures }
    public var activation: ActivationFormat { linear.activation }
    public var epilogue: Epilogue { linear.epilogue }
    /// Rank of the branch, including adapters; 0 without a branch.
    public var rank: Int { lowRank?.rank ?? 0 }

    /// Bytes of `linear`. They exclude the logical tensors, which the layer keeps for saving.
    public var byteCount: Int { linear.byteCount }

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - y: `[tokens, outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try linear.run(x: x, y: y, on: pool)
    }

    /// Computes y for the rows of x in a new tensor.
    /// - Throws: as `run`.
    public func callAsFunction<X: AttentionElement>(_ x: Tensor<X>, on pool: WorkerPool = .shared)
        throws(SparseKernelsError) -> Tensor<Float>
    {
        try linear(x, on: pool)
    }
}

// MARK: - Variants

extension SVDQuantLinear {
    /// The same weights with activations in another format.
    ///
    /// For changes to or from `.uint4`, the bias changes by the contribution of the shift, W_q · (shift / smooth), with the
    /// quantised residual (`LowRankQuantizer.correctedBias(_:residual:smooth:shift:on:)`). Both agree for exact activations.
    ///
    /// - Throws: `.invalidArgument` for a shift that is negative or not finite.
    /// - Complexity: O(1), or O(inFeatures · outFeatures) when the shift changes.
    public func with(activation: ActivationFormat, on pool: WorkerPool = .shared)
        throws(SparseKernelsError) -> SVDQuantLinear
    {
        let shift = activation.shift
        try require(
            shift >= 0 && shift.isFinite, .invalidArgument, "shift", expected: "0 or more, and finite", actual: "\(shift)")
        let difference = shift - self.activation.shift
        return try SVDQuantLinear(
            weight: weight, packed: linear.weight, smooth: smooth, lowRank: lowRank,
            bias: LowRankQuantizer.correctedBias(bias, residual: weight, smooth: smooth, shift: difference, on: pool),
            activation: activation, epilogue: epilogue)
    }

    /// The same layer with another epilogue.
    /// - Throws: nothing in practice, because the parts have been checked.
    public func with(epilogue: Epilogue) throws(SparseKernelsError) -> SVDQuantLinear {
        try SVDQuantLinear(
            weight: weight, packed: linear.weight, smooth: smooth, lowRank: lowRank, bias: bias, activation: activation,
            epilogue: epilogue)
    }

    /// The same layer with another branch and bias.
    func with(lowRank: LowRankBranch?, bias: Tensor<Float>?) throws(SparseKernelsError) -> SVDQuantLinear {
        try SVDQuantLinear(
            weight: weight, packed: linear.weight, smooth: smooth, lowRank: lowRank, bias: bias, activation: activation,
            epilogue: epilogue)
    }
}

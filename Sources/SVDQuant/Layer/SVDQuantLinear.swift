public import SparseKernels

/// A linear layer in SVDQuant form (Li et al., 2024, arXiv 2411.05007): a 4-bit residual behind smoothing, and a low-rank
/// branch in higher precision.
///
///     y = epilogue(Q(x / smooth) · weightᵀ + (x · downᵀ) · upᵀ + bias)
///
/// ```swift
/// let layer = try SVDQuantLinear(weight: weight, bias: bias, calibration: tokens)
/// let y = try layer(x)
/// try layer.write(to: "layer.safetensors")
/// ```
///
/// The layer has two forms of the same numbers: logical tensors, row-major and independent of the instruction set, which are
/// saved, exported and extended by adapters; and `linear`, packed for one instruction set, which runs. Who only runs a layer
/// keeps `linear` and lets the layer go: then half a byte per weight is held, and scales.
public struct SVDQuantLinear: Sendable {
    /// The residual R = W · diag(smooth) − up · (down · diag(smooth)), quantised, in the smoothed basis.
    public let weight: QuantizedWeight
    /// `[inFeatures]`, what activations are divided by before they are quantised; nil: nothing.
    public let smooth: Tensor<Float>?
    /// The branch; it takes activations as they come, neither smoothed nor shifted.
    public let lowRank: LowRankBranch?
    /// `[outFeatures]`. Includes what undoes the shift of `.uint4`.
    public let bias: Tensor<Float>?
    /// The same layer, packed for the instruction set that runs it.
    public let linear: QuantizedLinear

    /// A layer of given parts.
    ///
    /// - Parameters:
    ///   - weight: the residual, in the smoothed basis.
    ///   - smooth: `[inFeatures]`, positive.
    ///   - lowRank: its factor `down` acts on raw activations: what the paper calls A is already divided by `smooth`.
    ///   - bias: `[outFeatures]`; for `.uint4` it has to undo the shift.
    ///   - activation: `.int4` as published, or `.int8PerGroup` and `.int8PerToken` (W4A8) and `.float` (W4A16), which lose
    ///     less with the same weights.
    ///   - epilogue: what follows the layer.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidShape` for parts that disagree with the weight, `.invalidArgument` for smoothing factors that are not
    ///   positive and finite, or a bias or shift that is not finite; `.unsupportedInstructionSet`.
    /// - Complexity: O(inFeatures · outFeatures), which packs the weight.
    public init(
        weight: QuantizedWeight, smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil, bias: Tensor<Float>? = nil,
        activation: ActivationFormat = .int4, epilogue: Epilogue = .none, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try self.init(
            weight: weight, packed: PackedWeight(weight, instructionSet: instructionSet), smooth: smooth, lowRank: lowRank,
            bias: bias, activation: activation, epilogue: epilogue)
    }

    /// A layer whose weight is packed already.
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
    /// The rank of the branch, adapters included; 0 without one.
    public var rank: Int { lowRank?.rank ?? 0 }

    /// Bytes that `linear` holds. The logical tensors, which the layer keeps for saving, are not in it.
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

    /// y for the rows of x, in a new tensor.
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
    /// To or from `.uint4`, the bias changes by what its shift adds: W_q · (shift / smooth), with the residual as it is
    /// quantised (`LowRankQuantizer.correctedBias(_:residual:smooth:shift:on:)`). So both layers compute the same where activations are exact.
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
    /// - Throws: nothing in practice: the parts have been checked.
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

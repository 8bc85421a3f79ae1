internal import KernelInterface

/// A linear layer with quantised weights: y = epilogue(x̂ · Wᵀ + (x · downᵀ) · upᵀ + bias), where x̂ is x / smooth, quantised.
///
/// ```swift
/// let weight = try WeightQuantizer(.svdQuantInt4)(matrix)
/// let layer = try QuantizedLinear(PackedWeight(weight), activation: .int4)
/// let y = try layer(x)
/// ```
///
/// One call quantises x and computes the low-rank branch, bias and epilogue. It reads x once and writes y once.
///
/// - Exactness: products of codes are summed in integers within a group of the weights, and groups in `Float`; where a row of the
///   weight has one scale and no offset, and a token has one, integers are summed over the whole row. Codes and scales
///   are those of the papers' own kernels; see ``ActivationFormat``. Results are bitwise equal for every number of threads. The
///   result of a row does not depend on the other rows, except that a call with a single row sums low-rank projections, and products of
///   nibbles with `.float` activations, in another order.
/// - Non-finite input affects only its own row, which becomes NaN, or with `.float` the result of IEEE arithmetic.
/// - Complexity: M·N·K multiply-adds of codes, or of floats for `.float`, and M·(N + K)·rank of floats.
/// - Scratch: `workspaceByteCount` once and `scratchByteCount` per thread, kept by the pool.
/// - Source: SVDQuant (arXiv 2411.05007), nunchaku's `quantize_w4a4_act_fuse_lora` and `gemm_w4a4`.
public struct QuantizedLinear: Sendable {
    public let weight: PackedWeight
    public let activation: ActivationFormat
    /// `[inFeatures]`, the divisors of x; nil means none.
    public let smooth: Tensor<Float>?
    /// The rank of the low-rank branch; 0 means that there is none.
    public let rank: Int
    public let epilogue: Epilogue

    let lowRank: PackedLowRank?
    let bias: TensorStorage?

    /// - Parameters:
    ///   - weight: the packed weight, which other layers may share.
    ///   - activation: the form in which x is multiplied with the weight.
    ///   - smooth: `[inFeatures]`, positive divisors of x.
    ///   - lowRank: the branch in higher precision; it takes x before smoothing.
    ///   - bias: `[outFeatures]`.
    ///   - epilogue: the function that is applied last.
    /// - Throws: `.invalidShape` for a tensor that disagrees with the weight; `.invalidArgument` for smoothing factors that are
    ///   not positive and finite, a bias or shift that is not finite, or a negative shift.
    public init(
        _ weight: PackedWeight, activation: ActivationFormat, smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil,
        bias: Tensor<Float>? = nil, epilogue: Epilogue = .none
    ) throws(SparseKernelsError) {
        if let smooth {
            try require(
                smooth.shape == [weight.inFeatures], .invalidShape, "smooth", expected: "\([weight.inFeatures])",
                actual: "\(smooth.shape)")
            let bad = smooth.elements.firstIndex { !($0 > 0 && $0.isFinite) }
            try require(
                bad == nil, .invalidArgument, "smooth", expected: "positive and finite",
                actual: "\(smooth[flat: bad ?? 0]) at element \(bad ?? 0)")
        }
        if let lowRank {
            try require(
                lowRank.down.shape[1] == weight.inFeatures && lowRank.up.shape[0] == weight.outFeatures, .invalidShape,
                "lowRank",
                expected: "factors [rank, \(weight.inFeatures)] and [\(weight.outFeatures), rank]",
                actual: "\(lowRank.down.shape) and \(lowRank.up.shape)")
        }
        if let bias {
            try require(
                bias.shape == [weight.outFeatures], .invalidShape, "bias", expected: "\([weight.outFeatures])",
                actual: "\(bias.shape)")
            try bias.requireFinite(named: "bias")
        }
        if case .uint4(let shift) = activation {
            try require(
                shift >= 0 && shift.isFinite, .invalidArgument, "shift", expected: "0 or more, and finite", actual: "\(shift)")
        }
        self.weight = weight
        self.activation = activation
        self.smooth = smooth
        self.epilogue = epilogue
        rank = lowRank?.rank ?? 0
        self.lowRank = lowRank.map { PackedLowRank($0, layout: weight.layout, kernels: weight.kernels) }
        self.bias = bias.map { weight.layout.padded($0) }
    }

    public var outFeatures: Int { weight.outFeatures }
    public var inFeatures: Int { weight.inFeatures }

    /// Bytes of the packed weight, the factors of the low-rank branch, smoothing factors and bias.
    public var byteCount: Int {
        weight.byteCount + (lowRank?.byteCount ?? 0) + (smooth?.count ?? 0) * 4 + (bias?.byteCount ?? 0)
    }

    /// Bytes of scratch that each thread of the pool needs.
    public var scratchByteCount: Int {
        max(QuantizedScratch.activationByteCount, QuantizedScratch.productByteCount(rank: rank))
    }

    /// Bytes that the threads share, for the quantised activations of up to 1024 rows.
    public func workspaceByteCount(tokens: Int) -> Int {
        ActivationBlock(self, rows: min(tokens, Self.blockRows), hasTurnedCodes: hasQuietWeight).byteCount
    }

    /// Rows whose activations exist at one time: enough that the tasks of 16 threads come out even for 512 output features, and
    /// few enough that 4096 channels stay in the last-level cache.
    static let blockRows = 1024

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
        try requireColumns("x", x.columns, expected: inFeatures)
        try requireMatrix("y", rows: y.rows, columns: y.columns, expected: (x.rows, outFeatures))
        if x.rows == 0 { return }
        // Pointers are used only until this call returns, which borrows or owns the views.
        QuantizedLinearCall(layer: self, x: RowOperand(x), y: RowTarget(&y)).run(rows: x.rows, on: pool)
    }

    /// Computes y for the rows of x into a tensor that is reused from call to call.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`; may have no tokens.
    ///   - y: `[tokens, outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: the errors of `run` with views.
    public func run<X: AttentionElement, Y: AttentionElement>(
        _ x: Tensor<X>, into y: inout Tensor<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try run(x: x.matrixView(named: "x"), y: y.mutableMatrixView(named: "y"), on: pool)
    }

    /// Computes y for the rows of x, `[tokens, outFeatures]`, in a new tensor. `[0, inFeatures]` gives `[0, outFeatures]`.
    /// - Throws: the errors of `run` with views.
    public func callAsFunction<X: AttentionElement>(
        _ x: Tensor<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try requireColumns("x", x.matrixView(named: "x").columns, expected: inFeatures)
        var y = try Tensor<Float>(zeros: [x.shape[0], outFeatures])
        try run(x, into: &y, on: pool)
        return y
    }

    /// The codes and scales that the rows of x have in the product.
    /// - Throws: `.invalidShape` for another width than the layer's, `.invalidArgument` for floating-point activations.
    public func quantized<X: AttentionElement>(
        _ x: MatrixView<X>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> QuantizedActivations {
        try requireColumns("x", x.columns, expected: inFeatures)
        try require(
            activation != .float, .invalidArgument, "activation", expected: "an integer format", actual: "floating point")
        let layout = weight.layout
        var codes = try Tensor<Int8>(zeros: [x.rows, layout.paddedInFeatures])
        var scales = try Tensor<Float>(zeros: [x.rows, layout.groups])
        if x.rows == 0 {
            return QuantizedActivations(format: activation, groupSize: layout.groupSize, codes: codes, scales: scales)
        }
        // Kernels multiply twice the values of E2M1, and halve the scales.
        let unit: Float = activation == .fp4 ? 2 : 1
        let block = ActivationBlock(self, rows: x.rows, hasTurnedCodes: false)
        let call = QuantizedLinearCall(
            layer: self, x: RowOperand(x), y: RowTarget(base: addressOfNothing(), stride: 0, type: .float32))
        pool.withWorkspace(byteCount: block.byteCount) { workspace in
            call.quantize(from: 0, rows: x.rows, block, workspace, on: pool)
            let (codeBase, scaleBase) = (block.codes(workspace), block.scales(workspace))
            var codeSpan = codes.mutableSpan
            var scaleSpan = scales.mutableSpan
            for row in 0..<x.rows {
                for k in 0..<layout.paddedInFeatures {
                    let code = Int32(codeBase[row * block.codeStride + k]) - zeroCode
                    codeSpan[row * layout.paddedInFeatures + k] = Int8(truncatingIfNeeded: code)
                }
                for group in 0..<layout.groups {
                    scaleSpan[row * layout.groups + group] = scaleBase[row * layout.groups + group] * unit
                }
            }
        }
        return QuantizedActivations(format: activation, groupSize: layout.groupSize, codes: codes, scales: scales)
    }
}

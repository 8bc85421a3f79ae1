internal import KernelInterface

/// Quantises one linear layer as SVDQuant does: smoothing, a low-rank branch for the badly quantised part, and a 4-bit
/// residual.
///
///     x̂ = (x + shift) / s      Ŵ = W · diag(s) ≈ up · down + R      y = Q(x̂) · Q(R)ᵀ + (x · down'ᵀ) · upᵀ + b'
///
/// where down' = down / s, so that the branch takes x before smoothing, and b' = b − Q(R) · (shift / s). This bias undoes the
/// shift where it was added, in the input of the quantised residual.
///
/// - Results are bitwise equal for the same seed and every number of threads.
/// - Complexity: the search of `SmoothingSearch`, the split of `LowRankSplit`, and `GPTQ` if chosen.
/// - Source: SVDQuant (arXiv 2411.05007); the order of operations is that of deepcompressor.
public struct LowRankQuantizer: Sendable {
    /// The choice of the smoothing of activations.
    public enum Smoothing: Hashable, Sendable {
        /// s = 1.
        case none
        case fixed(SmoothingCandidate)
        /// The best of a family on the calibration tokens.
        case search(grids: Int = 20, family: SmoothingFamily = .activationsThenBalanced)
    }

    /// The rounding of the residual.
    public enum ResidualRounding: Hashable, Sendable, CaseIterable {
        case roundToNearest
        case gptq
    }

    public struct Configuration: Hashable, Sendable {
        /// The rank of the low-rank branch; 0 means that there is none.
        public var rank = 32
        public var weightFormat = WeightFormat.svdQuantInt4
        public var activation = ActivationFormat.int4
        public var smoothing = Smoothing.search()
        /// The most iterations of the split, which stops at the first one that is worse. The released configuration has 100. On
        /// recorded layers the second iteration gains most, 12% of the squared error, and the fourth 1%.
        public var iterations = 4
        public var svd = SVDMethod.randomized()
        public var residual = ResidualRounding.roundToNearest
        /// The type to which factors, smoothing and scales are rounded: F16, BF16 or F32.
        public var scaleType = ElementType.float16
        /// Whether Ŵ, up · down and R are rounded to `scaleType`, as in the released code, whose tensors have this type.
        public var roundsAsReleased = false
        /// The most calibration tokens, evenly spaced, for choosing among candidates and iterations. Ranges, GPTQ and final
        /// error use all.
        public var sampleTokens = 256
        /// The seed of random subspaces.
        public var seed: UInt64 = 0

        public init() {}
    }

    public struct Result: Sendable {
        /// The quantised residual.
        public let weight: QuantizedWeight
        /// The branch, which takes x before smoothing: `down` is divided by `smooth`.
        public let lowRank: LowRankBranch?
        /// `[inFeatures]`, the divisors of x; nil means none.
        public let smooth: Tensor<Float>?
        /// `[outFeatures]`, which also undoes the shift of the activations; nil without bias and shift.
        public let bias: Tensor<Float>?
        /// The candidate of `smooth`; nil without smoothing.
        public let candidate: SmoothingCandidate?
        /// √(Σ |y − y_ref|² / Σ |y_ref|²) over all calibration tokens, for the layer as it runs on `Float` activations: codes
        /// of the activations, quantised residual, rounded factors, and the bias that undoes the shift. y_ref = x · Wᵀ. A given
        /// bias adds the same to both and is left out.
        public let outputError: Double
        /// The trials of the search; empty without one.
        public let trials: [SmoothingSearch.Trial]
        /// Σ |y − y_ref|² over the sample by iteration of the split; empty without a branch.
        public let splitErrors: [Double]
    }

    public let configuration: Configuration

    /// - Throws: `.invalidArgument` for a value out of range, `.invalidElementType` for a scale type other than F16, BF16, F32.
    public init(_ configuration: Configuration = .init()) throws(SparseKernelsError) {
        self.configuration = configuration
        _ = try search(configuration.candidates())
        if configuration.rank > 0 { _ = try split }
        if case .uint4(let shift) = configuration.activation {
            try require(shift.isFinite, .invalidArgument, "shift", expected: "finite", actual: "\(shift)")
        }
    }

    /// Quantises a layer.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`. Layers that share input and branch, such as q, k and v, are stacked.
    ///   - bias: `[outFeatures]`; nil means none.
    ///   - calibration: `[tokens, inFeatures]`, inputs of the layer.
    ///   - pool: the threads to use. The call blocks until they are done.
    ///   - progress: called after each candidate of the search, on the calling thread.
    /// - Throws: `.invalidShape` for tensors that disagree or are empty; `.invalidArgument` for an element that is not finite,
    ///   a rank above an extent of the weight, or a residual that no scale can represent.
    public func callAsFunction(
        weight: Tensor<Float>, bias: Tensor<Float>? = nil, calibration: Tensor<Float>, on pool: WorkerPool = .shared,
        progress: ((SmoothingSearch.Trial) -> Void)? = nil
    ) throws(SparseKernelsError) -> Result {
        let shift = configuration.activation.shift
        let ranges = try SmoothingRanges(calibration: calibration, weights: [weight], shift: shift, on: pool)
        try LowRankSplit.check(rank: configuration.rank, of: weight)
        if let bias {
            try require(
                bias.shape == [weight.shape[0]], .invalidShape, "bias", expected: "\([weight.shape[0]])",
                actual: "\(bias.shape)")
            try require(
                bias.elements.allSatisfy(\.isFinite), .invalidArgument, "bias", expected: "finite",
                actual: "an element that is not")
        }
        let smoothing = try smoothing(weight, calibration, ranges, on: pool, progress: progress)
        let smooth = smoothing.smooth

        let storage = try StorageType(scaleType: configuration.scaleType)
        var smoothedWeight = smooth.map { weight.multiplyingColumns(by: $0, on: pool) } ?? weight
        if configuration.roundsAsReleased { smoothedWeight = smoothedWeight.rounded(to: storage, on: pool) }

        var split: LowRankSplit.Result?
        if configuration.rank > 0 {
            let tokens = try CalibrationSample.tokens(of: calibration, limit: configuration.sampleTokens, on: pool)
            split = try self.split.split(
                smoothedWeight, sample: CalibrationSample(inputs: tokens, shift: shift, weight: weight, on: pool),
                smooth: smooth, on: pool)
        }
        let quantized = try quantize(split?.residual ?? smoothedWeight, calibration: calibration, smooth: smooth, on: pool)
        var branch: LowRankBranch?
        if let split {
            let down = smooth.map { split.down.dividingColumns(by: $0, on: pool).rounded(to: storage, on: pool) } ?? split.down
            branch = try LowRankBranch(down: down, up: split.up)
        }
        return Result(
            weight: quantized, lowRank: branch, smooth: smooth,
            bias: try Self.correctedBias(bias, residual: quantized, smooth: smooth, shift: shift, on: pool),
            candidate: smoothing.candidate,
            outputError: try outputError(
                of: quantized, branch, smooth, weight: weight, calibration: calibration, on: pool),
            trials: smoothing.trials, splitErrors: split?.errors ?? [])
    }
}

extension LowRankQuantizer.Configuration {
    /// The candidates of a search, or the one given candidate.
    func candidates() throws(SparseKernelsError) -> [SmoothingCandidate] {
        switch smoothing {
        case .none: [.identity]
        case .fixed(let candidate): [candidate]
        case .search(let grids, let family): try family.candidates(grids: grids)
        }
    }
}

extension LowRankQuantizer {
    private func search(_ candidates: [SmoothingCandidate]) throws(SparseKernelsError) -> SmoothingSearch {
        try SmoothingSearch(
            candidates: candidates, rank: configuration.rank, weightFormat: configuration.weightFormat,
            activation: configuration.activation, scaleType: configuration.scaleType, sampleTokens: configuration.sampleTokens,
            seed: configuration.seed)
    }

    private var split: LowRankSplit {
        get throws(SparseKernelsError) {
            try LowRankSplit(
                LowRankSplit.Configuration(
                    rank: configuration.rank, iterations: configuration.iterations, method: configuration.svd,
                    weightFormat: configuration.weightFormat, activation: configuration.activation,
                    scaleType: configuration.scaleType, roundsAsReleased: configuration.roundsAsReleased,
                    seed: configuration.seed))
        }
    }

    /// The factors, or nil if all are 1, with their candidate and the trials.
    private func smoothing(
        _ weight: Tensor<Float>, _ calibration: Tensor<Float>, _ ranges: SmoothingRanges, on pool: WorkerPool,
        progress: ((SmoothingSearch.Trial) -> Void)?
    ) throws(SparseKernelsError) -> (smooth: Tensor<Float>?, candidate: SmoothingCandidate?, trials: [SmoothingSearch.Trial]) {
        let smooth: Tensor<Float>
        var candidate: SmoothingCandidate
        var trials: [SmoothingSearch.Trial] = []
        switch configuration.smoothing {
        case .none: return (nil, nil, [])
        case .fixed(let given):
            candidate = given
            smooth = try ranges.factors(given, scaleType: configuration.scaleType)
        case .search:
            let found = try search(configuration.candidates())(
                weights: [weight], calibration: calibration, ranges: ranges, on: pool, progress: progress)
            (candidate, smooth, trials) = (found.candidate, found.smooth, found.trials)
        }
        return (smooth.elements.allSatisfy { $0 == 1 } ? nil : smooth, candidate, trials)
    }

    /// GPTQ fits the residual to x / s, without the shift. The bias subtracts the shift with the quantised residual, so that
    /// rounding errors of the residual are multiplied only with x / s.
    private func quantize(
        _ residual: Tensor<Float>, calibration: Tensor<Float>, smooth: Tensor<Float>?, on pool: WorkerPool
    ) throws(SparseKernelsError) -> QuantizedWeight {
        let quantizer = try WeightQuantizer(configuration.weightFormat, scaleType: configuration.scaleType)
        return switch configuration.residual {
        case .roundToNearest: try quantizer(residual, on: pool)
        case .gptq:
            try GPTQ(quantizer)(
                residual, calibration: smooth.map { calibration.dividingColumns(by: $0, on: pool) } ?? calibration, on: pool)
        }
    }

    /// The relative error of the finished layer over all tokens, in parts.
    private func outputError(
        of quantized: QuantizedWeight, _ branch: LowRankBranch?, _ smooth: Tensor<Float>?, weight: Tensor<Float>,
        calibration: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Double {
        let (tokens, columns, tokensAtOnce) = (calibration.shape[0], calibration.shape[1], 1024)
        let rounding = ActivationRounding(
            format: configuration.activation, groupSize: configuration.weightFormat.groupSize, storage: .float32)
        var operand = try quantized.dequantized(on: pool)
        if let branch { operand = try operand.appendingColumns(of: branch.up, on: pool) }
        var (error, energy) = (0.0, 0.0)
        for start in stride(from: 0, to: tokens, by: tokensAtOnce) {
            let count = min(tokensAtOnce, tokens - start)
            let some = try Tensor<Float>([count, columns]) { calibration.span[start * columns + $0] }
            let sample = try CalibrationSample(
                inputs: some, shift: configuration.activation.shift, weight: weight, on: pool)
            error += try sample.squaredError(
                activations: sample.activations(smooth: smooth, down: branch?.down, rounding: rounding, on: pool),
                weight: operand, on: pool)
            energy += sample.energy
        }
        return relativeError(error, of: energy)
    }
}

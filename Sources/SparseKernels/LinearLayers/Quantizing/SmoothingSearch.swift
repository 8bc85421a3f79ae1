internal import KernelInterface

/// Chooses smoothing factors by their effect on a layer's output.
///
/// Every candidate is tried on a sample of the calibration tokens: smooth, split off a branch of rank r, round the residual to
/// nearest, quantise the activations, and compare the outputs. The smallest Σ |y − y_ref|² is chosen; of equals the last.
///
/// The released search computes a full decomposition in `Double` per candidate. This one follows the leading subspace from
/// candidate to candidate and stops each approximation when another sweep would gain less than 1% (`ScaledSubspace`). It
/// evaluates the layer as one product in single precision. A candidate whose residual no scale can represent is not chosen.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: per candidate about (tokens + 5 · rank) · outFeatures · inFeatures multiply-adds.
/// - Memory: outFeatures · (inFeatures + rank) floats per weight.
/// - Source: SVDQuant (arXiv 2411.05007); deepcompressor, `calib/smooth.py` (Layer, OutputsError, degree 2).
public struct SmoothingSearch: Sendable {
    /// A candidate and its error.
    public struct Trial: Hashable, Sendable {
        public let candidate: SmoothingCandidate
        /// √(Σ |y − y_ref|² / Σ |y_ref|²) over the sample; infinite for a candidate that no scale can represent.
        public let error: Double
    }

    public struct Result: Sendable {
        public let candidate: SmoothingCandidate
        /// `[inFeatures]`, the candidate's factors.
        public let smooth: Tensor<Float>
        /// The trials of all candidates, in order.
        public let trials: [Trial]
    }

    public let candidates: [SmoothingCandidate]
    /// The rank of the low-rank branch of each weight; 0 means that there is none.
    public let rank: Int
    public let weightFormat: WeightFormat
    public let activation: ActivationFormat
    /// The type to which factors and scales are rounded.
    public let scaleType: ElementType
    /// The most calibration tokens on which a candidate is tried, evenly spaced.
    public let sampleTokens: Int
    /// The seed of the first random subspace.
    public let seed: UInt64

    /// - Throws: `.invalidArgument` for no candidates, exponents outside 0…1, a rank outside 0…1024 or fewer than 1 token;
    ///   `.invalidElementType` for a scale type that is not F16, BF16 or F32.
    public init(
        candidates: [SmoothingCandidate], rank: Int = 32, weightFormat: WeightFormat = .svdQuantInt4,
        activation: ActivationFormat = .int4, scaleType: ElementType = .float16, sampleTokens: Int = 256, seed: UInt64 = 0
    ) throws(SparseKernelsError) {
        try require(!candidates.isEmpty, .invalidArgument, "candidates", expected: "at least one", actual: "none")
        for candidate in candidates { try candidate.check() }
        try require((0...1024).contains(rank), .invalidArgument, "rank", expected: "0 to 1024", actual: "\(rank)")
        try require(sampleTokens >= 1, .invalidArgument, "sampleTokens", expected: "at least 1", actual: "\(sampleTokens)")
        _ = try WeightQuantizer(weightFormat, scaleType: scaleType)
        self.candidates = candidates
        self.rank = rank
        self.weightFormat = weightFormat
        self.activation = activation
        self.scaleType = scaleType
        self.sampleTokens = sampleTokens
        self.seed = seed
    }

    /// Tries all candidates.
    ///
    /// - Parameters:
    ///   - weights: `[outFeatures, inFeatures]` each: the layers that have this input and share its factors. Layers that also
    ///     share a branch, as q, k and v do in SVDQuant, are stacked as one weight. The errors of all weights are added.
    ///   - calibration: `[tokens, inFeatures]`.
    ///   - pool: the threads to use. The call blocks until they are done.
    ///   - progress: called after each trial, on the calling thread.
    /// - Throws: `.invalidShape` for tensors that disagree or are empty; `.invalidArgument` for an element that is not finite,
    ///   a rank above an extent of a weight, or when no candidate's residual fits the scales.
    public func callAsFunction(
        weights: [Tensor<Float>], calibration: Tensor<Float>, on pool: WorkerPool = .shared,
        progress: ((Trial) -> Void)? = nil
    ) throws(SparseKernelsError) -> Result {
        let ranges = try SmoothingRanges(
            calibration: calibration, weights: weights, shift: activation.shift, on: pool)
        return try self(weights: weights, calibration: calibration, ranges: ranges, on: pool, progress: progress)
    }

    func callAsFunction(
        weights: [Tensor<Float>], calibration: Tensor<Float>, ranges: SmoothingRanges, on pool: WorkerPool,
        progress: ((Trial) -> Void)?
    ) throws(SparseKernelsError) -> Result {
        let quantizer = try WeightQuantizer(weightFormat, scaleType: scaleType)
        let rounding = ActivationRounding(format: activation, groupSize: weightFormat.groupSize, storage: .float32)
        let tokens = try CalibrationSample.tokens(of: calibration, limit: sampleTokens, on: pool)
        var layers: [Layer] = []
        for weight in weights {
            try LowRankSplit.check(rank: rank, of: weight)
            layers.append(
                Layer(
                    weight: try TrialWeight(weight: weight, rank: rank, quantizer: quantizer, seed: seed, on: pool),
                    sample: try CalibrationSample(
                        inputs: tokens, shift: activation.shift, weight: weight, on: pool)))
        }
        let energy = layers.reduce(0) { $0 + $1.sample.energy }
        var best: (error: Double, candidate: SmoothingCandidate, smooth: Tensor<Float>)?
        var trials: [Trial] = []
        var failure: SparseKernelsError?
        for candidate in candidates {
            let smooth = try ranges.factors(candidate, scaleType: scaleType)
            let error: Double
            do {
                var sum = 0.0
                for index in layers.indices { sum += try layers[index].squaredError(smooth, rounding, on: pool) }
                error = sum.isFinite ? sum : .infinity
            } catch let residual {
                failure = residual
                error = .infinity
            }
            if error <= best?.error ?? .greatestFiniteMagnitude { best = (error, candidate, smooth) }
            trials.append(Trial(candidate: candidate, error: relativeError(error, of: energy)))
            progress?(trials[trials.count - 1])
        }
        guard let best else {
            throw failure
                ?? SparseKernelsError(
                    .invalidArgument, "calibration", expected: "such that outputs fit single precision",
                    actual: "infinite errors")
        }
        return Result(candidate: best.candidate, smooth: best.smooth, trials: trials)
    }
}

extension SmoothingSearch {
    /// One of the layers that share the factors.
    private struct Layer {
        var weight: TrialWeight
        let sample: CalibrationSample

        mutating func squaredError(
            _ smooth: Tensor<Float>, _ rounding: ActivationRounding, on pool: WorkerPool
        ) throws(SparseKernelsError) -> Double {
            let down = try weight.apply(smooth: smooth, on: pool)
            let activations = try sample.activations(smooth: smooth, down: down, rounding: rounding, on: pool)
            return try sample.squaredError(activations: activations, weight: weight.operand, on: pool)
        }
    }
}

/// √(error / energy); 0 when both are 0.
func relativeError(_ error: Double, of energy: Double) -> Double {
    error == 0 ? 0 : (error / energy).squareRoot()
}

internal import KernelInterface

/// Splits a weight into a low-rank branch and a residual that quantises well: W ≈ up · down + Q(R), R = W − up · down.
///
///     q ← 0                              or Q(W) when `compensates`
///     repeat:  up · down ← SVD_r(W − q)       q ← Q(W − up · down)       keep the factors with the smallest output error
///
/// Iteration 1 is the decomposition of W. Later ones fit the branch to the loss of quantisation, and stop at the first that is
/// worse. Q rounds to nearest, whatever rounds R in the end. Weight and calibration are those of the smoothed layer.
///
/// - Results are bitwise equal for every number of threads.
/// - Complexity: per iteration one decomposition and (tokens + rank) · outFeatures · inFeatures multiply-adds.
/// - Source: SVDQuant (arXiv 2411.05007), section 4.2; deepcompressor, `calib/lowrank.py`. LoRC and LQER instead decompose the
///   error, as `compensates` does with one iteration.
public struct LowRankSplit: Sendable {
    public struct Result: Sendable {
        /// `[rank, inFeatures]`, rounded to `scaleType`.
        public let down: Tensor<Float>
        /// `[outFeatures, rank]`, rounded to `scaleType`.
        public let up: Tensor<Float>
        /// `[outFeatures, inFeatures]`, the part that is to be quantised.
        public let residual: Tensor<Float>
        /// σ of the kept factors before rounding, descending.
        public let singularValues: [Float]
        /// Σ |y − y_ref|² over the calibration tokens, by iteration.
        public let errors: [Double]
        /// The iteration whose factors were kept, from 0.
        public let keptIteration: Int
    }

    /// How a weight is split.
    public struct Configuration: Hashable, Sendable {
        public var rank: Int
        public var iterations: Int
        /// Whether to stop at the first iteration that is worse than the best.
        public var stopsEarly: Bool
        /// Whether to start from the error of plain quantisation.
        public var compensates: Bool
        public var method: SVDMethod
        public var weightFormat: WeightFormat
        public var activation: ActivationFormat
        /// The type to which factors and scales are rounded.
        public var scaleType: ElementType
        /// Whether up · down and the residual are rounded to `scaleType`, as in the released code.
        public var roundsAsReleased: Bool
        /// The seed of the randomised decomposition.
        public var seed: UInt64

        public init(
            rank: Int = 32, iterations: Int = 1, stopsEarly: Bool = true, compensates: Bool = false,
            method: SVDMethod = .randomized(), weightFormat: WeightFormat = .svdQuantInt4,
            activation: ActivationFormat = .int4, scaleType: ElementType = .float16, roundsAsReleased: Bool = false,
            seed: UInt64 = 0
        ) {
            self.rank = rank
            self.iterations = iterations
            self.stopsEarly = stopsEarly
            self.compensates = compensates
            self.method = method
            self.weightFormat = weightFormat
            self.activation = activation
            self.scaleType = scaleType
            self.roundsAsReleased = roundsAsReleased
            self.seed = seed
        }
    }

    public let configuration: Configuration

    /// - Throws: `.invalidArgument` for a rank outside 1…1024, fewer than 1 iteration or invalid options of `method`;
    ///   `.invalidElementType` for a scale type that is not F16, BF16 or F32.
    public init(_ configuration: Configuration = Configuration()) throws(SparseKernelsError) {
        let (rank, iterations) = (configuration.rank, configuration.iterations)
        try require((1...1024).contains(rank), .invalidArgument, "rank", expected: "1 to 1024", actual: "\(rank)")
        try require(iterations >= 1, .invalidArgument, "iterations", expected: "at least 1", actual: "\(iterations)")
        _ = try LowRankFactorization(rank: rank, method: configuration.method, seed: configuration.seed)
        _ = try WeightQuantizer(configuration.weightFormat, scaleType: configuration.scaleType)
        self.configuration = configuration
    }

    /// Splits a weight.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`, smoothed. Layers that share a branch are stacked.
    ///   - calibration: `[tokens, inFeatures]`, smoothed and shifted, as it is quantised when the layer runs. The errors are
    ///     then those of a layer of shifted inputs; ``LowRankQuantizer`` compares by the layer whose bias undoes the shift.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` for tensors that disagree or are empty; `.invalidArgument` for an element that is not finite,
    ///   a rank above an extent of the weight, or a residual that no scale can represent.
    public func callAsFunction(
        _ weight: Tensor<Float>, calibration: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Result {
        _ = try SmoothingRanges(calibration: calibration, weights: [weight], on: pool)
        return try split(weight, sample: CalibrationSample(inputs: calibration, weight: weight, on: pool), on: pool)
    }

    /// - Parameter smooth: the factors of the columns of `weight`, when the sample is of the layer before smoothing.
    func split(
        _ weight: Tensor<Float>, sample: CalibrationSample, smooth: Tensor<Float>? = nil, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Result {
        let (rank, iterations, scaleType) = (configuration.rank, configuration.iterations, configuration.scaleType)
        try Self.check(rank: rank, of: weight)
        let storage = try StorageType(scaleType: scaleType)
        let quantizer = try WeightQuantizer(configuration.weightFormat, scaleType: scaleType)
        let rounding = ActivationRounding(
            format: configuration.activation, groupSize: configuration.weightFormat.groupSize,
            storage: configuration.roundsAsReleased ? storage : .float32)
        var target = weight
        if configuration.compensates {
            try target.roundWeights(quantizer, columns: weight.shape[1], on: pool)
            target = try Self.difference(weight, target, on: pool)
        }
        var best: (error: Double, iteration: Int, factors: LowRankFactors)?
        var errors: [Double] = []
        var previous: LowRankFactors?
        for iteration in 0..<iterations {
            let factorization = try LowRankFactorization(rank: rank, method: method(at: iteration), seed: configuration.seed)
            let exact = try factorization(target, startingFrom: previous, on: pool)
            let factors = LowRankFactors(
                down: exact.down.rounded(to: storage, on: pool), up: exact.up.rounded(to: storage, on: pool),
                singularValues: exact.singularValues)
            previous = exact
            try require(
                (factors.up.elements + factors.down.elements).allSatisfy(\.isFinite), .invalidArgument, "weight",
                expected: "of singular values that fit \(scaleType.rawValue)", actual: "\(exact.singularValues[0])")
            let residual = try residual(of: weight, down: factors.down, up: factors.up, on: pool)
            var quantized = residual
            try quantized.roundWeights(quantizer, columns: weight.shape[1], on: pool)
            let down = smooth.map { factors.down.dividingColumns(by: $0, on: pool).rounded(to: storage, on: pool) }
            let error = try sample.squaredError(
                activations: sample.activations(
                    smooth: smooth, down: down ?? factors.down, rounding: rounding, on: pool),
                weight: quantized.appendingColumns(of: factors.up, on: pool), on: pool)
            errors.append(error)
            if error <= best?.error ?? .infinity {
                best = (error, iteration, factors)
            } else if configuration.stopsEarly {
                break
            }
            if iteration + 1 < iterations { target = try Self.difference(weight, quantized, on: pool) }
        }
        guard let best else {
            throw SparseKernelsError(
                .invalidArgument, "calibration", expected: "such that outputs fit single precision", actual: "errors \(errors)")
        }
        return Result(
            down: best.factors.down, up: best.factors.up,
            residual: try residual(of: weight, down: best.factors.down, up: best.factors.up, on: pool),
            singularValues: best.factors.singularValues, errors: errors, keptIteration: best.iteration)
    }

    /// W − up · down, with the released rounding if the split uses it.
    ///
    /// - Parameters:
    ///   - weight: `[outFeatures, inFeatures]`.
    ///   - down: `[rank, inFeatures]`.
    ///   - up: `[outFeatures, rank]`.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` naming the factor that disagrees.
    public func residual(
        of weight: Tensor<Float>, down: Tensor<Float>, up: Tensor<Float>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> Tensor<Float> {
        try require(
            weight.shape.count == 2 && weight.count > 0, .invalidShape, "weight", expected: "[outFeatures, inFeatures]",
            actual: "\(weight.shape)")
        let (rows, columns) = (weight.shape[0], weight.shape[1])
        try require(
            down.shape.count == 2 && down.shape[0] >= 1 && down.shape[1] == columns, .invalidShape, "down",
            expected: "[rank, \(columns)]", actual: "\(down.shape)")
        try require(
            up.shape == [rows, down.shape[0]], .invalidShape, "up", expected: "\([rows, down.shape[0]])", actual: "\(up.shape)")
        let storage = configuration.roundsAsReleased ? try StorageType(scaleType: configuration.scaleType) : .float32
        var residual = try Tensor<Float>(zeros: [rows, columns])
        try GEMM(m: rows, n: columns, k: down.shape[0]).run(a: up, b: down, into: &residual, on: pool)
        residual.updateRows(on: pool) { row, target in
            weight.span.withUnsafeBufferPointer { weight in
                let weight = weight.baseAddress! + row * columns
                if storage == .float32 {
                    for k in 0..<columns { target[k] = weight[k] - target[k] }
                } else {
                    for k in 0..<columns { target[k] = storage.rounded(weight[k] - storage.rounded(target[k])) }
                }
            }
        }
        return residual
    }

    /// After the first iteration the last factors are close to the next ones, so that one power iteration is enough.
    private func method(at iteration: Int) -> SVDMethod {
        let method = configuration.method
        guard iteration > 0, case .randomized(let oversampling, let powerIterations) = method else { return method }
        return .randomized(oversampling: oversampling, powerIterations: min(powerIterations, 1))
    }

    static func check(rank: Int, of weight: Tensor<Float>) throws(SparseKernelsError) {
        let limit = min(weight.shape[0], weight.shape[1])
        try require(
            rank <= limit, .invalidArgument, "rank", expected: "at most \(limit) for a weight of \(weight.shape)",
            actual: "\(rank)")
    }

    private static func difference(
        _ a: Tensor<Float>, _ b: Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Tensor<Float> {
        var result = a
        let columns = a.shape[1]
        result.updateRows(on: pool) { row, target in
            b.span.withUnsafeBufferPointer { b in
                for k in 0..<columns { target[k] -= b[row * columns + k] }
            }
        }
        return result
    }
}

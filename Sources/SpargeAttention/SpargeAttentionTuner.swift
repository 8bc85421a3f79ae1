public import SparseKernels

/// Finds settings for every head from sample operands, with as few blocks as an error bound allows.
///
/// Each head and sample goes through the procedure of the released `autotune.py`:
///
/// 1. The similarity threshold takes the values −1, −15/16, … 15/16.
/// 2. For each value, bisection finds the smallest mass of `.cdfThreshold`, to 0.001, whose relative L1 error Σ|o − o_dense| /
///    Σ|o_dense| is below `relativeL1`.
/// 3. With that mask, bisection finds the smallest `pvSkipThreshold`, to 0.1 in 0…50, whose error is below `pvRelativeL1`.
/// 4. The loop ends when less than a tenth of the blocks is dropped, because higher similarity thresholds drop fewer.
///
/// Then pairs of neighbouring similarity thresholds form groups, over all samples. The group with the most dropped blocks in
/// total wins, and the head takes the largest similarity threshold, mass and skip threshold in it. A head that drops a tenth or
/// less on average becomes dense.
///
/// - The bisections return the smallest tried value that met the error; the released ones return the next midpoint, untried.
/// - Deterministic. At most `maximumEvaluations` attention runs, usually far fewer, because equal masks run once.
public struct SpargeAttentionTuner: Sendable {
    /// Bound on the relative L1 error of the mask alone.
    public let relativeL1: Double
    /// Bound on the same error with skipping of P·V; nil leaves `pvSkipThreshold` at 20, the released starting value.
    public let pvRelativeL1: Double?
    /// The configuration of the plans that will use the settings.
    public let configuration: SpargeAttentionConfiguration
    public let instructionSet: InstructionSet?

    /// Operands of one call: `[queryHeads, tokens, headDim]`, and `[kvHeads, tokens, …]` for keys and values.
    public struct Sample: Sendable {
        public let query: Tensor<Float>
        public let key: Tensor<Float>
        public let value: Tensor<Float>
        public let shape: AttentionShape

        /// - Throws: `.invalidShape` when the tensors disagree with each other.
        public init<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
            query: Tensor<Q>, key: Tensor<K>, value: Tensor<V>
        ) throws(SparseKernelsError) {
            shape = try AttentionShape(
                query: query.view(named: "query"), key: key.view(named: "key"), value: value.view(named: "value"))
            self.query = query.converted()
            self.key = key.converted()
            self.value = value.converted()
        }
    }

    /// The result of the bisections at one similarity threshold of one sample.
    public struct Point: Hashable, Sendable {
        public var sample: Int
        public var settings: SpargeAttentionHead
        /// Kept fraction of the reachable blocks.
        public var density: Double
    }

    /// The result for one head.
    public struct TunedHead: Hashable, Sendable {
        public var settings: SpargeAttentionHead
        /// Mean kept fraction over the points of the winning group.
        public var density: Double
        /// All points, in the order they were found.
        public var points: [Point]
    }

    /// The progress of the tuning, reported after every point.
    public struct Progress: Hashable, Sendable {
        public var head: Int
        public var heads: Int
        public var sample: Int
        public var samples: Int
        public var similarityThreshold: Float
        /// Number of attention runs so far, and the largest possible number.
        public var evaluations: Int
        public var maximumEvaluations: Int
    }

    /// - Parameters:
    ///   - configuration: the configuration of the plans that will use the settings.
    ///   - relativeL1: 0.07 as released; the paper uses 0.08 for Llama, 0.05 for CogVideoX and Mochi, 0.07 for Flux.
    ///   - pvRelativeL1: above `relativeL1`; 0.08 as released.
    ///   - instructionSet: the level that runs; nil means the best of this machine, or what `SPARSEKERNELS_ISA` says.
    /// - Throws: `.invalidArgument` for bounds that are not positive and finite, or not in this order.
    public init(
        _ configuration: SpargeAttentionConfiguration = SpargeAttentionConfiguration(), relativeL1: Double = 0.07,
        pvRelativeL1: Double? = 0.08, instructionSet: InstructionSet? = nil
    ) throws(SparseKernelsError) {
        try require(
            relativeL1 > 0 && relativeL1.isFinite, .invalidArgument, "relativeL1", expected: "positive and finite",
            actual: "\(relativeL1)")
        if let pvRelativeL1, !(pvRelativeL1 > relativeL1 && pvRelativeL1.isFinite) {
            throw SparseKernelsError(
                .invalidArgument, "pvRelativeL1", expected: "above relativeL1 (\(relativeL1)) and finite",
                actual: "\(pvRelativeL1)")
        }
        self.relativeL1 = relativeL1
        self.pvRelativeL1 = pvRelativeL1
        self.configuration = configuration
        self.instructionSet = instructionSet
    }

    /// Number of similarity thresholds per unit.
    private static let granularity = 16
    private static let massPrecision = 0.001
    private static let skipPrecision = 0.1
    private static let skipRange = 50.0
    /// Smallest dropped fraction at which a threshold, or a sparse head, is still worthwhile.
    private static let leastSparsity = 0.1

    /// The largest number of attention runs per head and sample: the dense one, and 11 + 10 bisection steps per similarity
    /// threshold. From 0.1 the remaining 0.9 is halved to 0.001 in 10 steps; from 20 the remaining 30 is halved to 0.1 in 9.
    public static let evaluationsPerHead = 1 + 2 * granularity * (11 + 10)

    /// The largest number of attention runs of a call.
    public func maximumEvaluations(_ samples: [Sample]) -> Int {
        (samples.first?.shape.queryHeads ?? 0) * samples.count * Self.evaluationsPerHead
    }

    /// Finds the settings of every query head.
    ///
    /// - Parameters:
    ///   - samples: at least one; they may differ in length but not in heads and channels.
    ///   - pool: the threads to use. The call blocks until they are done.
    ///   - progress: called on the caller's thread.
    /// - Throws: `.invalidShape` for no samples or samples that disagree, and the errors of `SpargeAttentionPrefill`.
    public func callAsFunction(
        _ samples: [Sample], on pool: WorkerPool = .shared, progress: (Progress) -> Void = { _ in }
    ) throws(SparseKernelsError) -> [TunedHead] {
        guard let first = samples.first?.shape else {
            throw SparseKernelsError(.invalidShape, "samples", expected: "one sample or more", actual: "none")
        }
        for (index, sample) in samples.enumerated() {
            let shape = sample.shape
            try require(
                shape.queryHeads == first.queryHeads && shape.kvHeads == first.kvHeads && shape.headDim == first.headDim,
                .invalidShape, "samples[\(index)]",
                expected: "\(first.queryHeads) and \(first.kvHeads) heads of \(first.headDim) channels",
                actual: "\(shape.queryHeads) and \(shape.kvHeads) of \(shape.headDim)")
        }
        var tuned: [TunedHead] = []
        var report = Progress(
            head: 0, heads: first.queryHeads, sample: 0, samples: samples.count, similarityThreshold: -1, evaluations: 0,
            maximumEvaluations: maximumEvaluations(samples))
        for head in 0..<first.queryHeads {
            var points: [Point] = []
            for (index, sample) in samples.enumerated() {
                (report.head, report.sample) = (head, index)
                var trial = try SpargeAttentionTrial(self, sample, head: head, on: pool)
                report.evaluations += trial.evaluations
                for step in -Self.granularity..<Self.granularity {
                    let before = trial.evaluations
                    let similarity = Float(step) / Float(Self.granularity)
                    points.append(try point(&trial, sample: index, similarityThreshold: similarity))
                    report.similarityThreshold = similarity
                    report.evaluations += trial.evaluations - before
                    progress(report)
                    if 1 - points[points.count - 1].density < Self.leastSparsity { break }
                }
            }
            tuned.append(Self.choose(points))
        }
        return tuned
    }

    /// Runs both bisections at one similarity threshold.
    private func point(
        _ trial: inout SpargeAttentionTrial, sample: Int, similarityThreshold: Float
    ) throws(SparseKernelsError) -> Point {
        func settings(_ mass: Double, _ skip: Float?) -> SpargeAttentionHead {
            SpargeAttentionHead(.cdfThreshold(mass), similarityThreshold: similarityThreshold, pvSkipThreshold: skip)
        }
        var range = (low: 0.0, high: 1.0)
        var mass = 0.1
        while range.high - range.low > Self.massPrecision {
            if try trial.error(settings(mass, nil)) < relativeL1 { range.high = mass } else { range.low = mass }
            mass = (range.low + range.high) / 2
        }
        mass = range.high
        let density = try trial.density(settings(mass, nil))
        guard let pvRelativeL1 else {
            return Point(sample: sample, settings: settings(mass, 20), density: density)
        }
        var skips = (low: 0.0, high: Self.skipRange)
        var skip = 20.0
        while skips.high - skips.low > Self.skipPrecision {
            if try trial.error(settings(mass, Float(skip))) < pvRelativeL1 { skips.high = skip } else { skips.low = skip }
            skip = (skips.low + skips.high) / 2
        }
        return Point(sample: sample, settings: settings(mass, Float(skips.high)), density: density)
    }

    /// The largest settings of the winning group, or dense settings.
    private static func choose(_ points: [Point]) -> TunedHead {
        var groups = [[Point]](repeating: [], count: granularity)
        for point in points {
            groups[Int((point.settings.similarityThreshold + 1) * Float(granularity) / 2)].append(point)
        }
        var best: (sparsity: Double, group: [Point]) = (-1, [])
        for group in groups where !group.isEmpty {
            let sparsity = group.reduce(0) { $0 + 1 - $1.density }
            if sparsity > best.sparsity { best = (sparsity, group) }
        }
        let density = best.group.reduce(0) { $0 + $1.density } / Double(best.group.count)
        if 1 - density <= leastSparsity { return TunedHead(settings: .dense, density: 1, points: points) }
        var mass = 0.0
        var (similarity, skip) = (-Float.infinity, -Float.infinity)
        for point in best.group {
            if case .cdfThreshold(let value) = point.settings.rule { mass = max(mass, value) }
            similarity = max(similarity, point.settings.similarityThreshold)
            skip = max(skip, point.settings.pvSkipThreshold ?? skip)
        }
        let settings = SpargeAttentionHead(.cdfThreshold(mass), similarityThreshold: similarity, pvSkipThreshold: skip)
        return TunedHead(settings: settings, density: density, points: points)
    }
}

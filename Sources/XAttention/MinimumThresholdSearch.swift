/// Searches the smallest thresholds that keep a model's performance, by dynamic programming over the heads.
///
/// The XAttention paper describes this search, but its code was not released. All heads start at a threshold (0.9); one
/// *reduction* multiplies one head's threshold by `factor` (0.9). With D[h][m] the best performance after exactly m reductions
/// among the first h heads,
///
///     D[h][m] = max( D[h−1][m],  P(h, m) )
///
/// where P(h, m) is the performance after lowering head h by one step in the state of D[h−1][m−1]. The paper does not define
/// performance: the caller passes a function that scores a vector of thresholds, such as the accuracy on a calibration set.
///
/// ```swift
/// var search = try MinimumThresholdSearch(heads: 32, maximumReductions: 32)
/// let outcome = search { thresholds in .init(performance: accuracy(thresholds)) }
/// print(outcome.best.thresholds)
/// ```
///
/// - In the paper's recurrence a head is lowered once. `stepsPerHead` = K allows up to K steps: D[h][m] is then the best result
///   of lowering head h by k ≤ K steps in the states of D[h−1][m−k]. Another way is to search again from the thresholds found.
/// - At equal performance the lower density wins, then more reductions, then the state found first, which has fewer steps of
///   later heads. NaN counts as −∞.
/// - Evaluations are cached by thresholds: after a search that stopped at `maximumEvaluations`, the same call continues from
///   there. Two runs make the same evaluations in the same order.
/// - Complexity: `plannedEvaluations` evaluations, at most heads · `maximumReductions` · K; memory for as many vectors.
/// - Source: arXiv 2503.16428, section "Minimum threshold prediction".
public struct MinimumThresholdSearch: Sendable {
    /// The caller's measurement for a vector of thresholds.
    public struct Evaluation: Hashable, Sendable {
        /// Larger is better.
        public var performance: Double
        /// Smaller is better at equal performance. Without it, only the number of reductions breaks ties.
        public var density: Double

        public init(performance: Double, density: Double = 0) {
            self.performance = performance
            self.density = density
        }
    }

    /// A state of the search.
    public struct Candidate: Hashable, Sendable {
        /// The number of steps of every head. Their sum is `reductions`.
        public let steps: [Int]
        public let thresholds: [Double]
        public let evaluation: Evaluation
        public var reductions: Int { steps.reduce(0, +) }
    }

    /// The result of a search.
    public struct Outcome: Sendable {
        /// The best state for every number of reductions that was reached, in ascending order from 0.
        public let candidates: [Candidate]
        /// False when the search stopped at `maximumEvaluations`.
        public let isComplete: Bool
        /// Number of evaluations in this call.
        public let evaluations: Int

        /// The best of all states.
        public var best: Candidate { candidates.dropFirst().reduce(candidates[0]) { isBetter($1, $0) ? $1 : $0 } }

        /// The state with the most reductions whose performance is at least `performance`; nil if there is none.
        public func candidate(performanceAtLeast performance: Double) -> Candidate? {
            candidates.last { $0.evaluation.performance >= performance }
        }
    }

    /// The thresholds before any reduction.
    public let start: [Double]
    public let factor: Double
    /// M, the largest number of reductions over all heads.
    public let maximumReductions: Int
    /// K, the largest number of reductions of one head.
    public let stepsPerHead: Int
    /// Number of evaluations cached by earlier calls.
    public var rememberedEvaluations: Int { remembered.count }
    private var remembered: [[Double]: Evaluation] = [:]

    /// Makes a search from one threshold for all heads.
    /// - Throws: as the initialiser with one threshold per head; `.invalidShape` for no heads.
    public init(
        heads: Int, start: Double = 0.9, factor: Double = 0.9, maximumReductions: Int = 1000, stepsPerHead: Int = 1
    ) throws(SparseKernelsError) {
        try require(heads >= 1, .invalidShape, "heads", expected: "at least 1", actual: "\(heads)")
        try self.init(
            start: Array(repeating: start, count: heads), factor: factor, maximumReductions: maximumReductions,
            stepsPerHead: stepsPerHead)
    }

    /// Makes a search from one threshold per head.
    /// - Throws: `.invalidShape` for no thresholds; `.invalidArgument` for thresholds outside 0…1, a factor outside 0..<1, or
    ///   limits outside 1...2²⁰.
    public init(
        start: [Double], factor: Double = 0.9, maximumReductions: Int = 1000, stepsPerHead: Int = 1
    ) throws(SparseKernelsError) {
        try require(!start.isEmpty, .invalidShape, "start", expected: "at least one threshold", actual: "none")
        for (index, threshold) in start.enumerated() {
            try require(
                threshold >= 0 && threshold <= 1, .invalidArgument, "start[\(index)]", expected: "within 0...1",
                actual: "\(threshold)")
        }
        try require(
            factor >= 0 && factor < 1, .invalidArgument, "factor", expected: "at least 0 and below 1", actual: "\(factor)")
        for (name, limit) in [("maximumReductions", maximumReductions), ("stepsPerHead", stepsPerHead)] {
            try require(
                limit >= 1 && limit <= 1 << 20, .invalidArgument, name, expected: "within 1...2²⁰", actual: "\(limit)")
        }
        self.start = start
        self.factor = factor
        self.maximumReductions = maximumReductions
        self.stepsPerHead = stepsPerHead
    }

    /// Number of evaluations of a complete search with an empty cache.
    public var plannedEvaluations: Int {
        start.indices.reduce(1) { $0 + transitions(head: $1).count }
    }

    /// Runs the search.
    ///
    /// - Parameters:
    ///   - maximumEvaluations: largest number of new evaluations in this call; at least one is made.
    ///   - progress: called after every new evaluation with the number made in this call and `plannedEvaluations`.
    ///   - evaluate: scores a vector of thresholds, one per head. An error ends the search; earlier evaluations stay cached.
    public mutating func callAsFunction<Failure: Error>(
        maximumEvaluations: Int = .max, progress: (_ made: Int, _ planned: Int) -> Void = { _, _ in },
        evaluate: (_ thresholds: [Double]) throws(Failure) -> Evaluation
    ) throws(Failure) -> Outcome {
        let planned = plannedEvaluations
        var made = 0
        // D[h] is updated in place, downwards in reductions, so that lower entries are still those of the previous head.
        var best = [Candidate?](repeating: nil, count: reachableReductions(heads: start.count) + 1)
        var isComplete = true
        /// Returns nil when the limit is reached.
        func measure(_ steps: [Int]) throws(Failure) -> Candidate? {
            let thresholds = zip(start, steps).map { (0..<$1).reduce($0) { threshold, _ in threshold * factor } }
            if let evaluation = remembered[thresholds] {
                return Candidate(steps: steps, thresholds: thresholds, evaluation: evaluation)
            }
            if made > 0 && made >= maximumEvaluations { return nil }
            var evaluation = try evaluate(thresholds)
            if evaluation.performance.isNaN { evaluation.performance = -.infinity }
            remembered[thresholds] = evaluation
            made += 1
            progress(made, planned)
            return Candidate(steps: steps, thresholds: thresholds, evaluation: evaluation)
        }
        best[0] = try measure(Array(repeating: 0, count: start.count))
        search: for head in start.indices {
            for (reductions, count) in transitions(head: head) {
                guard let source = best[reductions - count] else { continue }
                var steps = source.steps
                steps[head] = count
                guard let candidate = try measure(steps) else {
                    isComplete = false
                    break search
                }
                if best[reductions].map({ isBetter(candidate, $0) }) ?? true { best[reductions] = candidate }
            }
        }
        return Outcome(candidates: best.compactMap { $0 }, isComplete: isComplete, evaluations: made)
    }

    /// The largest number of reductions that the first heads can have together.
    private func reachableReductions(heads: Int) -> Int { min(maximumReductions, heads * stepsPerHead) }

    /// The new states of a head in the order of measurement: total reductions, and the head's own steps among them.
    private func transitions(head: Int) -> [(reductions: Int, steps: Int)] {
        let before = reachableReductions(heads: head)
        var transitions: [(reductions: Int, steps: Int)] = []
        for reductions in stride(from: reachableReductions(heads: head + 1), through: 1, by: -1) {
            for steps in 1...min(stepsPerHead, reductions) where reductions - steps <= before {
                transitions.append((reductions, steps))
            }
        }
        return transitions
    }
}

/// Compares by larger performance, then smaller density, then more reductions.
private func isBetter(
    _ a: MinimumThresholdSearch.Candidate, _ b: MinimumThresholdSearch.Candidate
) -> Bool {
    if a.evaluation.performance != b.evaluation.performance { return a.evaluation.performance > b.evaluation.performance }
    if a.evaluation.density != b.evaluation.density { return a.evaluation.density < b.evaluation.density }
    return a.reductions > b.reductions
}

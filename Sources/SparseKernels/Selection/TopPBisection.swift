extension TopP {
    /// The upper bound at which the bisection starts.
    public enum BisectionUpperBound: Hashable, Sendable {
        /// The weight of element 0, as in the released kernel.
        ///
        /// The kernel expects token 0 to be the sink with the largest weight. Otherwise the search stays below the right cut,
        /// and keeps far more than the mass needs; with weight 0 there it keeps every weight that is not 0.
        case firstWeight
        /// The largest weight, as in Algorithm 1 of the paper.
        case maximum
    }

    /// The result of the bisection: elements above `threshold` are kept.
    public struct Bisection: Hashable, Sendable {
        public let threshold: Float
        /// The number of passes over the weights.
        public let rounds: Int

        /// Indices of the weights above the threshold, ascending.
        public func indices(in weights: Span<Float>) -> [Int] { weights.indices.filter { weights[$0] > threshold } }
    }

    /// Twilight's kernel: bisects for a threshold between weights such that the weights above it add up to `mass` or more.
    ///
    /// Equal weights at the threshold are all kept or all dropped, unlike with `select`. The kept mass is never below `mass`,
    /// unless the sum of all weights is; then all weights above 0 are kept.
    ///
    ///     low = 0, high = w₀ or max w
    ///     repeat  mid = (low + high)/2
    ///             a = min{w : w > low}, at most high          b = max{w : w ≤ high}, at least low
    ///             Σ{w : w > mid} ≥ p ?  low = mid  :  high = min(mid, b)
    ///     until   b − a ≤ epsilon                             with a and b from before the update
    ///
    /// - Parameters:
    ///   - weights: finite probabilities, at least one, that add up to 1, because `mass` is compared with their sums.
    ///   - mass: the mass p to reach, 0…1, rounded to `Float` as in the kernel.
    ///   - epsilon: at least 0.
    ///   - upperBound: the upper bound at which the search starts.
    /// - Throws: `.invalidArgument` for arguments outside these domains, `.invalidShape` for no weights.
    /// - Complexity: O(n) per round; about log₂(w_max/epsilon) rounds.
    /// - Source: `TopPReturnMaskKernel` in `csrc/include/sampling.cuh` of tsinghua-ideal/Twilight. The kernel adds in single
    ///   precision in the order of its threads. Here each sum is in `Double` and rounded to `Float` once, so masks can differ
    ///   only where a sum is within rounding of `mass`.
    public static func bisection(
        weights: Span<Float>, mass: Double, upperBound: BisectionUpperBound = .firstWeight, epsilon: Float = 1e-5
    ) throws(SparseKernelsError) -> Bisection {
        try checkMass(mass, named: "mass")
        try require(epsilon >= 0, .invalidArgument, "epsilon", expected: "at least 0", actual: "\(epsilon)")
        try require(!weights.isEmpty, .invalidShape, "weights", expected: "one weight or more", actual: "none")
        try checkWeights(weights)
        let required = Float(mass)
        var low: Float = 0
        var high = weights[0]
        if upperBound == .maximum { for index in weights.indices { high = max(high, weights[index]) } }
        var rounds = 0
        while true {
            rounds += 1
            // Halving before the sum avoids overflow: low + high may exceed the largest `Float`.
            let middle = low / 2 + high / 2
            var (above, below) = (high, low)
            var sum = 0.0
            for index in weights.indices {
                let weight = weights[index]
                if weight > low { above = min(above, weight) }
                if weight <= high { below = max(below, weight) }
                if weight > middle { sum += Double(weight) }
            }
            if Float(sum) >= required { low = middle } else { high = min(middle, below) }
            if below - above <= epsilon { return Bisection(threshold: low, rounds: rounds) }
        }
    }
}

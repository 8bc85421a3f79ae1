/// Twilight's second step for one query of one head, in `Double`: weights estimated from compact keys, and the tokens with a
/// mass of them.
///
///     w = softmax over the selected tokens of scale·q·k̂        0 elsewhere, so that the mass is a fraction of the selection's
///     low = 0, high = w_0 or max w
///     repeat  mid = (low + high)/2
///             a = min{w : w > low}, at most high          b = max{w : w ≤ high}, at least low
///             Σ{w : w > mid} ≥ p ?  low = mid  :  high = min(mid, b)
///     until   b − a ≤ epsilon                             with a and b from before the update
///     kept = selected tokens with w > low
///
/// - Source: Twilight (arXiv 2502.02770), algorithm 1; `csrc/include/sampling.cuh` and
///   `twilight/pyimpl` of tsinghua-ideal/Twilight.
public struct ReferenceTwilight: Sendable {
    /// The weights of all tokens; 0 for those that are not selected.
    public let weights: [Double]
    public let threshold: Double
    /// Tokens above the threshold, ascending.
    public let kept: [Int]
    /// The least distance of a sum of the bisection from the mass: smaller errors of sums do not change the threshold.
    public let massMargin: Double

    /// - Parameters:
    ///   - query: `headDim` channels.
    ///   - estimates: the rows of k̂, by position.
    ///   - selected: the positions of the first step, ascending.
    ///   - mass: the mass p to reach.
    ///   - startsAtFirstToken: whether `high` is token 0's weight, as in the released kernel, or the largest, as in the paper.
    ///   - softmaxScale: the factor on q·k̂; nil means 1/√headDim.
    ///   - epsilon: the difference of a and b at which the bisection ends.
    public init(
        query: [Double], estimates: [[Double]], selected: [Int], mass: Double, startsAtFirstToken: Bool = true,
        softmaxScale: Double? = nil, epsilon: Double = 1e-5
    ) {
        let scale = softmaxScale ?? 1 / Double(query.count).squareRoot()
        let scores = selected.map { scale * zip(query, estimates[$0]).reduce(0) { $0 + $1.0 * $1.1 } }
        let maximum = scores.max() ?? 0
        let exponentials = scores.map { exponential($0 - maximum) }
        let sum = exponentials.reduce(0, +)
        var weights = [Double](repeating: 0, count: estimates.count)
        for (position, weight) in zip(selected, exponentials) { weights[position] = weight / sum }
        self.init(weights: weights, mass: mass, startsAtFirstToken: startsAtFirstToken, epsilon: epsilon)
    }

    /// Runs the bisection only.
    /// - Parameters:
    ///   - weights: the weights, not negative; at least one.
    ///   - mass: the mass p to reach.
    ///   - startsAtFirstToken: whether `high` is the weight of token 0 or the largest one.
    ///   - epsilon: the difference of a and b at which the bisection ends.
    public init(weights: [Double], mass: Double, startsAtFirstToken: Bool = true, epsilon: Double = 1e-5) {
        var low = 0.0
        var high = startsAtFirstToken ? weights[0] : weights.max() ?? 0
        var margin = Double.infinity
        while true {
            let middle = (low + high) / 2
            let above = min(high, weights.filter { $0 > low }.min() ?? high)
            let below = max(low, weights.filter { $0 <= high }.max() ?? low)
            let sum = weights.reduce(0) { $1 > middle ? $0 + $1 : $0 }
            margin = min(margin, abs(sum - mass))
            if sum >= mass { low = middle } else { high = min(middle, below) }
            if below - above <= epsilon { break }
        }
        self.weights = weights
        threshold = low
        kept = weights.indices.filter { weights[$0] > low }
        massMargin = margin
    }

    /// The tokens of any of the lists, ascending, which the query heads of a KV head read together.
    public static func groupUnion(_ lists: [[Int]]) -> [Int] { Set(lists.joined()).sorted() }
}

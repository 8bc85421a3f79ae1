public import SparseKernels

/// A mixture of experts in `Double`, one token at a time.
///
///     s = softmax(logits) or sigmoid(logits)         chosen: the k largest keys, s + bias or the logits, of open groups
///     w = scale · s, or scale · s / Σ chosen s        y = Σ w · down(f(gate x) · up x) + Σ shared down(f(gate x) · up x)
public enum ReferenceExperts {
    /// The experts of a token.
    public struct Choice: Sendable {
        public var ids: [Int]
        public var weights: [Double]
        /// Of all experts: the scores, and what is compared.
        public var scores: [Double]
        public var keys: [Double]
    }

    /// Chooses the experts of a token: a full sort, equal keys by index.
    public static func route(_ logits: [Double], _ router: ExpertRouter) -> Choice {
        let scores: [Double]
        switch router.scores {
        case .sigmoid: scores = logits.map { 1 / (1 + exponential(-$0)) }
        case .softmax:
            let largest = logits.max() ?? 0
            let powers = logits.map { exponential($0 - largest) }
            let sum = powers.reduce(0, +)
            scores = powers.map { $0 / sum }
        }
        let bias = router.correctionBias?.elements.map(Double.init)
        let biased = bias.map { bias in zip(scores, bias).map { $0 + $1 } } ?? scores
        let keys = bias == nil ? logits : biased
        var open = Set(logits.indices)
        if let groups = router.groups {
            let size = logits.count / groups.count
            let strengths = (0..<groups.count).map { group in
                let sorted = biased[group * size..<(group + 1) * size].sorted(by: >)
                return groups.strength == .largest ? sorted[0] : sorted.prefix(2).reduce(0, +)
            }
            let kept = strengths.indices.sorted { (-strengths[$0], $0) < (-strengths[$1], $1) }.prefix(groups.kept)
            open = Set(kept.flatMap { $0 * size..<($0 + 1) * size })
        }
        let ids = open.sorted { (-keys[$0], $0) < (-keys[$1], $1) }.prefix(router.expertsPerToken)
        let sum = ids.reduce(0) { $0 + scores[$1] } + 1e-20
        let weights = ids.map { Double(router.scale) * scores[$0] / (router.renormalizes ? sum : 1) }
        return Choice(ids: Array(ids), weights: weights, scores: scores, keys: keys)
    }

    /// Slots sorted by expert, by filtering them once for each.
    public static func sortedSlots(ids: [Int32], experts: Int) -> (counts: [Int32], offsets: [Int32], sorted: [Int32]) {
        let groups = (0..<experts).map { expert in ids.indices.filter { ids[$0] == expert }.map { Int32($0) } }
        var offsets: [Int32] = [0]
        for group in groups { offsets.append(offsets[offsets.count - 1] + Int32(group.count)) }
        return (groups.map { Int32($0.count) }, offsets, groups.flatMap { $0 })
    }

    /// The weights of an expert as numbers: gate and up `[hiddenWidth, width]`, down `[width, hiddenWidth]`, row by row.
    public struct Expert: Sendable {
        public let gate: [Double]
        public let up: [Double]
        public let down: [Double]
        public let width: Int
        public let hiddenWidth: Int

        public init<W: AttentionElement>(gate: Tensor<W>, up: Tensor<W>, down: Tensor<W>) {
            self.gate = gate.elements.map { Double($0.floatValue) }
            self.up = up.elements.map { Double($0.floatValue) }
            self.down = down.elements.map { Double($0.floatValue) }
            (hiddenWidth, width) = (gate.shape[0], gate.shape[1])
        }

        /// The output for a token, and the possible error of `Float` arithmetic, feature by feature:
        ///
        ///     |δg| ≤ λ·√width·u·Σ|x·gate|, and |δu| likewise       |δh| ≤ (1.2·|δg| + |δf|)·(|u| + |δu|) + |f(g)|·|δu| + 2u·|h|
        ///     |δo| ≤ Σ|down|·|δh| + λ·√hiddenWidth·u·Σ|down·h|    the slopes of all functions are below 1.2, but for ReLU²
        public func output(_ x: [Double], _ function: GatedActivation.Function) -> [(value: Double, errorBound: Double)] {
            var hidden: [(value: Double, error: Double)] = []
            for n in 0..<hiddenWidth {
                let (g, a) = (product(gate, n, x), product(up, n, x))
                let value = ReferenceRows.activation(function, g.value)
                let slope = function == .reluSquared ? 2 * (abs(g.value) + g.error) : 1.2
                let error = slope * g.error + ReferenceRows.activationError(function, g.value)
                hidden.append(
                    (
                        value * a.value,
                        error * (abs(a.value) + a.error) + abs(value) * a.error + 0x1p-23 * abs(value * a.value)
                    ))
            }
            let values = hidden.map(\.value)
            return (0..<width).map { n in
                let sum = product(down, n, values)
                var carried = 0.0
                for k in 0..<hiddenWidth { carried += abs(down[n * hiddenWidth + k]) * hidden[k].error }
                return (sum.value, sum.error + 1.01 * carried)
            }
        }

        private func product(_ weights: [Double], _ row: Int, _ x: [Double]) -> (value: Double, error: Double) {
            var (sum, magnitude) = (0.0, 0.0)
            for k in x.indices {
                let term = weights[row * x.count + k] * x[k]
                sum += term
                magnitude += abs(term)
            }
            return (sum, ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: x.count))
        }
    }

    /// The output of a layer for a token, with the possible error: that of the experts, and of k + shared rounded sums.
    public static func output(
        _ x: [Double], ids: [Int], weights: [Double], experts: [Expert], shared: [Expert] = [],
        _ function: GatedActivation.Function
    ) -> [(value: Double, errorBound: Double)] {
        var sum = [(value: Double, errorBound: Double)](repeating: (0, 0), count: x.count)
        let terms = zip(ids.map { experts[$0] }, weights).map { ($0, $1) } + shared.map { ($0, 1.0) }
        let rounding = AttentionErrorBound.confidence * Double(terms.count + 2).squareRoot() * AttentionErrorBound.unitRoundoff
        for (expert, weight) in terms {
            for (n, output) in expert.output(x, function).enumerated() {
                sum[n].value += weight * output.value
                sum[n].errorBound += abs(weight) * (output.errorBound + rounding * abs(output.value))
            }
        }
        return sum
    }
}

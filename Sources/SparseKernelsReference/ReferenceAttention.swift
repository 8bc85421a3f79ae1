public import SparseKernels

/// Textbook attention in `Double`, one row at a time, without tiles, threads or vector code.
///
/// For every query i of head h, over the keys j that it sees:
///
///     s_j = scale·q_i·k_j        s_j ← cap·tanh(s_j/cap)        s_j ← s_j + slope_h·(j − position_i) + bias_ij
///                                                               or    s_j − slope_h·|j − position_i| + bias_ij
///     a sink logit of the head is one more score, whose value is 0
///     m = max s_j     l = Σ e^(s_j − m)     o_i = Σ e^(s_j − m)·v_j / l     LSE_i = m + ln l
///
/// The product never calls this; tests and benchmarks compare the kernels with it.
public struct ReferenceAttention: Sendable {
    public let shape: AttentionShape
    public let mask: AttentionMask
    public let modifiers: ScoreModifiers

    public init(_ shape: AttentionShape, mask: AttentionMask = .full, modifiers: ScoreModifiers = ScoreModifiers()) {
        self.shape = shape
        self.mask = mask
        self.modifiers = modifiers
    }

    /// One row of the result.
    public struct Row: Sendable {
        public var head: Int
        public var token: Int
        /// `valueDim` channels; zero when no key is visible.
        public var output: [Double]
        /// −∞ when no key is visible.
        public var logSumExp: Double
        /// The factors by which rounding errors reach the row. Filled in for `AttentionErrorBound`.
        public var sensitivity = Sensitivity()
        /// The number of keys that this query sees.
        public var visibleKeys: Int
    }

    /// The factors by which errors of scores, probabilities and sums reach the output of a row.
    ///
    /// A_j = Σ_c |scale·q_c·k_jc| is the magnitude of the terms of a score, to which its rounding error is proportional.
    /// D_j = max_c |v_jc − o_c| is a value's distance from the output, because an error δ of score j moves the output by
    /// p_j·δ·(v_j − o).
    public struct Sensitivity: Sendable {
        /// √(Σ p_j²·A_j²·D_j²): the effect on the output of independent errors of scores.
        public var outputByScores = 0.0
        /// √(Σ p_j²·A_j²): the effect on the LSE of the same errors.
        public var logSumExpByScores = 0.0
        /// Σ p_j·(1 + (m − s_j)/2)·D_j: the effect on the output of errors of the exponential, which grow with its argument.
        public var outputByExponentials = 0.0
        /// Σ p_j·(1 + (m − s_j)/2): the effect on the LSE of the same errors.
        public var logSumExpByExponentials = 0.0
        /// max_c Σ p_j·|v_jc|: the effect on the output of errors of the sums.
        public var outputBySums = 0.0
    }

    /// Whether the positions of query `i` and key `j` let `i` see `j`.
    public func isVisible(query i: Int, key j: Int) -> Bool {
        let position = i + shape.keyLength - shape.queryLength
        if mask.isCausal && j > position { return false }
        if let left = mask.left, position - j > left { return false }
        if let right = mask.right, j - position > right { return false }
        return true
    }

    /// Computes one row.
    ///
    /// `bias` is added to the score of key j; −∞ hides it. `hides` names other hidden keys, such as those outside a mask.
    public func row<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        head: Int, token: Int, query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>,
        bias: (Int) -> Double = { _ in 0 }, hides: (Int) -> Bool = { _ in false }
    ) -> Row {
        let kvHead = head / shape.queryHeadsPerKVHead
        return row(
            head: head, token: token, query: query.row(head: head, token: token),
            key: { key.row(head: kvHead, token: $0) }, value: { Double(value[kvHead, $0, $1].floatValue) }, bias: bias,
            hides: hides)
    }

    /// As above, from the query's row and the rows of its KV head, for callers with many queries.
    package func row(
        head: Int, token: Int, query: [Double], keys: [[Double]], values: [[Double]],
        bias: (Int) -> Double = { _ in 0 }, hides: (Int) -> Bool = { _ in false }
    ) -> Row {
        row(
            head: head, token: token, query: query, key: { keys[$0] }, value: { values[$0][$1] }, bias: bias, hides: hides)
    }

    private func row(
        head: Int, token: Int, query q: [Double], key: (Int) -> [Double], value: (Int, Int) -> Double,
        bias: (Int) -> Double, hides: (Int) -> Bool
    ) -> Row {
        let scale = modifiers.softmaxScale.map(Double.init) ?? 1 / Double(shape.headDim).squareRoot()
        let position = token + shape.keyLength - shape.queryLength

        var keys: [Int] = []
        var scores: [Double] = []
        var magnitudes: [Double] = []
        for j in 0..<shape.keyLength where isVisible(query: token, key: j) && !hides(j) {
            let k = key(j)
            var score = 0.0
            var magnitude = 0.0
            for c in 0..<shape.headDim {
                let term = scale * q[c] * k[c]
                score += term
                magnitude += abs(term)
            }
            if let cap = modifiers.logitsSoftCap { score = Double(cap) * hyperbolicTangent(score / Double(cap)) }
            if let slopes = modifiers.aliBiSlopes {
                let distance = modifiers.aliBiForm == .symmetric ? -abs(j - position) : j - position
                let term = Double(slopes[head]) * Double(distance)
                score += term
                magnitude += abs(term)
            }
            let extra = bias(j)
            // Hidden, whatever the key and value rows contain.
            if extra == -.infinity { continue }
            score += extra
            if extra.isFinite { magnitude += abs(extra) }
            keys.append(j)
            scores.append(score)
            magnitudes.append(magnitude)
        }
        let visible = keys.count
        if let sinks = modifiers.sinkLogits {
            scores.append(Double(sinks[head]))
            magnitudes.append(0)
        }
        var row = Row(
            head: head, token: token, valueDim: shape.valueDim, scores: scores, magnitudes: magnitudes,
            value: { $0 < visible ? value(keys[$0], $1) : 0 })
        row.visibleKeys = visible
        return row
    }
}

extension ReferenceAttention.Row {
    /// Computes the row for given scores and values.
    /// - Parameters:
    ///   - head: stored in the row, for messages.
    ///   - token: stored in the row, for messages.
    ///   - valueDim: channels per value.
    ///   - scores: the scores of the keys that the row sees, scaled and capped.
    ///   - magnitudes: Σ |terms| of every score, to which its rounding error is proportional.
    ///   - value: channel `$1` of the value for score `$0`.
    public init(
        head: Int = 0, token: Int = 0, valueDim: Int, scores: [Double], magnitudes: [Double],
        value: (_ index: Int, _ channel: Int) -> Double
    ) {
        self.init(
            head: head, token: token, output: Array(repeating: 0, count: valueDim), logSumExp: -.infinity,
            visibleKeys: scores.count)
        let maximum = scores.max() ?? -.infinity
        if maximum == -.infinity { return }
        var sum = 0.0
        for (index, score) in scores.enumerated() {
            let weight = exponential(score - maximum)
            sum += weight
            for c in 0..<valueDim { output[c] += weight * value(index, c) }
        }
        for c in 0..<valueDim { output[c] /= sum }
        logSumExp = maximum + logarithm(sum)

        var absolute = Array(repeating: 0.0, count: valueDim)
        for index in scores.indices {
            let p = exponential(scores[index] - maximum) / sum
            let distance = p * (1 + (maximum - scores[index]) / 2)
            var deviation = 0.0
            for c in 0..<valueDim {
                let v = value(index, c)
                deviation = max(deviation, abs(v - output[c]))
                absolute[c] += p * abs(v)
            }
            let error = p * magnitudes[index]
            sensitivity.outputByScores += error * error * deviation * deviation
            sensitivity.logSumExpByScores += error * error
            if p > 0 {
                sensitivity.outputByExponentials += distance * deviation
                sensitivity.logSumExpByExponentials += distance
            }
        }
        sensitivity.outputByScores = sensitivity.outputByScores.squareRoot()
        sensitivity.logSumExpByScores = sensitivity.logSumExpByScores.squareRoot()
        sensitivity.outputBySums = absolute.max() ?? 0
    }
}

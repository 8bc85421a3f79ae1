public import SparseKernels

/// Attention as the textbook has it, in `Double`, one row at a time: no tiles, no threads, no vector code.
///
/// For every query i of head h, over the keys j that it sees:
///
///     s_j = scale·q_i·k_j        s_j ← cap·tanh(s_j/cap)        s_j ← s_j + slope_h·(j − position_i) + bias_ij
///     m = max s_j     l = Σ e^(s_j − m)     o_i = Σ e^(s_j − m)·v_j / l     LSE_i = m + ln l
///
/// Never dispatched to by the product; tests and benchmarks measure the kernels against it.
public struct ReferenceAttention: Sendable {
    public let shape: AttentionShape
    public let mask: AttentionMask
    public let scoring: AttentionScoring

    public init(_ shape: AttentionShape, mask: AttentionMask = .full, scoring: AttentionScoring = AttentionScoring()) {
        self.shape = shape
        self.mask = mask
        self.scoring = scoring
    }

    /// One row of the result.
    public struct Row: Sendable {
        public var head: Int
        public var token: Int
        /// `valueDim` channels; zero when no key is visible.
        public var output: [Double]
        /// −∞ when no key is visible.
        public var logSumExp: Double
        /// What the row's probabilities p make of rounding errors. Filled in for `AttentionErrorBound`.
        public var sensitivity = Sensitivity()
        /// Keys this query sees.
        public var visibleKeys: Int
    }

    /// How errors of scores, probabilities and sums reach the output of a row. A_j = Σ_c |scale·q_c·k_jc| is the magnitude of the terms
    /// of a score, which its rounding follows; D_j = max_c |v_jc − o_c| is how far a value lies from the output, because an error
    /// δ of score j moves the output by p_j·δ·(v_j − o).
    public struct Sensitivity: Sendable {
        /// √(Σ p_j²·A_j²·D_j²): independent errors of scores, in the output.
        public var outputByScores = 0.0
        /// √(Σ p_j²·A_j²): the same, in the LSE.
        public var logSumExpByScores = 0.0
        /// Σ p_j·(1 + (m − s_j)/2)·D_j: errors of the exponential, which grow with its argument.
        public var outputByExponentials = 0.0
        /// Σ p_j·(1 + (m − s_j)/2).
        public var logSumExpByExponentials = 0.0
        /// max_c Σ p_j·|v_jc|: errors of the sums.
        public var outputBySums = 0.0
    }

    /// Whether query `i` sees key `j` as far as positions are concerned.
    public func isVisible(query i: Int, key j: Int) -> Bool {
        let position = i + shape.keyLength - shape.queryLength
        if mask.isCausal && j > position { return false }
        if let window = mask.window, abs(position - j) >= window { return false }
        return true
    }

    /// One row.
    ///
    /// `bias` is added to the score of key j; −∞ hides it. `hides` names further keys that this query does not see, such as those
    /// outside a block mask.
    public func row<Q: AttentionElement, K: AttentionElement, V: AttentionElement>(
        head: Int, token: Int, query: TensorView<Q>, key: TensorView<K>, value: TensorView<V>,
        bias: (Int) -> Double = { _ in 0 }, hides: (Int) -> Bool = { _ in false }
    ) -> Row {
        let kvHead = head / shape.queryHeadsPerKVHead
        let scale = scoring.softmaxScale.map(Double.init) ?? 1 / Double(shape.headDim).squareRoot()
        let position = token + shape.keyLength - shape.queryLength
        let q = (0..<shape.headDim).map { Double(query[head, token, $0].floatValue) }

        var keys: [Int] = []
        var scores: [Double] = []
        var magnitudes: [Double] = []
        var result = Row(
            head: head, token: token, output: Array(repeating: 0, count: shape.valueDim), logSumExp: -.infinity,
            visibleKeys: 0)
        for j in 0..<shape.keyLength where isVisible(query: token, key: j) && !hides(j) {
            var score = 0.0
            var magnitude = 0.0
            for c in 0..<shape.headDim {
                let term = scale * q[c] * Double(key[kvHead, j, c].floatValue)
                score += term
                magnitude += abs(term)
            }
            if let cap = scoring.logitsSoftCap { score = Double(cap) * hyperbolicTangent(score / Double(cap)) }
            if let slopes = scoring.aliBiSlopes {
                let term = Double(slopes[head]) * Double(j - position)
                score += term
                magnitude += abs(term)
            }
            let extra = bias(j)
            score += extra
            if extra.isFinite { magnitude += abs(extra) }
            keys.append(j)
            scores.append(score)
            magnitudes.append(magnitude)
        }
        result.visibleKeys = keys.count
        let maximum = scores.max() ?? -.infinity
        if maximum == -.infinity { return result }
        var sum = 0.0
        for (j, score) in zip(keys, scores) {
            let weight = exponential(score - maximum)
            sum += weight
            for c in 0..<shape.valueDim {
                result.output[c] += weight * Double(value[kvHead, j, c].floatValue)
            }
        }
        for c in 0..<shape.valueDim { result.output[c] /= sum }
        result.logSumExp = maximum + logarithm(sum)

        var absolute = Array(repeating: 0.0, count: shape.valueDim)
        for index in keys.indices {
            let p = exponential(scores[index] - maximum) / sum
            let distance = p * (1 + (maximum - scores[index]) / 2)
            var deviation = 0.0
            for c in 0..<shape.valueDim {
                let v = Double(value[kvHead, keys[index], c].floatValue)
                deviation = max(deviation, abs(v - result.output[c]))
                absolute[c] += p * abs(v)
            }
            let error = p * magnitudes[index]
            result.sensitivity.outputByScores += error * error * deviation * deviation
            result.sensitivity.logSumExpByScores += error * error
            if p > 0 {
                result.sensitivity.outputByExponentials += distance * deviation
                result.sensitivity.logSumExpByExponentials += distance
            }
        }
        result.sensitivity.outputByScores = result.sensitivity.outputByScores.squareRoot()
        result.sensitivity.logSumExpByScores = result.sensitivity.logSumExpByScores.squareRoot()
        result.sensitivity.outputBySums = absolute.max() ?? 0
        return result
    }
}

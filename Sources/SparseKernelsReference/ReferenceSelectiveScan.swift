internal import SparseKernels

/// The selective scan of Mamba-1 in `Double`, one channel and token at a time, with a bound of the error of single precision.
///
///     Δ = softplus(delta + bias)     h ← e^(Δ·A)·h + Δ·x·B     y = (Σ C·h + D·x)·silu(z)
///
/// Errors follow the recurrence beside the values. With u = 2⁻²⁴ and v = delta + bias:
///
///     δΔ = Δ·(4·10⁻⁷ + 10⁻⁷·|v|) + σ(v)·u·|v|
///     δa = a·(2·10⁻⁷ + 2·10⁻⁷·Δ|A|) + a·|A|·δΔ
///     δh ← a·δh + δa·|h| + |x·B|·δΔ + 3u·(|a·h| + |Δ·x·B|)
///     δy = (Σ |C|·δh + (N + 2)·u·(Σ |C·h| + |D·x|))·|silu(z)| + |y|·δsilu
///
/// where the terms of Δ are those of the portable level, and N is the number of states.
public struct ReferenceSelectiveScan {
    /// A, `[channels][stateSize]`.
    public var a: [[Double]]
    public var skip: [Double]?
    public var deltaBias: [Double]?
    public var appliesSoftplus = true

    public init(a: [[Double]], skip: [Double]? = nil, deltaBias: [Double]? = nil, appliesSoftplus: Bool = true) {
        self.a = a
        self.skip = skip
        self.deltaBias = deltaBias
        self.appliesSoftplus = appliesSoftplus
    }

    /// Values and bounds of a sequence.
    public struct Result {
        /// `[tokens][channels]`.
        public var y: [[Double]]
        public var yBound: [[Double]]
        /// `[channels][stateSize]`, after the last token.
        public var states: [[Double]]
        public var stateBound: [[Double]]
    }

    /// Scans the tokens of one sequence.
    ///
    /// - Parameters:
    ///   - x, delta, z: `[tokens][channels]`.
    ///   - b, c: for a token and a channel, `stateSize` numbers.
    ///   - states: `[channels][stateSize]` before the first token; nil means zeros.
    ///   - isBackward: scans from the last token to the first.
    public func run(
        x: [[Double]], delta: [[Double]], b: (_ token: Int, _ channel: Int) -> [Double],
        c: (_ token: Int, _ channel: Int) -> [Double], z: [[Double]]? = nil, states: [[Double]]? = nil, isBackward: Bool = false
    ) -> Result {
        let u = 0x1p-24
        let empty = x.map { $0.map { _ in 0.0 } }
        var result = Result(
            y: empty, yBound: empty, states: states ?? a.map { $0.map { _ in 0 } }, stateBound: a.map { $0.map { _ in 0 } })
        for index in x.indices {
            let token = isBackward ? x.count - 1 - index : index
            for channel in a.indices {
                let value = delta[token][channel] + (deltaBias?[channel] ?? 0)
                let step = appliesSoftplus ? Self.softplus(value) : value
                let slope = appliesSoftplus ? 1 / (1 + exponential(-value)) : 1
                let stepError = (appliesSoftplus ? step * (4e-7 + 1e-7 * abs(value)) : 0) + slope * u * abs(value)
                let input = x[token][channel]
                let (bs, cs) = (b(token, channel), c(token, channel))
                var (sum, sumError) = ((skip?[channel] ?? 0) * input, 0.0)
                var magnitude = abs(sum)
                for state in a[channel].indices {
                    let exponent = step * a[channel][state]
                    let decay = exponential(exponent)
                    let decayError = decay * (2e-7 + 2e-7 * abs(exponent) + abs(a[channel][state]) * stepError) + 0x1p-126
                    let (old, oldError) = (result.states[channel][state], result.stateBound[channel][state])
                    let added = step * input * bs[state]
                    let new = decay * old + added
                    let error =
                        decay * oldError + decayError * (abs(old) + oldError) + abs(input * bs[state]) * stepError
                        + 3 * u * (abs(decay * old) + abs(added)) + 0x1p-140
                    (result.states[channel][state], result.stateBound[channel][state]) = (new, error)
                    sum += cs[state] * new
                    sumError += abs(cs[state]) * error
                    magnitude += abs(cs[state] * new)
                }
                sumError += Double(a[channel].count + 2) * u * magnitude
                if let z {
                    let gate = ReferenceRows.activation(.silu, z[token][channel])
                    let gateError = ReferenceRows.activationError(.silu, z[token][channel])
                    sumError = sumError * abs(gate) + (abs(sum) + sumError) * gateError
                    sum *= gate
                    sumError += 2 * u * abs(sum)
                }
                result.y[token][channel] = sum
                result.yBound[token][channel] = sumError + 0x1p-140
            }
        }
        return result
    }

    /// log(1 + eᵛ), accurate for very negative v.
    public static func softplus(_ value: Double) -> Double {
        if value > 20 { return value }
        let power = exponential(value)
        // log(1 + p) by its series where 1 + p would round p.
        return power < 1e-5 ? power * (1 - power / 2 + power * power / 3) : logarithm(1 + power)
    }
}

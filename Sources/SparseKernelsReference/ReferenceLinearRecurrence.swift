/// The recurrence of one head in `Double`, one token after the other, with a bound of what single precision may be off by.
///
///     S[n] ← e^logDecay[n] · S[n] + k[n] · Δ · v        y = Σ_n scale · q[n] · S[n] + skip · v
///
/// With M the state that |k| and Δ·|v| make, and E that of errors, which decays multiply as well:
///
///     E[n] ← d·E[n] + δ·d·M[n] + η·|k[n]|·Δ·|v|        δ = 3·10⁻⁷ + (10⁻⁷ + η)·|logDecay[n]|
///
/// A decay between two tokens that is below 2⁻⁹⁹ may count as 0, which adds 2⁻⁹⁹ of what was ever added to an element.
///
/// δ is the relative error of an exponential, with one of η in Δ, of which the logarithm is a multiple. A form that takes one
/// exponential for several tokens has less. Sums over channels and tokens add 6·√(keyDim + tokens)·2⁻²⁴ of the magnitudes.
public struct ReferenceLinearRecurrence {
    /// `[keyDim][valueDim]`.
    public var state: [[Double]]
    /// The bound of every element of the state.
    public var stateBound: [[Double]] {
        state.indices.map { n in
            state[n].indices.map { errors[n][$0] + rounding * magnitudes[n][$0] + 0x1p-99 * totals[n][$0] + 1e-37 }
        }
    }

    private var magnitudes: [[Double]]
    private var errors: [[Double]]
    /// What was ever added to an element, without decays.
    private var totals: [[Double]]
    private var tokens = 0
    private var rounding: Double { 6 * Double(state.count + tokens + 4).squareRoot() * 0x1p-24 }

    /// Starts from a state that is exact.
    public init(state: [[Double]]) {
        self.state = state
        magnitudes = state.map { $0.map { abs($0) } }
        errors = state.map { $0.map { _ in 0 } }
        totals = magnitudes
    }

    /// Starts from zeros.
    public init(keyDim: Int, valueDim: Int) {
        self.init(state: Array(repeating: Array(repeating: 0, count: valueDim), count: keyDim))
    }

    /// One token.
    /// - Parameters:
    ///   - logDecay: of every channel of the key, 0 or less.
    ///   - stepSize: Δ.
    ///   - stepError: η, its relative error.
    /// - Returns: the output, and the bound of each of its elements.
    public mutating func step(
        query: [Double], key: [Double], value: [Double], logDecay: [Double], stepSize: Double = 1, stepError: Double = 0,
        scale: Double = 1, skip: Double = 0
    ) -> (output: [Double], bound: [Double]) {
        tokens += 1
        var output = value.map { skip * $0 }
        var bound = value.map { 4 * 0x1p-24 * abs(skip * $0) }
        for n in state.indices {
            let decay = exponential(logDecay[n])
            let logError = logDecay[n].isFinite ? 3e-7 + (1e-7 + stepError) * abs(logDecay[n]) : 0
            for p in value.indices {
                let added = key[n] * stepSize * value[p]
                errors[n][p] = decay * (errors[n][p] + logError * magnitudes[n][p]) + stepError * abs(added)
                magnitudes[n][p] = decay * magnitudes[n][p] + abs(added)
                totals[n][p] += abs(added)
                state[n][p] = decay * state[n][p] + added
                output[p] += scale * query[n] * state[n][p]
                bound[p] += abs(scale * query[n]) * (errors[n][p] + rounding * magnitudes[n][p] + 0x1p-99 * totals[n][p])
            }
        }
        return (output, zip(output, bound).map { $1 + 0x1p-23 * abs($0) + 1e-37 })
    }

    /// log(1 + eˣ), which is x above 20.
    public static func softplus(_ x: Double) -> Double {
        if x > 20 { return x }
        let u = exponential(x)
        // log(1 + u) = 2·artanh(u / (2 + u)), whose series converges fast where u is small, and the logarithm is exact elsewhere.
        if u > 0.1 { return logarithm(1 + u) }
        let s = u / (2 + u)
        var (term, sum) = (s, 0.0)
        for k in 0..<12 {
            sum += term / Double(2 * k + 1)
            term *= s * s
        }
        return 2 * sum
    }

    /// e^aLog, the rate at which a step size decays.
    public static func rate(_ aLog: Double) -> Double { exponential(aLog) }

    /// The relative error of a step size that is the softplus of x.
    public static func stepError(_ x: Double) -> Double { 8e-7 + 1e-7 * abs(x) }
}

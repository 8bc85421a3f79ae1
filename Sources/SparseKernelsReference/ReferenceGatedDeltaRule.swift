public import SparseKernels

/// The gated delta rule in `Double`, token by token, with a bound on the error of single precision.
///
///     S ← diag(α)·S        S ← S + β·k·(v − Sᵀk)ᵀ        y = scale · Sᵀq
///
/// **The bound.** Let s be a column of the state, d = β(v − sᵀk) what a token writes to it, and m ← max α·m + ‖k‖·abs(d), which is at
/// least ‖s‖, and whatever partial sums of a chunk have. A token adds to the error E of the column, in the 2-norm,
///
///     β‖k‖²·(σ + ε)·m  +  β‖k‖·4u·(abs(v) + ‖k‖m)  +  (σ + 4u + ε_α)·m
///
/// for the sums of the products, σ = 6·√(keyDim + tokens of a chunk)·u; for the norms of keys, ε, and for decays, ε_α. What was there is
/// multiplied by max α and by max(1, abs(1 − β‖k‖²)), the norm of I − β·k·kᵀ. An output is off by scale·‖q‖·(E + (2σ + ε)·m) and four
/// roundings of itself.
public struct ReferenceGatedDeltaRule {
    public let shape: RecurrenceShape
    public let scale: Double
    public let normalizesQueriesAndKeys: Bool
    /// Tokens of a chunk, which only the bound needs.
    public let chunk: Int

    public init(_ rule: GatedDeltaRule) {
        shape = rule.shape
        scale = Double(rule.scale)
        normalizesQueriesAndKeys = rule.normalizesQueriesAndKeys
        if case .chunked(let tokens) = rule.form { chunk = tokens } else { chunk = 1 }
    }

    /// A head: its state before and after, and the outputs of its tokens.
    public struct Head {
        /// `[keyDim][valueDim]`.
        public var state: [[Double]]
        /// `[tokens][valueDim]`.
        public var outputs: [[Double]] = []
        public var outputBounds: [[Double]] = []
        /// The error of a column of the state, in the 2-norm.
        public var stateBounds: [Double] = []
        var magnitudes: [Double] = []

        /// A head before its first token.
        public init(state: [[Double]]) { self.state = state }
    }

    /// Runs a value head over tokens.
    ///
    /// - Parameters:
    ///   - query: `[tokens][keyDim]`, not normalised, like `key`.
    ///   - value: `[tokens][valueDim]`.
    ///   - logDecay: for each token one number, or one per channel of the key, or none; above 0 they count as 0.
    ///   - beta: one number per token.
    ///   - head: the state, which the result continues.
    public func run(
        query: [[Double]], key: [[Double]], value: [[Double]], logDecay: [[Double]], beta: [Double], from head: Head
    ) -> Head {
        let (rows, columns, u) = (shape.keyDim, shape.valueDim, 0x1p-24)
        let sigma = 6 * Double(rows + chunk).squareRoot() * u
        let normError = normalizesQueriesAndKeys ? 2 * (ReferenceRows.sumError(rows) + 4 * u) : 0
        var head = head
        if head.magnitudes.isEmpty {
            head.stateBounds = Array(repeating: 0, count: columns)
            head.magnitudes = (0..<columns).map { column in norm(head.state.map { $0[column] }) }
        }
        for token in query.indices {
            let (q, k) = (normalized(query[token]).map { $0 * scale }, normalized(key[token]))
            let (qNorm, kNorm) = (norm(q), norm(k))
            let logs = logDecay[token].map { min($0, 0) }
            let factors = (0..<rows).map { logs.isEmpty ? 1 : exponential(logs[logs.count == 1 ? 0 : $0]) }
            let largest = factors.max() ?? 1
            // The exponential's own error, and that of the sum of logarithms of a chunk, in two floats; products of decays of a chunk.
            let finest = logs.filter { $0 > -90 }.map { -$0 }.max() ?? 0
            let decayError = logs.isEmpty ? 0 : 4e-7 + 2e-7 * finest
            let growth = max(1, abs(1 - beta[token] * kNorm * kNorm))
            for row in 0..<rows { for column in 0..<columns { head.state[row][column] *= factors[row] } }
            var output = [Double](repeating: 0, count: columns)
            var bounds = output
            for column in 0..<columns {
                var read = 0.0
                for row in 0..<rows { read += k[row] * head.state[row][column] }
                let v = value[token][column]
                let written = beta[token] * (v - read)
                for row in 0..<rows {
                    head.state[row][column] += k[row] * written
                    output[column] += q[row] * head.state[row][column]
                }
                let magnitude = largest * head.magnitudes[column] + kNorm * abs(written)
                let beta = abs(beta[token])
                let added =
                    beta * kNorm * kNorm * (sigma + normError) * magnitude
                    + beta * kNorm * 4 * u * (abs(v) + kNorm * magnitude) + (sigma + 4 * u + decayError) * magnitude
                head.magnitudes[column] = magnitude
                head.stateBounds[column] = largest * growth * head.stateBounds[column] + added
                bounds[column] =
                    qNorm * (head.stateBounds[column] + (2 * sigma + normError) * magnitude) + 4 * u * abs(output[column])
                    + 1e-30
            }
            head.outputs.append(output)
            head.outputBounds.append(bounds)
        }
        return head
    }

    private func normalized(_ x: [Double]) -> [Double] {
        if !normalizesQueriesAndKeys { return x }
        let length = (x.reduce(0) { $0 + $1 * $1 } + Double(GatedDeltaRule.normEpsilon)).squareRoot()
        return x.map { $0 / length }
    }

    private func norm(_ x: [Double]) -> Double { x.reduce(0) { $0 + $1 * $1 }.squareRoot() }
}

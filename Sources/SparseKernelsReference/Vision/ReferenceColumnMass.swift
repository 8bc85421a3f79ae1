public import SparseKernels

/// The attention mass of every key for one head, in `Double`, one query at a time, with a bound for the error of single precision.
///
///     mass[k] = Σ_r p[r, k]      p[r, k] = e^(s_rk − m_r) / Σ_k e^(s_rk − m_r)      s_rk = scale·q_r·k_k
///
/// An error δ of the scores of a row moves a probability by p_k·(δ_k − Σ p·δ). With u, λ and ε as in `AttentionErrorBound`, a row of
/// magnitudes A, x_k = m − s_k, and sums of chains of the kernel (of a row over the keys of a step, and over steps and pieces):
///
///     |δp_k| ≤ p_k·(σA_k + Σ p·σA + ε(1 + x_k/2) + Σ p·ε(1 + x/2) + λ·√(n + 128)·u + 4u)
///     |δ Σ_r p| ≤ Σ_r |δp| + (λ·√w + 4)·u·Σ_r p      for w rows
///
/// With a given LSE, its own rounding is added, 2u·|LSE| relative.
public struct ReferenceColumnMass: Sendable {
    /// One sum per key.
    public var mass: [Double]
    /// The possible error of each sum in `Float`.
    public var bounds: [Double]
    /// The LSE of every query of the shape; −∞ where no key is visible.
    public var logSumExp: [Double]

    /// - Parameters:
    ///   - shape: the sizes.
    ///   - head: the query head.
    ///   - queries: the queries whose probabilities are summed.
    ///   - softmaxScale: 1/√headDim unless given.
    ///   - hasLogSumExp: whether the kernel is given the LSE in single precision.
    ///   - query: all queries.
    ///   - key: all keys.
    ///   - isVisible: whether a query sees a key.
    public init<Q: AttentionElement, K: AttentionElement>(
        _ shape: AttentionShape, head: Int, queries: [Int], softmaxScale: Double? = nil, hasLogSumExp: Bool = false,
        query: TensorView<Q>, key: TensorView<K>, isVisible: (_ query: Int, _ key: Int) -> Bool
    ) {
        let scale = softmaxScale ?? 1 / Double(shape.headDim).squareRoot()
        let u = AttentionErrorBound.unitRoundoff
        let confidence = AttentionErrorBound.confidence
        let scoreError = confidence * (Double(shape.headDim).squareRoot() + 2) * u
        mass = Array(repeating: 0, count: shape.keyLength)
        bounds = mass
        logSumExp = Array(repeating: -.infinity, count: shape.queryLength)
        let keys = key.rows(head: head / shape.queryHeadsPerKVHead)
        for row in queries {
            let q = query.row(head: head, token: row)
            var (seen, scores, magnitudes) = ([Int](), [Double](), [Double]())
            for k in 0..<shape.keyLength where isVisible(row, k) {
                var (score, magnitude) = (0.0, 0.0)
                for channel in 0..<shape.headDim {
                    let term = scale * q[channel] * keys[k][channel]
                    score += term
                    magnitude += abs(term)
                }
                seen.append(k)
                scores.append(score)
                magnitudes.append(magnitude)
            }
            if seen.isEmpty { continue }
            let maximum = scores.max() ?? 0
            let weights = scores.map { exponential($0 - maximum) }
            let total = weights.reduce(0, +)
            logSumExp[row] = maximum + logarithm(total)
            let errors = scores.indices.map {
                scoreError * magnitudes[$0] + 2e-7 * (1 + (maximum - scores[$0]) / 2)
            }
            let mean = zip(weights, errors).reduce(0) { $0 + $1.0 * $1.1 } / total
            let sums = confidence * Double(seen.count + 128).squareRoot() * u + 4 * u
            let given = hasLogSumExp ? 2 * u * abs(logSumExp[row]) : 0
            for (index, k) in seen.enumerated() {
                let p = weights[index] / total
                // 1.2e-38 is what the kernel's exponential and the product with a weight lose to underflow.
                let addition = confidence * Double(queries.count).squareRoot() * u + 4 * u
                mass[k] += p
                bounds[k] += p * (errors[index] + mean + sums + given + addition) + 2e-38
            }
        }
    }
}

/// Cosines between rows, in `Double`, with a bound for the error of single precision.
///
/// Products of n channels are off by λ·√n·u·Σ|a·b|, squares by λ·√n·u of themselves, and a root by half of that. Division, roots and
/// their product round four times: |δcos| ≤ λ·√n·u·(Σ|a·b| / (|a|·|b|) + |cos|) + 4u·|cos|.
public struct ReferenceCosine: Sendable {
    /// The cosine; 0 when a row has only zeros.
    public var value: Double
    /// Its possible error in `Float`.
    public var bound: Double

    public init(_ a: [Double], _ b: [Double]) {
        var (product, magnitude, first, second) = (0.0, 0.0, 0.0, 0.0)
        for index in a.indices {
            product += a[index] * b[index]
            magnitude += abs(a[index] * b[index])
            first += a[index] * a[index]
            second += b[index] * b[index]
        }
        let size = first.squareRoot() * second.squareRoot()
        if size == 0 {
            (value, bound) = (0, 0)
            return
        }
        let u = AttentionErrorBound.unitRoundoff
        value = product / size
        bound =
            AttentionErrorBound.confidence * Double(a.count).squareRoot() * u * (magnitude / size + abs(value))
            + 4 * u * abs(value)
    }
}

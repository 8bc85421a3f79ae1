public import SparseKernels

/// The vertical and slash scores of one head, in `Double`, one query at a time, with a bound for the error of single precision.
///
/// For the last w queries r, at positions r + keyLength − queryLength, over the keys c up to their position:
///
///     P[r, c] = e^(s_rc − m_r) / Σ_c e^(s_rc − m_r)     s_rc = scale·q_r·k_c
///     vertical[c] = Σ_r P[r, c]                         slash[t] = Σ_r P[r, position_r − t]
///
/// An error δ of the scores of a row moves a probability by p_c·(δ_c − Σ p·δ). With u, λ and ε as in `AttentionErrorBound`, a
/// row of magnitudes A, x_c = m − s_c, and the kernel's sums (at most 48 + 16 terms in `Float`, then `Double`):
///
///     |δp_c| ≤ p_c·(σA_c + Σ p·σA + ε(1 + x_c/2) + Σ p·ε(1 + x/2) + λ·√64·u + 4u)     |δ Σ_r p| ≤ Σ_r |δp| + λ·√w·u·Σ_r p
public struct ReferenceVerticalSlash: Sendable {
    /// The scores by key, and by distance.
    public var vertical: [Double]
    public var slash: [Double]
    /// The possible errors of the scores in `Float`.
    public var verticalBound: [Double]
    public var slashBound: [Double]

    public init<Q: AttentionElement, K: AttentionElement>(
        _ shape: AttentionShape, head: Int, lastQueries: Int, softmaxScale: Double? = nil, query: TensorView<Q>,
        key: TensorView<K>
    ) {
        let scale = softmaxScale ?? 1 / Double(shape.headDim).squareRoot()
        let kvHead = head / shape.queryHeadsPerKVHead
        let u = AttentionErrorBound.unitRoundoff
        let confidence = AttentionErrorBound.confidence
        let scoreError = confidence * (Double(shape.headDim).squareRoot() + 2) * u
        let rows = min(lastQueries, shape.queryLength)
        vertical = Array(repeating: 0, count: shape.keyLength)
        slash = vertical
        verticalBound = vertical
        slashBound = vertical
        let keys = key.rows(head: kvHead)
        for row in shape.queryLength - rows..<shape.queryLength {
            let q = query.row(head: head, token: row)
            let position = row + shape.keyLength - shape.queryLength
            var scores: [Double] = []
            var magnitudes: [Double] = []
            for c in 0...position {
                var (score, magnitude) = (0.0, 0.0)
                for channel in 0..<shape.headDim {
                    let term = scale * q[channel] * keys[c][channel]
                    score += term
                    magnitude += abs(term)
                }
                scores.append(score)
                magnitudes.append(magnitude)
            }
            let maximum = scores.max() ?? 0
            let weights = scores.map { exponential($0 - maximum) }
            let total = weights.reduce(0, +)
            let errors = scores.indices.map {
                scoreError * magnitudes[$0] + 2e-7 * (1 + (maximum - scores[$0]) / 2)
            }
            let mean = zip(weights, errors).reduce(0) { $0 + $1.0 * $1.1 } / total
            for c in 0...position {
                let p = weights[c] / total
                let error = p * (errors[c] + mean + confidence * 8 * u + 4 * u + confidence * Double(rows).squareRoot() * u)
                vertical[c] += p
                slash[position - c] += p
                verticalBound[c] += error
                slashBound[position - c] += error
            }
        }
    }
}

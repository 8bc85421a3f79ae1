import Foundation
import KernelInterface
import SparseKernels
import SparseKernelsReference

/// How far the token kernels may be from exact attention over the tokens as they are stored.
///
/// Float formats: `AttentionErrorBound`. Codes add four terms. With u = 2⁻²⁴, λ = 6, steps of 128 tokens, and x = s·(code − z):
///
/// Scores. A query becomes codes of a step t = max |q|/L, L = min(32767, ⌊(2³¹ − 1)/(channels·largest code)⌋); each is off by
/// up to t/2, which is a deviation of t/√12. The exact sums Σ q·code and z·Σ q are rounded to `Float`, subtracted and scaled:
///
///     τ = scale·(λ·t/√12·‖k‖₂ + 4u·s·(|Σ q·code| + |z·Σ q|))
///
/// Outputs. A weight w = p·s becomes a multiple of δ = max w/32767 of its step: off by δ/2, or by all of w where that is less.
/// The exact sum of products and Σ w·z, itself a sum in `Float`, are subtracted:
///
///     ω = Σ min(δ/2, w)·|code − z|       κ = (λ·√32 + 4)·u·Σ w·(code + |z|)
enum TokenErrorBound {
    /// Of the score of every token.
    static func scores(
        query: [Double], scale: Double, key: TokenOperand, keys: [[Double]], slots: [Int32]
    ) -> [Double] {
        let sigma = scoreUnit(headDim: query.count)
        return keys.indices.map { index in
            let magnitude = zip(query, keys[index]).reduce(0) { $0 + abs(scale * $1.0 * $1.1) }
            let rounding = sigma * magnitude
            if !key.format.isQuantized { return rounding }
            return rounding + codeError(query, scale, key, keys[index], slot: Int(slots[index]))
        }
    }

    /// What `AttentionErrorBound` multiplies the magnitude of a score with.
    static func scoreUnit(headDim: Int) -> Double {
        AttentionErrorBound.confidence * (Double(headDim).squareRoot() + 2) * AttentionErrorBound.unitRoundoff
    }

    private static func codeError(
        _ query: [Double], _ scale: Double, _ key: TokenOperand, _ k: [Double], slot: Int
    ) -> Double {
        let norm = k.reduce(0) { $0 + $1 * $1 }.squareRoot()
        let offset = TokenPool.half(key.scales![slot]) * TokenPool.half(key.zeros![slot]) * query.reduce(0, +)
        // s·Σ q·code = Σ q·k + s·z·Σ q.
        let product = zip(query, k).reduce(0) { $0 + $1.0 * $1.1 } + offset
        let rounding = 4 * AttentionErrorBound.unitRoundoff * (abs(product) + abs(offset))
        return scale * (deviation(query, key) * norm + rounding)
    }

    /// λ·t/√12.
    private static func deviation(_ query: [Double], _ key: TokenOperand) -> Double {
        let limit = min(32_767, Int(Int32.max) / (query.count * key.format.maximumCode))
        let step = query.reduce(0) { max($0, abs($1)) } / Double(limit)
        return AttentionErrorBound.confidence * step / 12.squareRoot()
    }

    /// What the codes of a query do to the results of a row. Their deviations are the same for all keys, so that they do not average
    /// out over many keys as roundings do. With p the probabilities and d_j = 1 − (s_j/cap)² the slopes of a soft cap:
    ///
    ///     |δLSE| ≤ scale·λ·t/√12·‖Σ p_j·d_j·k_j‖₂      |δo_c| ≤ scale·λ·t/√12·‖Σ p_j·d_j·(v_jc − o_c)·k_j‖₂
    static func queryCodes(
        query: [Double], scale: Double, logitsSoftCap: Float?, scores: [Double], row: ReferenceAttention.Row,
        key: TokenOperand, keys: [[Double]], values: [[Double]]
    ) -> (output: Double, logSumExp: Double) {
        if !key.format.isQuantized || scores.isEmpty { return (0, 0) }
        let channels = query.count
        // A line per output channel, and one for the LSE.
        var sums = [Double](repeating: 0, count: (row.output.count + 1) * channels)
        for (j, score) in scores.enumerated() {
            let slope = logitsSoftCap.map { 1 - (score / Double($0)) * (score / Double($0)) } ?? 1
            let weight = exp(score - row.logSumExp) * slope
            for line in 0...row.output.count {
                let factor = line == row.output.count ? weight : weight * (values[j][line] - row.output[line])
                for c in 0..<channels { sums[line * channels + c] += factor * keys[j][c] }
            }
        }
        let norms = (0...row.output.count).map { line in
            sums[line * channels..<(line + 1) * channels].reduce(0) { $0 + $1 * $1 }.squareRoot()
        }
        let factor = scale * deviation(query, key)
        return (factor * (norms.dropLast().max() ?? 0), factor * norms[row.output.count])
    }

    /// ω + κ of the worst channel of a row over the first `scores.count` of `slots`.
    static func values(
        scores: [Double], logSumExp: Double, value: TokenOperand, values: [[Double]], slots: [Int32]
    ) -> Double {
        if !value.format.isQuantized { return 0 }
        let factor = (AttentionErrorBound.confidence * 32.squareRoot() + 4) * AttentionErrorBound.unitRoundoff
        var errors = [Double](repeating: 0, count: value.channels)
        for first in stride(from: 0, to: scores.count, by: TokenScratch.block) {
            let tokens = first..<min(scores.count, first + TokenScratch.block)
            let scales = tokens.map { TokenPool.half(value.scales![Int(slots[$0])]) }
            let weights = tokens.map { exp(scores[$0] - logSumExp) * scales[$0 - first] }
            let half = (weights.max() ?? 0) / 65_534
            for (index, token) in tokens.enumerated() where weights[index] > 0 {
                let (weight, z) = (weights[index], TokenPool.half(value.zeros![Int(slots[token])]))
                let row = values[token]
                for channel in 0..<value.channels {
                    let distance = row[channel] / scales[index]
                    errors[channel] += min(half, weight) * abs(distance) + factor * weight * (abs(distance + z) + abs(z))
                }
            }
        }
        return errors.max() ?? 0
    }
}

import Foundation
import KernelInterface
import SparseKernels
import SparseKernelsReference

/// The largest error of the token kernels relative to exact attention over the stored tokens.
///
/// For float formats it is that of `AttentionErrorBound`. Codes add four terms. Let u = 2⁻²⁴, λ = 6, steps have 128 tokens, h
/// be the middle code, and x = c + s·(code − h).
///
/// Scores: a query becomes codes of a step t = max |q|/L, L = min(32767, ⌊(2³¹ − 1)/(channels·largest code)⌋). Each code is off
/// by at most t/2, a deviation of t/√12, times k − c. The exact sums of products are rounded to `Float`. c is multiplied by Σ
/// q, a sum in single precision:
///
///     τ = scale·(λ·t/√12·‖k − c‖₂ + 4u·s·(|Σ q·code| + h·|Σ q|) + λ(√channels + 2)·u·|c|·Σ |q|)
///
/// Outputs: a weight w = p·s becomes a multiple of δ = max w/32767 of its step. It is off by at most δ/2, or w when that is
/// less, times code − h. Σ p·c, a sum in `Float`, is added:
///
///     ω = Σ min(δ/2, w)·|code − h|    κ = (λ·√32 + 4)·u·Σ (w·(code + h) + p·|c|)
enum TokenErrorBound {
    /// The bounds of the scores of all tokens.
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

    /// The factor of a score's magnitude in `AttentionErrorBound`.
    static func scoreUnit(headDim: Int) -> Double {
        AttentionErrorBound.confidence * (Double(headDim).squareRoot() + 2) * AttentionErrorBound.unitRoundoff
    }

    private static func codeError(
        _ query: [Double], _ scale: Double, _ key: TokenOperand, _ k: [Double], slot: Int
    ) -> Double {
        let (centre, step) = (centre(key, slot), TokenPool.scale(key, slot))
        let sum = abs(query.reduce(0, +))
        let product = zip(query, k).reduce(0) { $0 + $1.0 * ($1.1 - TokenPool.value(ofCode: 0, key, slot)) }
        let u = AttentionErrorBound.unitRoundoff
        let rounding =
            4 * u * (abs(product) + step * Double(key.format.middleCode) * sum)
            + scoreUnit(headDim: query.count) * abs(centre) * query.reduce(0) { $0 + abs($1) }
        return scale * (deviation(query, key) * norm(k, less: centre) + rounding)
    }

    /// The value of a slot's middle code.
    private static func centre(_ tokens: TokenOperand, _ slot: Int) -> Double {
        TokenPool.value(ofCode: tokens.format.middleCode, tokens, slot)
    }

    private static func norm(_ row: [Double], less centre: Double) -> Double {
        row.reduce(0) { $0 + ($1 - centre) * ($1 - centre) }.squareRoot()
    }

    /// λ·t/√12.
    private static func deviation(_ query: [Double], _ key: TokenOperand) -> Double {
        let limit = min(32_767, Int(Int32.max) / (query.count * key.format.maximumCode))
        let step = query.reduce(0) { max($0, abs($1)) } / Double(limit)
        return AttentionErrorBound.confidence * step / 12.squareRoot()
    }

    /// The effect of a query's codes on the results of a row. Their deviations are the same for all keys, so that they do not
    /// average out over many keys as roundings do. `scores` are those after a cap, `biased` includes what was added to them.
    /// With the probabilities p and the slopes d_j = 1 − (s_j/cap)² of a soft cap:
    ///
    ///     |δLSE| ≤ scale·λ·t/√12·‖Σ p_j·d_j·(k_j − c_j)‖₂
    ///     |δo_x| ≤ scale·λ·t/√12·‖Σ p_j·d_j·(v_jx − o_x)·(k_j − c_j)‖₂
    static func queryCodes(
        query: [Double], scale: Double, logitsSoftCap: Float?, scores: [Double], biased: [Double]? = nil,
        row: ReferenceAttention.Row,
        key: TokenOperand, keys: [[Double]], values: [[Double]], slots: [Int32]
    ) -> (output: Double, logSumExp: Double) {
        if !key.format.isQuantized || scores.isEmpty { return (0, 0) }
        let channels = query.count
        // There is a row of sums per output channel, and one for the LSE.
        var sums = [Double](repeating: 0, count: (row.output.count + 1) * channels)
        for (j, score) in scores.enumerated() {
            let slope = logitsSoftCap.map { 1 - (score / Double($0)) * (score / Double($0)) } ?? 1
            let weight = exp((biased?[j] ?? score) - row.logSumExp) * slope
            let centre = centre(key, Int(slots[j]))
            for line in 0...row.output.count {
                let factor = line == row.output.count ? weight : weight * (values[j][line] - row.output[line])
                for c in 0..<channels { sums[line * channels + c] += factor * (keys[j][c] - centre) }
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
            let scales = tokens.map { TokenPool.scale(value, Int(slots[$0])) }
            let probabilities = tokens.map { exp(scores[$0] - logSumExp) }
            let half = zip(probabilities, scales).reduce(0) { max($0, $1.0 * $1.1) } / 65_534
            let middle = Double(value.format.middleCode)
            for (index, token) in tokens.enumerated() {
                let (p, step) = (probabilities[index], scales[index])
                let (centre, row) = (centre(value, Int(slots[token])), values[token])
                for channel in 0..<value.channels {
                    let distance = step == 0 ? 0 : abs(row[channel] - centre) / step
                    errors[channel] +=
                        min(half, p * step) * distance + factor * p * (step * (distance + 2 * middle) + abs(centre))
                }
            }
        }
        return errors.max() ?? 0
    }
}

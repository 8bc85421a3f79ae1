import Foundation
import SparseKernels
import SparseKernelsReference

/// What keys and values in codes x = s·(code − z) add to `AttentionErrorBound`. With u = 2⁻²⁴, λ = 6, and steps of 128 tokens:
///
/// Scores. A query becomes codes of a step t = max |q| / min(32767, ⌊(2³¹ − 1)/(channels·largest code)⌋); each is off by up to t/2, which
/// is a deviation of t/√12. The exact sums s·Σ q·code and s·z·Σ q are rounded to `Float`, subtracted and scaled:
///
///     τ = scale·(λ·t/√12·‖k‖₂ + 4u·(|s·Σ q·code| + |s·z·Σ q|))        |δo| ≤ √(Σ p²τ²D²),  D = max_c |v_c − o_c|
///
/// Values. A weight w = p·s becomes a multiple of max w/32767 of its step: off by half of that, or by all of w where that is less. The sum
/// of products, which is exact, and the sum of w·z, which is not, are subtracted:
///
///     |δo| ≤ max_c Σ min(max w/65534, w)·|code − z| + (λ·√32 + 4)·u·Σ w·(|code| + |z|)
///
/// Scales and zero points are not read from the cache but taken from what it reads back: s·(largest code) is the range of a row, −s·z its
/// least element.
struct CodeErrorBound {
    let keyFormat: KVFormat
    let valueFormat: KVFormat
    let scale: Double

    /// - Parameters:
    ///   - query: of one head.
    ///   - key, value: rows of its KV head, `[1, tokens, channels]`.
    ///   - tokens: those that the query sees.
    ///   - row: its exact attention.
    func output(
        query: [Double], key: Tensor<Float>, value: Tensor<Float>, tokens: [Int], row: ReferenceAttention.Row
    ) -> Double {
        if !keyFormat.isQuantized && !valueFormat.isQuantized { return 0 }
        let (keys, values) = (key.span, value.span)
        let (headDim, valueDim) = (key.shape[2], value.shape[2])
        let (u, confidence) = (AttentionErrorBound.unitRoundoff, AttentionErrorBound.confidence)
        let limit = min(32_767, Int(Int32.max) / (headDim * keyFormat.largestCode))
        let rounding = confidence / 12.squareRoot() * query.reduce(0) { max($0, abs($1)) } / Double(limit)
        let querySum = query.reduce(0, +)

        var byScores = 0.0
        var weights: [Double] = []
        var ranges: [(least: Double, scale: Double)] = []
        for token in tokens {
            var (product, norm, least) = (0.0, 0.0, Double.infinity)
            for channel in 0..<headDim {
                let k = Double(keys[token * headDim + channel])
                product += query[channel] * k
                norm += k * k
                least = min(least, k)
            }
            var (distance, low, high) = (0.0, Double.infinity, -Double.infinity)
            for channel in 0..<valueDim {
                let v = Double(values[token * valueDim + channel])
                distance = max(distance, abs(v - row.output[channel]))
                (low, high) = (min(low, v), max(high, v))
            }
            let p = exp(scale * product - row.logSumExp)
            if keyFormat.isQuantized {
                let offset = abs(least * querySum)
                let error = scale * (rounding * norm.squareRoot() + 4 * u * (abs(product) + 2 * offset))
                byScores += p * p * error * error * distance * distance
            }
            weights.append(p)
            ranges.append((low, (high - low) / Double(valueFormat.largestCode)))
        }
        return byScores.squareRoot()
            + (valueFormat.isQuantized ? byValues(values, valueDim, tokens: tokens, weights: weights, ranges: ranges) : 0)
    }

    private func byValues(
        _ values: Span<Float>, _ valueDim: Int, tokens: [Int], weights: [Double], ranges: [(least: Double, scale: Double)]
    ) -> Double {
        let step = 128
        let factor =
            (AttentionErrorBound.confidence * 32.squareRoot() + 4) * AttentionErrorBound.unitRoundoff
        let largest = stride(from: 0, to: tokens.count, by: step).map { first in
            (first..<min(tokens.count, first + step)).reduce(0) { max($0, weights[$1] * ranges[$1].scale) }
        }
        var errors = [Double](repeating: 0, count: valueDim)
        for index in tokens.indices where ranges[index].scale > 0 {
            // Work is cut elsewhere than every 128 tokens from the first one, so a step touches the next one here.
            let near = max(0, index / step - 1)...min(largest.count - 1, index / step + 1)
            let half = largest[near].max()! / 65_534
            let (weight, range) = (weights[index], ranges[index])
            for channel in 0..<valueDim {
                let v = abs(Double(values[tokens[index] * valueDim + channel]))
                errors[channel] += min(half / range.scale, weight) * v + factor * weight * (v + 2 * abs(range.least))
            }
        }
        return errors.max() ?? 0
    }
}

extension KVFormat {
    /// 1 for formats without codes.
    fileprivate var largestCode: Int { isQuantized ? 1 << bits - 1 : 1 }
}

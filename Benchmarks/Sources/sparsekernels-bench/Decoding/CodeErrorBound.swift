import Foundation
import SparseKernels
import SparseKernelsReference

/// The addition to `AttentionErrorBound` for keys and values in codes x = c + s·(code − h), where h is the middle code. With u
/// = 2⁻²⁴, λ = 6, and steps of 128 tokens:
///
/// Scores. A query becomes codes of a step t = max |q| / min(32767, ⌊(2³¹ − 1)/(channels·largest code)⌋). Each is off by up to
/// t/2, with a standard deviation of t/√12, and is multiplied by k − c. The exact sums of products are rounded to `Float`; c is
/// multiplied by Σ q, a sum in single precision:
///
///     τ = scale·(λ·t/√12·‖k − c‖₂ + 4u·(|Σ q·(k − m)| + h·s·|Σ q|) + λ(√channels + 2)·u·|c|·Σ |q|)
///     |δo| ≤ √(Σ p²τ²D²),  D = max_x |v_x − o_x|
///
/// Values. A weight w = p·s becomes a multiple of max w/32767 of its step. It is off by half of that, or by all of w if that is
/// less. The sum of products is exact, that of p·c is not:
///
///     |δo| ≤ max_x Σ min(max w/65534, w)·|code − h| + (λ·√32 + 4)·u·Σ (w·(code + h) + p·|c|)
///
/// Scales and minima m are not read from the cache but derived from the values that it returns: s·(largest code) is the range
/// of a row, and c is within a step of its middle.
struct CodeErrorBound {
    let keyFormat: KVFormat
    let valueFormat: KVFormat
    let scale: Double

    /// - Parameters:
    ///   - query: the query of one head.
    ///   - key, value: the rows of its KV head, `[1, tokens, channels]`.
    ///   - tokens: the tokens that the query sees.
    ///   - row: the exact attention of the query.
    func output(
        query: [Double], key: Tensor<Float>, value: Tensor<Float>, tokens: [Int], row: ReferenceAttention.Row
    ) -> Double {
        if !keyFormat.isQuantized && !valueFormat.isQuantized { return 0 }
        let (keys, values) = (key.span, value.span)
        let (headDim, valueDim) = (key.shape[2], value.shape[2])
        let (u, confidence) = (AttentionErrorBound.unitRoundoff, AttentionErrorBound.confidence)
        let limit = min(32_767, Int(Int32.max) / (headDim * keyFormat.largestCode))
        let rounding = confidence / 12.squareRoot() * query.reduce(0) { max($0, abs($1)) } / Double(limit)
        let querySum = abs(query.reduce(0, +))
        let queryMagnitude = query.reduce(0) { $0 + abs($1) }
        let scoreUnit = confidence * (Double(headDim).squareRoot() + 2) * u

        var byScores = 0.0
        var weights: [Double] = []
        var ranges: [RowRange] = []
        for token in tokens {
            var product = 0.0
            var keyRange = RowRange()
            for channel in 0..<headDim {
                let k = Double(keys[token * headDim + channel])
                product += query[channel] * k
                keyRange.add(k)
            }
            var distance = 0.0
            var valueRange = RowRange()
            for channel in 0..<valueDim {
                let v = Double(values[token * valueDim + channel])
                distance = max(distance, abs(v - row.output[channel]))
                valueRange.add(v)
            }
            let p = exp(scale * product - row.logSumExp)
            if keyFormat.isQuantized {
                let step = keyRange.step(keyFormat)
                let centre = keyRange.middle
                var norm = 0.0
                for channel in 0..<headDim {
                    let offset = abs(Double(keys[token * headDim + channel]) - centre) + step
                    norm += offset * offset
                }
                let codes = abs(product - keyRange.low * querySum) + keyRange.range / 2 * querySum
                let error =
                    scale
                    * (rounding * norm.squareRoot() + 4 * u * codes + scoreUnit * (abs(centre) + step) * queryMagnitude)
                byScores += p * p * error * error * distance * distance
            }
            weights.append(p)
            ranges.append(valueRange)
        }
        return byScores.squareRoot()
            + (valueFormat.isQuantized ? byValues(values, valueDim, tokens: tokens, weights: weights, ranges: ranges) : 0)
    }

    private func byValues(
        _ values: Span<Float>, _ valueDim: Int, tokens: [Int], weights: [Double], ranges: [RowRange]
    ) -> Double {
        let step = 128
        let factor =
            (AttentionErrorBound.confidence * 32.squareRoot() + 4) * AttentionErrorBound.unitRoundoff
        let largest = stride(from: 0, to: tokens.count, by: step).map { first in
            (first..<min(tokens.count, first + step)).reduce(0) { max($0, weights[$1] * ranges[$1].step(valueFormat)) }
        }
        var errors = [Double](repeating: 0, count: valueDim)
        for index in tokens.indices {
            // Chunks need not be cut every 128 tokens from the first, so the neighbouring steps are included.
            let near = max(0, index / step - 1)...min(largest.count - 1, index / step + 1)
            let half = largest[near].max()! / 65_534
            let (p, range) = (weights[index], ranges[index])
            let s = range.step(valueFormat)
            for channel in 0..<valueDim {
                let distance = abs(Double(values[tokens[index] * valueDim + channel]) - range.middle) + s
                errors[channel] += s == 0 ? 0 : min(half / s, p) * distance
                errors[channel] += factor * p * (distance + range.range + abs(range.middle) + s)
            }
        }
        return errors.max() ?? 0
    }
}

/// The smallest and the largest element of a row.
private struct RowRange {
    var (low, high) = (Double.infinity, -Double.infinity)

    mutating func add(_ element: Double) { (low, high) = (min(low, element), max(high, element)) }
    var range: Double { high - low }
    var middle: Double { (low + high) / 2 }
    func step(_ format: KVFormat) -> Double { range / Double(format.largestCode) }
}

extension KVFormat {
    /// The largest code; 1 for formats without codes.
    fileprivate var largestCode: Int { isQuantized ? 1 << bits - 1 : 1 }
}

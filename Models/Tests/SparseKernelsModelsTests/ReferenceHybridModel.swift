import Foundation
import SparseKernels

/// A tiny hybrid model in `Double`, step by step, from the description of the architecture: one sequence, all positions.
///
/// Its arithmetic is that of the recorded one of `hybrid_lm`, with other sizes.
struct ReferenceHybridModel {
    private let tiny: TinyHybridModel
    private let weights: [String: [[Double]]]
    private var noise: Noise

    /// Makes results off by what single precision may make of them, with random signs, as in `ReferenceLanguageModel`.
    private struct Noise {
        var state: UInt64?

        mutating func callAsFunction(_ value: Double, by size: Double) -> Double {
            guard var next = state else { return value }
            next = next &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            state = next
            return value + (next >> 63 == 0 ? size : -size)
        }
    }

    private init(_ tiny: TinyHybridModel, seed: UInt64?) {
        self.tiny = tiny
        noise = Noise(state: seed.map { $0 &* 0x9E37_79B9_7F4A_7C15 | 1 })
        weights = tiny.weights.mapValues { weight in
            let (values, columns) = (weight.elements.map { Double($0) }, weight.shape.last!)
            return (0..<values.count / columns).map { Array(values[$0 * columns..<($0 + 1) * columns]) }
        }
    }

    /// The logits, and how far those of single precision may be: the largest change that three kinds of noise make.
    static func logits(_ tiny: TinyHybridModel, _ tokens: [Int]) -> (logits: [Double], tolerance: Double) {
        var exact = ReferenceHybridModel(tiny, seed: nil)
        let logits = exact.logits(tokens)
        var tolerance = 0.0
        for seed: UInt64 in 1...3 {
            var noisy = ReferenceHybridModel(tiny, seed: seed)
            tolerance = max(tolerance, largestDifference(noisy.logits(tokens), logits))
        }
        return (logits, tolerance)
    }

    private mutating func logits(_ tokens: [Int]) -> [Double] {
        var x = tokens.map { weights["backbone.embeddings.weight"]![$0] }
        for (layer, letter) in tiny.pattern.enumerated() {
            let prefix = "backbone.layers.\(layer)."
            let inputs = x.map { norm($0, prefix + "norm.weight", groups: 1) }
            let updates: [[Double]]
            switch letter {
            case "M": updates = mamba(inputs, prefix + "mixer.")
            case "*": updates = attention(inputs, prefix + "mixer.")
            default:
                updates = inputs.map { row in
                    let up = linear(prefix + "mixer.up_proj", row).map { noise(max($0, 0) * max($0, 0), by: 0x1p-22 * $0 * $0) }
                    return linear(prefix + "mixer.down_proj", up)
                }
            }
            for (row, update) in updates.enumerated() {
                x[row] = zip(x[row], update).map { noise($0 + $1, by: 0x1p-24 * abs($0 + $1)) }
            }
        }
        return x.flatMap { row in linear("lm_head", norm(row, "backbone.norm_f.weight", groups: 1)) }
    }

    private mutating func linear(_ name: String, _ x: [Double]) -> [Double] {
        let bias = weights[name + ".bias"]?[0]
        return weights[name + ".weight"]!.enumerated().map { row, weights in
            var (sum, magnitude) = (bias?[row] ?? 0, abs(bias?[row] ?? 0))
            for (w, value) in zip(weights, x) {
                sum += w * value
                magnitude += abs(w * value)
            }
            return noise(sum, by: Double(x.count + 1) * 0x1p-24 * magnitude)
        }
    }

    private mutating func norm(_ x: [Double], _ name: String, groups: Int) -> [Double] {
        let (weight, width) = (weights[name]![0], x.count / groups)
        return (0..<groups).flatMap { group in
            let part = x[group * width..<(group + 1) * width]
            let factor = 1 / (part.reduce(0) { $0 + $1 * $1 } / Double(width) + 1e-5).squareRoot()
            return part.indices.map { i in
                let y = x[i] * factor * weight[i]
                return noise(y, by: 0x1p-22 * abs(y))
            }
        }
    }

    /// Without rotation: position counts by the mask alone.
    private mutating func attention(_ inputs: [[Double]], _ prefix: String) -> [[Double]] {
        let d = TinyHybridModel.headDim
        func heads(_ row: [Double]) -> [[Double]] { stride(from: 0, to: row.count, by: d).map { Array(row[$0..<$0 + d]) } }
        let q = inputs.map { heads(linear(prefix + "q_proj", $0)) }
        let k = inputs.map { heads(linear(prefix + "k_proj", $0)) }
        let v = inputs.map { heads(linear(prefix + "v_proj", $0)) }
        return inputs.indices.map { i in
            var attended: [Double] = []
            for head in 0..<TinyHybridModel.heads {
                let kvHead = head / (TinyHybridModel.heads / TinyHybridModel.kvHeads)
                let weights = (0...i).map { j in
                    let score = zip(q[i][head], k[j][kvHead]).reduce(0) { $0 + $1.0 * $1.1 } / Double(d).squareRoot()
                    return exp(noise(score, by: 0x1p-20 * abs(score)))
                }
                let sum = weights.reduce(0, +)
                for c in 0..<d {
                    let value = (0...i).reduce(0) { $0 + weights[$1] / sum * v[$1][kvHead][c] }
                    attended.append(noise(value, by: 0x1p-20 * abs(value)))
                }
            }
            return linear(prefix + "o_proj", attended)
        }
    }

    private mutating func mamba(_ inputs: [[Double]], _ prefix: String) -> [[Double]] {
        typealias T = TinyHybridModel
        let projected = inputs.map { linear(prefix + "in_proj", $0) }
        let (kernel, bias) = (weights[prefix + "conv1d.weight"]!, weights[prefix + "conv1d.bias"]![0])
        let (aLog, dtBias, skip) = (weights[prefix + "A_log"]![0], weights[prefix + "dt_bias"]![0], weights[prefix + "D"]![0])
        // The rows that the convolution sees, with zeros before the first token.
        let window =
            Array(repeating: Array(repeating: 0.0, count: T.convolved), count: T.width - 1)
            + projected.map { Array($0[T.innerWidth..<T.innerWidth + T.convolved]) }
        var states = Array(
            repeating: Array(repeating: 0.0, count: T.state * T.mambaHeadDim), count: T.mambaHeads)
        return projected.indices.map { t in
            let convolved = (0..<T.convolved).map { c in
                let sum = (0..<T.width).reduce(bias[c]) { $0 + window[t + $1][c] * kernel[c][$1] }
                return noise(sum / (1 + exp(-sum)), by: 0x1p-20 * abs(sum))
            }
            var y: [Double] = []
            for head in 0..<T.mambaHeads {
                let raw = projected[t][T.innerWidth + T.convolved + head] + dtBias[head]
                let dt = min(max(log1p(exp(raw)), tiny.limits.lowerBound), tiny.limits.upperBound)
                let decay = exp(-dt * exp(aLog[head]))
                let group = head / (T.mambaHeads / T.groups)
                let x = convolved[head * T.mambaHeadDim..<(head + 1) * T.mambaHeadDim]
                var row = x.map { skip[head] * $0 }
                var sizes = row.map(abs)
                for n in 0..<T.state {
                    let b = convolved[T.innerWidth + group * T.state + n]
                    let c = convolved[T.innerWidth + (T.groups + group) * T.state + n]
                    for (p, value) in x.enumerated() {
                        let (old, new) = (decay * states[head][n * T.mambaHeadDim + p], dt * b * value)
                        let state = noise(old + new, by: 0x1p-21 * (abs(old) + abs(new)))
                        states[head][n * T.mambaHeadDim + p] = state
                        row[p] += c * state
                        sizes[p] += abs(c * state)
                    }
                }
                y += zip(row, sizes).map { noise($0, by: 0x1p-20 * $1) }
            }
            let gated = y.indices.map { i in
                let z = projected[t][i]
                let u = y[i] * z / (1 + exp(-z))
                return noise(u, by: 0x1p-20 * abs(u))
            }
            return linear(prefix + "out_proj", norm(gated, prefix + "norm.weight", groups: T.groups))
        }
    }
}

import Foundation
import SparseKernels

/// How the oracle turns positions into angles.
struct ReferenceRotary: Sendable {
    /// The frequency of every pair for a length of the sequence.
    let frequencies: @Sendable (_ pairs: Int, _ length: Int) -> [Double]
    /// A factor on cosines and sines.
    var factor = 1.0

    static func plain(theta: Double) -> ReferenceRotary {
        ReferenceRotary { pairs, _ in (0..<pairs).map { pow(theta, -Double($0) / Double(pairs)) } }
    }
}

/// A tiny model in `Double`, token by token, from the description of the architectures: one sequence, all positions.
struct ReferenceLanguageModel {
    let tiny: TinyLanguageModel
    /// Makes every result of an operation off by what single precision may make of it, with random signs: a sum of K products by
    /// K · 2⁻²⁴ of the sum of their magnitudes, anything else by 2⁻²² of itself.
    var noise: UInt64?

    /// The logits, and how far those of single precision may be: the largest change that three kinds of noise make, which is that
    /// of errors at their bounds everywhere. True errors are far smaller, so no factor is needed.
    static func logits(_ tiny: TinyLanguageModel, _ tokens: [Int]) -> (logits: [Double], tolerance: Double) {
        var model = ReferenceLanguageModel(tiny: tiny)
        let exact = model.logits(tokens)
        var tolerance = 0.0
        for seed: UInt64 in 1...3 {
            model.noise = seed
            for (a, b) in zip(model.logits(tokens), exact) { tolerance = max(tolerance, abs(a - b)) }
        }
        return (exact, tolerance)
    }

    private func logits(_ tokens: [Int]) -> [Double] {
        let o = tiny.options
        var state = (noise ?? 0) &* 0x9E37_79B9_7F4A_7C15 | 1
        func perturbed(_ value: Double, by size: Double) -> Double {
            guard noise != nil else { return value }
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return value + (state >> 63 == 0 ? size : -size)
        }
        let matrices = tiny.weights.mapValues { weight in
            let (values, columns) = (weight.elements.map { Double($0) }, weight.shape.last!)
            return (0..<values.count / columns).map { Array(values[$0 * columns..<($0 + 1) * columns]) }
        }
        func vector(_ name: String) -> [Double] { matrices[name]![0] }
        func matrix(_ name: String) -> [[Double]] { matrices[name]! }
        func product(_ weight: [[Double]], _ x: [Double], bias: [Double]? = nil) -> [Double] {
            weight.enumerated().map { row, weights in
                var (sum, magnitude) = (bias?[row] ?? 0, abs(bias?[row] ?? 0))
                for (w, value) in zip(weights, x) {
                    sum += w * value
                    magnitude += abs(w * value)
                }
                return perturbed(sum, by: Double(x.count + 1) * 0x1p-24 * magnitude)
            }
        }
        func norm(_ x: [Double], _ name: String) -> [Double] {
            let factor = 1 / (x.reduce(0) { $0 + $1 * $1 } / Double(x.count) + 1e-5).squareRoot()
            return zip(x, vector(name)).map { x, w in
                let y = x * factor * (o.isGemma ? 1 + w : w)
                return perturbed(y, by: 0x1p-22 * abs(y))
            }
        }
        func activation(_ x: Double) -> Double {
            switch o.activation {
            case "silu": return x / (1 + exp(-x))
            case "gelu": return 0.5 * x * (1 + erf(x / 2.0.squareRoot()))
            case "gelu_pytorch_tanh":
                return 0.5 * x * (1 + tanh((2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x)))
            default: return max(x, 0) * max(x, 0)
            }
        }
        let rotary = o.scaling?.frequencies ?? .plain(theta: 100)
        let frequencies = rotary.frequencies(o.rotated / 2, tokens.count)
        func rotated(_ x: [Double], at position: Int) -> [Double] {
            var y = x
            for (pair, frequency) in frequencies.enumerated() {
                let (angle, half) = (Double(position) * frequency, o.rotated / 2)
                let (c, s) = (cos(angle) * rotary.factor, sin(angle) * rotary.factor)
                y[pair] = x[pair] * c - x[pair + half] * s
                y[pair + half] = x[pair] * s + x[pair + half] * c
            }
            return y.map { perturbed($0, by: 0x1p-22 * abs($0)) }
        }
        let (heads, group, d) = (4, 2, 8)
        let scale = 1 / (o.isGemma ? 12.0 : 8.0).squareRoot()
        let embedding = matrix("model.embed_tokens.weight")
        var x = tokens.map { token in embedding[token].map { $0 * (o.isGemma ? 24.0.squareRoot() : 1) } }
        for layer in 0..<3 {
            let prefix = "model.layers.\(layer)."
            func linear(_ name: String, _ x: [Double]) -> [Double] {
                let bias = tiny.weights["\(prefix)\(name).bias"] == nil ? nil : vector("\(prefix)\(name).bias")
                return product(matrix("\(prefix)\(name).weight"), x, bias: bias)
            }
            let inputs = x.map { norm($0, prefix + "input_layernorm.weight") }
            func split(_ name: String, _ row: [Double], normalized: String?) -> [[Double]] {
                let all = linear(name, row)
                return stride(from: 0, to: all.count, by: d).map { start in
                    let head = Array(all[start..<start + d])
                    guard let normalized, o.normalizesHeads else { return head }
                    return norm(head, prefix + normalized)
                }
            }
            let q = inputs.enumerated().map { position, row in
                split("self_attn.q_proj", row, normalized: "self_attn.q_norm.weight").map { rotated($0, at: position) }
            }
            let k = inputs.enumerated().map { position, row in
                split("self_attn.k_proj", row, normalized: "self_attn.k_norm.weight").map { rotated($0, at: position) }
            }
            let v = inputs.map { split("self_attn.v_proj", $0, normalized: nil) }
            for i in x.indices {
                var attended: [Double] = []
                for head in 0..<heads {
                    var (weights, sum) = ([Double](), 0.0)
                    for j in x.indices {
                        let isVisible = (!o.isCausal || j <= i) && (o.windows[layer].map { abs(i - j) < $0 } ?? true)
                        var score = zip(q[i][head], k[j][head / group]).reduce(0) { $0 + $1.0 * $1.1 } * scale
                        if let cap = o.softCap { score = cap * tanh(score / cap) }
                        score = perturbed(score, by: 0x1p-20 * abs(score))
                        weights.append(isVisible ? exp(score) : 0)
                        sum += weights[j]
                    }
                    if o.hasSinks { sum += exp(vector(prefix + "self_attn.sinks")[head]) }
                    for c in 0..<d {
                        let value = x.indices.reduce(0) { $0 + weights[$1] / sum * v[$1][head / group][c] }
                        attended.append(perturbed(value, by: 0x1p-20 * abs(value)))
                    }
                }
                var update = linear("self_attn.o_proj", attended)
                if o.isGemma { update = norm(update, prefix + "post_attention_layernorm.weight") }
                x[i] = zip(x[i], update).map { $0 + $1 }
            }
            let mlpNorm = prefix + (o.isGemma ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight")
            for i in x.indices {
                let row = norm(x[i], mlpNorm)
                let gated = zip(linear("mlp.gate_proj", row), linear("mlp.up_proj", row)).map { gate, up in
                    let y = activation(gate) * up
                    return perturbed(y, by: 0x1p-21 * abs(y))
                }
                var update = linear("mlp.down_proj", gated)
                if o.isGemma { update = norm(update, prefix + "post_feedforward_layernorm.weight") }
                x[i] = zip(x[i], update).map { perturbed($0 + $1, by: 0x1p-24 * abs($0 + $1)) }
            }
        }
        let head = o.isTied ? embedding : matrix("lm_head.weight")
        return x.flatMap { row in
            product(head, norm(row, "model.norm.weight")).map { logit in
                o.logitCap.map { $0 * tanh(logit / $0) } ?? logit
            }
        }
    }
}

/// The largest difference of two lists.
func largestDifference(_ a: some Sequence<Double>, _ b: some Sequence<Double>) -> Double {
    zip(a, b).reduce(0) { max($0, abs($1.0 - $1.1)) }
}

func largestDifference(_ a: Tensor<Float>, _ b: Tensor<Float>) -> Double {
    a.shape == b.shape ? largestDifference(a.elements.lazy.map(Double.init), b.elements.lazy.map(Double.init)) : .infinity
}

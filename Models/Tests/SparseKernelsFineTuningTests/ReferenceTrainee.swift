import Foundation
import SparseKernels
import SparseLoRA

@testable import SparseKernelsFineTuning

/// The loss of a tiny model with adapters in `Double`, token by token, from the description of the architecture and of SparseLoRA.
struct ReferenceTrainee {
    typealias Matrix = (columns: Int, values: [Double])

    let weights: [String: Matrix]
    /// A and B by the layer's name, and the scale of their product.
    var factors: [String: (a: Matrix, b: Matrix)] = [:]
    var scale = 2.0
    /// The channels of the context, by block; nil runs all of them.
    var channels: [BlockChannels]?
    /// The positions that have all channels.
    var dense = 0..<Int.max

    init(_ tiny: TinyTrainee) { weights = tiny.weights.mapValues { Self.matrix($0) } }

    static func matrix(_ tensor: Tensor<Float>) -> Matrix { (tensor.shape.last!, tensor.elements.map(Double.init)) }

    /// The mean loss of the targets that count.
    func loss(_ batch: TrainingBatch) -> Double {
        var (sum, count) = (0.0, 0)
        for sequence in 0..<batch.sequences {
            let rows = sequence * batch.length..<(sequence + 1) * batch.length
            let targets = Array(batch.targets[rows])
            for (logits, target) in zip(logits(Array(batch.tokens[rows])), targets) where target != TrainingBatch.ignored {
                let largest = logits.max()!
                sum += largest + log(logits.reduce(0) { $0 + exp($1 - largest) }) - logits[target]
                count += 1
            }
        }
        return sum / Double(count)
    }

    /// y = W x, of some outputs and inputs only; the others count as 0.
    private func product(_ m: Matrix, _ x: [Double], outputs: Set<Int>? = nil, inputs: Set<Int>? = nil) -> [Double] {
        m.values.withUnsafeBufferPointer { w in
            (0..<w.count / m.columns).map { row in
                if let outputs, !outputs.contains(row) { return 0 }
                var sum = 0.0
                for i in 0..<m.columns where inputs?.contains(i) ?? true { sum += w[row * m.columns + i] * x[i] }
                return sum
            }
        }
    }

    private func projection(
        _ name: String, _ x: [Double], outputs: ChannelSubset? = nil, inputs: ChannelSubset? = nil
    ) -> [Double] {
        func set(_ subset: ChannelSubset?) -> Set<Int>? { subset.map { Set($0.indices.map(Int.init)) } }
        var y = product(weights[name + ".weight"]!, x, outputs: set(outputs), inputs: set(inputs))
        if let bias = weights[name + ".bias"]?.values {
            for i in y.indices { y[i] += bias[i] }
        }
        guard let (a, b) = factors[name] else { return y }
        return zip(y, product(b, product(a, x))).map { $0 + scale * $1 }
    }

    private func norm(_ x: [Double], _ name: String) -> [Double] {
        let factor = 1 / (x.reduce(0) { $0 + $1 * $1 } / Double(x.count) + 1e-5).squareRoot()
        return zip(x, weights[name]!.values).map { $0 * factor * $1 }
    }

    private func rotated(_ x: [Double], at position: Int) -> [Double] {
        let (d, half) = (TinyTrainee.headDim, TinyTrainee.headDim / 2)
        var y = x
        for head in stride(from: 0, to: x.count, by: d) {
            for pair in 0..<half {
                let angle = Double(position) * pow(100, -Double(pair) / Double(half))
                let (a, b) = (x[head + pair], x[head + pair + half])
                y[head + pair] = a * cos(angle) - b * sin(angle)
                y[head + pair + half] = a * sin(angle) + b * cos(angle)
            }
        }
        return y
    }

    private func logits(_ tokens: [Int]) -> [[Double]] {
        let (heads, group, d) = (TinyTrainee.heads, TinyTrainee.heads / TinyTrainee.kvHeads, TinyTrainee.headDim)
        let embedding = weights["model.embed_tokens.weight"]!
        var x = tokens.map { Array(embedding.values[$0 * embedding.columns..<($0 + 1) * embedding.columns]) }
        for layer in 0..<TinyTrainee.layers {
            let block = "model.layers.\(layer)."
            func picked(_ position: Int) -> BlockChannels? { dense.contains(position) ? nil : channels?[layer] }
            let inputs = x.map { norm($0, block + "input_layernorm.weight") }
            let q = inputs.enumerated().map {
                rotated(projection(block + "self_attn.q_proj", $1, outputs: picked($0)?.attention?.query), at: $0)
            }
            let k = inputs.enumerated().map {
                rotated(projection(block + "self_attn.k_proj", $1, outputs: picked($0)?.attention?.key), at: $0)
            }
            let v = inputs.enumerated().map {
                projection(block + "self_attn.v_proj", $1, outputs: picked($0)?.attention?.value)
            }
            for i in x.indices {
                var attended = [Double](repeating: 0, count: heads * d)
                for head in 0..<heads {
                    let (own, shared) = (head * d, head / group * d)
                    let scores = (0...i).map { j in
                        exp((0..<d).reduce(0) { $0 + q[i][own + $1] * k[j][shared + $1] } / Double(d).squareRoot())
                    }
                    let sum = scores.reduce(0, +)
                    for c in 0..<d {
                        attended[own + c] = (0...i).reduce(0) { $0 + scores[$1] / sum * v[$1][shared + c] }
                    }
                }
                let update = projection(block + "self_attn.o_proj", attended, inputs: picked(i)?.attention?.output)
                x[i] = zip(x[i], update).map { $0 + $1 }
            }
            for i in x.indices {
                let row = norm(x[i], block + "post_attention_layernorm.weight")
                let mlp = picked(i)?.mlp
                let gate = projection(block + "mlp.gate_proj", row, outputs: mlp)
                let up = projection(block + "mlp.up_proj", row, outputs: mlp)
                let hidden = zip(gate, up).map { $0 / (1 + exp(-$0)) * $1 }
                x[i] = zip(x[i], projection(block + "mlp.down_proj", hidden, inputs: mlp)).map { $0 + $1 }
            }
        }
        return x.map { product(embedding, norm($0, "model.norm.weight")) }
    }
}

internal import Foundation
internal import SparseKernels

/// Rotation and causal attention of a recorded module in `Double`, forward and backward. What is replayed are the projections around it.
struct SparseLoRAAttention {
    private let parameters: AttentionParameters
    private let cos: Tensor<Float>
    private let sin: Tensor<Float>
    /// By head: rotated queries and keys, values, and weights.
    private var q: [[[Double]]] = []
    private var k: [[[Double]]] = []
    private var v: [[[Double]]] = []
    private var p: [[[Double]]] = []

    init(_ parameters: AttentionParameters, cos: Tensor<Float>, sin: Tensor<Float>) {
        self.parameters = parameters
        self.cos = cos
        self.sin = sin
    }

    private var scale: Double { 1 / Double(parameters.headDim).squareRoot() }
    private var group: Int { parameters.heads / parameters.kvHeads }

    /// The rows of each head of each sample.
    private func split(_ rows: Tensor<Float>, heads: Int) -> [[[Double]]] {
        let (length, d) = (parameters.length, parameters.headDim)
        return (0..<parameters.batch * heads).map { index in
            let (sample, head) = index.quotientAndRemainder(dividingBy: heads)
            return (0..<length).map { t in (0..<d).map { Double(rows[sample * length + t, head * d + $0]) } }
        }
    }

    private func joined(_ parts: [[[Double]]], heads: Int) throws(SparseKernelsError) -> Tensor<Float> {
        let (length, d) = (parameters.length, parameters.headDim)
        return try Tensor([parameters.batch * length, heads * d]) { index in
            let (row, column) = index.quotientAndRemainder(dividingBy: heads * d)
            return Float(parts[row / length * heads + column / d][row % length][column % d])
        }
    }

    /// Rotates by the angles of each position, or back.
    private func rotated(_ rows: [[Double]], back: Bool) -> [[Double]] {
        let half = parameters.headDim / 2
        return rows.enumerated().map { t, row in
            row.indices.map { c in
                // The partner has the same angle, so that the transposed rotation has the same factors.
                let partner = c < half ? c + half : c - half
                let sign = (c < half) != back ? -1.0 : 1.0
                return row[c] * Double(cos[t, c]) + sign * row[partner] * Double(sin[t, c])
            }
        }
    }

    mutating func run(
        query: Tensor<Float>, key: Tensor<Float>, value: Tensor<Float>
    ) throws(SparseKernelsError) -> Tensor<Float> {
        q = split(query, heads: parameters.heads).map { rotated($0, back: false) }
        k = split(key, heads: parameters.kvHeads).map { rotated($0, back: false) }
        v = split(value, heads: parameters.kvHeads)
        p = []
        var outputs: [[[Double]]] = []
        for (index, queries) in q.enumerated() {
            let (keys, values) = (k[index / group], v[index / group])
            let weights = queries.enumerated().map { t, query in
                let scores = (0...t).map { s in zip(query, keys[s]).reduce(0) { $0 + $1.0 * $1.1 } * scale }
                let largest = scores.max()!
                let exponentials = scores.map { exp($0 - largest) }
                let sum = exponentials.reduce(0, +)
                return exponentials.map { $0 / sum }
            }
            p.append(weights)
            outputs.append(
                weights.map { weights in
                    (0..<parameters.headDim).map { c in
                        weights.enumerated().reduce(0) { $0 + $1.element * values[$1.offset][c] }
                    }
                })
        }
        return try joined(outputs, heads: parameters.heads)
    }

    func gradient(
        _ outputGradient: Tensor<Float>
    ) throws(SparseKernelsError) -> (Tensor<Float>, Tensor<Float>, Tensor<Float>) {
        let d = parameters.headDim
        let dO = split(outputGradient, heads: parameters.heads)
        let zeros = Array(repeating: Array(repeating: 0.0, count: d), count: parameters.length)
        var dq = Array(repeating: zeros, count: q.count)
        var dk = Array(repeating: zeros, count: k.count)
        var dv = Array(repeating: zeros, count: v.count)
        for index in q.indices {
            let kv = index / group
            for t in 0..<parameters.length {
                let dP = (0...t).map { s in (0..<d).reduce(0) { $0 + dO[index][t][$1] * v[kv][s][$1] } }
                let mean = (0...t).reduce(0) { $0 + dP[$1] * p[index][t][$1] }
                for s in 0...t {
                    let dS = p[index][t][s] * (dP[s] - mean) * scale
                    for c in 0..<d {
                        dq[index][t][c] += dS * k[kv][s][c]
                        dk[kv][s][c] += dS * q[index][t][c]
                        dv[kv][s][c] += p[index][t][s] * dO[index][t][c]
                    }
                }
            }
        }
        return (
            try joined(dq.map { rotated($0, back: true) }, heads: parameters.heads),
            try joined(dk.map { rotated($0, back: true) }, heads: parameters.kvHeads),
            try joined(dv, heads: parameters.kvHeads)
        )
    }
}

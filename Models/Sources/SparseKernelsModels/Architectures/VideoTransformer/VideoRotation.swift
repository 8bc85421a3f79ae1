import Foundation
import SparseKernels

/// RMSNorm per head and rotary embedding on interleaved pairs, split among frame, row and column. Text is not rotated.
struct VideoRotation {
    let textTokens: Int
    let cosines: [Float]
    let sines: [Float]
    let headDim: Int

    init(textTokens: Int, edge: Int, axes: [Int]) {
        self.textTokens = textTokens
        headDim = axes.reduce(0, +)
        var angles: [Double] = []
        for token in 0..<edge * edge * edge {
            for (axis, position) in [token / (edge * edge), token / edge % edge, token % edge].enumerated() {
                for pair in 0..<axes[axis] / 2 {
                    angles.append(Double(position) * pow(10000, -2 * Double(pair) / Double(axes[axis])))
                }
            }
        }
        cosines = angles.map { Float(cos($0)) }
        sines = angles.map { Float(sin($0)) }
    }

    /// - Parameter rows: `[tokens, heads · headDim]`.
    func apply(to rows: inout Tensor<Float>, normalizedBy weight: [Float]) {
        let width = rows.shape[1]
        var elements = rows.mutableSpan
        for head in stride(from: 0, to: elements.count, by: headDim) {
            var squares: Float = 0
            for i in 0..<headDim { squares += elements[head + i] * elements[head + i] }
            let factor = 1 / (squares / Float(headDim) + 1e-6).squareRoot()
            for i in 0..<headDim { elements[head + i] *= factor * weight[i] }
            let token = head / width - textTokens
            if token < 0 { continue }
            for pair in 0..<headDim / 2 {
                let (cosine, sine) = (cosines[token * headDim / 2 + pair], sines[token * headDim / 2 + pair])
                let (first, second) = (elements[head + 2 * pair], elements[head + 2 * pair + 1])
                elements[head + 2 * pair] = first * cosine - second * sine
                elements[head + 2 * pair + 1] = first * sine + second * cosine
            }
        }
    }
}

// The gradient of the cross-entropy of one row, but for its target: softmax · 1/divisor = e^(logit − m) · factor, with m the largest
// logit and factor = e^(m − ln Σ eˣ) / divisor. The difference to m is exact for the entries that matter most; that to a rounded
// ln Σ eˣ would not be.

import KernelInterface

extension Kernels {
    public static func differentiateLogits(
        _ logits: UnsafePointer<Float>, count: Int, maximum: Float, factor: Float, into gradient: UnsafeMutablePointer<Float>
    ) {
        let (m, f) = (splat(maximum), splat(factor))
        var column = 0
        while column + laneCount <= count {
            store(exp(load(logits + column) - m) * f, gradient + column)
            column += laneCount
        }
        let rest = count - column
        if rest > 0 {
            let x = loadLastLanes(UnsafeRawPointer(logits), .float32, column, rest, filler: 0)
            storeLastLanes(exp(x - m) * f, UnsafeMutableRawPointer(gradient), .float32, column, rest)
        }
    }
}

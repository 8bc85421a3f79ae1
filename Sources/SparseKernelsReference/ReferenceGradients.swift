public import SparseKernels

/// Gradients of row operators in `Double`, one row at a time.
public enum ReferenceGradients {
    /// f′(x) of a gated activation.
    public static func slope(_ function: GatedActivation.Function, _ x: Double) -> Double {
        switch function {
        case .silu:
            let sigma = 1 / (1 + exponential(-x))
            return sigma + x * sigma * (1 / (1 + exponential(x)))
        case .gelu:
            let density = exponential(-x * x / 2) * 0.3989422804014327
            return 0.5 * complementaryError(-x / 2.0.squareRoot()) + x * density
        case .geluTanh:
            let slope = 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)
            let t = hyperbolicTangent(0.7978845608028654 * (x + 0.044715 * x * x * x))
            return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope
        case .relu: return x > 0 ? 1 : 0
        case .reluSquared: return x > 0 ? 2 * x : 0
        }
    }

    /// What the slope of an activation may be off by, absolutely.
    public static func slopeError(_ function: GatedActivation.Function, _ x: Double) -> Double {
        switch function {
        case .silu: 6e-7 + 1e-7 * abs(x) * abs(slope(function, x))
        case .gelu: 1e-6 * (1 + x * x / 2 * exponential(-x * x / 2) * abs(x))
        case .geluTanh: 1e-6 * (1 + abs(x))
        case .relu: 0
        case .reluSquared: abs(x) * 0x1p-23
        }
    }

    /// dx of y = x / √(mean x² + ε) · weight, and the row's share of dweight.
    public static func rmsNorm(
        _ x: [Double], weight: [Double], epsilon: Double, outputGradient dy: [Double]
    ) -> (input: [Double], weight: [Double]) {
        let count = Double(x.count)
        let inverse = 1 / (x.reduce(0) { $0 + $1 * $1 } / count + epsilon).squareRoot()
        let products = x.indices.reduce(0) { $0 + x[$1] * weight[$1] * dy[$1] } / count
        return (
            x.indices.map { inverse * (weight[$0] * dy[$0] - x[$0] * inverse * inverse * products) },
            x.indices.map { dy[$0] * x[$0] * inverse }
        )
    }

    /// What an element of dx is made of: r · (|w · dy| + |x| · r² · mean |x · w · dy|). Errors are relative to it.
    public static func rmsNormMagnitude(
        _ x: [Double], weight: [Double], epsilon: Double, outputGradient dy: [Double]
    ) -> [Double] {
        let count = Double(x.count)
        let inverse = 1 / (x.reduce(0) { $0 + $1 * $1 } / count + epsilon).squareRoot()
        let products = x.indices.reduce(0) { $0 + abs(x[$1] * weight[$1] * dy[$1]) } / count
        return x.indices.map { inverse * (abs(weight[$0] * dy[$0]) + abs(x[$0]) * inverse * inverse * products) }
    }

    /// ln Σ eˣ − x[target] of a row, and softmax − onehot.
    public static func crossEntropy(_ row: [Double], target: Int) -> (loss: Double, gradient: [Double]) {
        let logSum = ReferenceRows.statistics(row, topK: 1).logSumExp
        return (
            logSum - row[target], row.indices.map { exponential(row[$0] - logSum) - ($0 == target ? 1 : 0) }
        )
    }

    /// The derivative of a function at x, by central differences along every coordinate.
    public static func differences(_ x: [Double], step: Double = 1e-5, of function: ([Double]) -> Double) -> [Double] {
        x.indices.map { index in
            var (above, below) = (x, x)
            above[index] += step
            below[index] -= step
            return (function(above) - function(below)) / (2 * step)
        }
    }
}

/// AdamW on one element in `Double`, as `torch.optim.AdamW` computes it.
public struct ReferenceAdamW {
    public var first = 0.0
    public var second = 0.0
    public var step = 0

    public init() {}

    /// The parameter after a step.
    public mutating func update(
        _ parameter: Double, gradient: Double, learningRate: Double, beta1: Double = 0.9, beta2: Double = 0.999,
        epsilon: Double = 1e-8, weightDecay: Double = 0
    ) -> Double {
        step += 1
        first += (gradient - first) * (1 - beta1)
        second = beta2 * second + (1 - beta2) * gradient * gradient
        let (c1, c2) = (1 - power(beta1, step), 1 - power(beta2, step))
        let denominator = second.squareRoot() / c2.squareRoot() + epsilon
        return parameter * (1 - learningRate * weightDecay) - learningRate / c1 * first / denominator
    }

    private func power(_ base: Double, _ exponent: Int) -> Double { (0..<exponent).reduce(1) { product, _ in product * base } }
}

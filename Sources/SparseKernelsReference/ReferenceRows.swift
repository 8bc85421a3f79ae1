public import SparseKernels

/// Row operators in `Double`, one row at a time.
public enum ReferenceRows {
    /// x / √(mean x² + ε) · weight.
    public static func rmsNorm(_ x: [Double], weight: [Double]?, epsilon: Double) -> [Double] {
        let mean = x.reduce(0) { $0 + $1 * $1 } / Double(x.count)
        return x.enumerated().map { $1 / (mean + epsilon).squareRoot() * (weight?[$0] ?? 1) }
    }

    /// (x − μ) / √(mean (x − μ)² + ε) · weight + bias.
    public static func layerNorm(_ x: [Double], weight: [Double]?, bias: [Double]?, epsilon: Double) -> [Double] {
        let mean = x.reduce(0, +) / Double(x.count)
        let centred = rmsNorm(x.map { $0 - mean }, weight: weight, epsilon: epsilon)
        return centred.enumerated().map { $1 + (bias?[$0] ?? 0) }
    }

    /// The largest relative error of a sum of n squares that row operators may make: see ``RMSNorm``, at four lanes.
    public static func sumError(_ count: Int) -> Double { Double(21 + (count + 255) / 256) * 0x1p-24 }

    /// The channels of one head, rotated by a position.
    /// - Parameters:
    ///   - frequencies: radians per position of each pair.
    ///   - factor: multiplies cosines and sines.
    public static func rotated(
        _ x: [Double], position: Int, frequencies: [Double], pairing: RotaryEmbedding.Pairing, factor: Double = 1
    ) -> [Double] {
        var y = x
        for (pair, frequency) in frequencies.enumerated() {
            let angle = Double(position) * frequency
            let (c, s) = (cosine(angle) * factor, sine(angle) * factor)
            let (a, b) = pairing == .halfSplit ? (pair, pair + frequencies.count) : (2 * pair, 2 * pair + 1)
            (y[a], y[b]) = (x[a] * c - x[b] * s, x[b] * c + x[a] * s)
        }
        return y
    }

    /// f(x) of a gated activation.
    public static func activation(_ function: GatedActivation.Function, _ x: Double) -> Double {
        switch function {
        case .silu: x / (1 + exponential(-x))
        case .gelu: 0.5 * x * complementaryError(-x / 2.0.squareRoot())
        case .geluTanh: 0.5 * x * (1 + hyperbolicTangent(0.7978845608028654 * (x + 0.044715 * x * x * x)))
        case .relu: max(x, 0)
        case .reluSquared: max(x, 0) * max(x, 0)
        }
    }

    /// What the activation may be off by, before the product and the rounding to the type of the output.
    public static func activationError(_ function: GatedActivation.Function, _ x: Double) -> Double {
        let value = abs(activation(function, x))
        return switch function {
        case .silu: value * (6e-7 + 1e-7 * abs(x)) + 1e-36
        case .gelu: value * (8e-7 + 2e-7 * x * x / 2) + 1e-36
        case .geluTanh: 4e-7 * abs(x) + value * 0x1p-22 + 1e-36
        case .relu, .reluSquared: value * 0x1p-24 + 0x1p-149
        }
    }

    /// The k largest entries and ln Σ eˣ of a row: all entries sorted, NaN first, equal ones by index.
    public static func statistics(_ row: [Double], topK: Int) -> (indices: [Int], logSumExp: Double) {
        let order = row.indices.sorted { a, b in
            if row[a].isNaN || row[b].isNaN { return row[a].isNaN && row[b].isNaN ? a < b : row[a].isNaN }
            return row[a] == row[b] ? a < b : row[a] > row[b]
        }
        let top = Array(order.prefix(topK))
        let maximum = row[order[0]]
        if maximum.isNaN || maximum.isInfinite { return (top, maximum) }
        return (top, maximum + logarithm(row.reduce(0) { $0 + exponential($1 - maximum) }))
    }
}

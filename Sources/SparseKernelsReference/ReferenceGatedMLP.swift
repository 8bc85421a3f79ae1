public import SparseKernels

/// A gated MLP whose small activations are dropped, in `Double`, one token at a time:
///
///     a = f(x · W_gateᵀ)      h = |a| ≤ t ? 0 : a ⊙ (x · W_upᵀ)      y = h · W_downᵀ
public struct ReferenceGatedMLP {
    public let function: GatedActivation.Function
    private let gate: [[Double]]
    private let up: [[Double]]
    private let down: [[Double]]

    /// - Parameters:
    ///   - gate: `[innerWidth, width]`.
    ///   - up: `[innerWidth, width]`.
    ///   - down: `[width, innerWidth]`.
    ///   - function: f.
    public init<W: AttentionElement>(gate: Tensor<W>, up: Tensor<W>, down: Tensor<W>, function: GatedActivation.Function) {
        func rows(_ matrix: Tensor<W>) -> [[Double]] {
            let columns = matrix.shape[1]
            return (0..<matrix.shape[0]).map { row in
                (0..<columns).map { Double(matrix[flat: row * columns + $0].floatValue) }
            }
        }
        (self.gate, self.up, self.down) = (rows(gate), rows(up), rows(down))
        self.function = function
    }

    /// The result for a token, and what a calculation in `Float` may be off by.
    public struct Row {
        public var output: [Double]
        public var errorBound: [Double]
        /// a, before entries are dropped.
        public var activations: [Double]
    }

    /// - Parameter threshold: t; nil drops nothing.
    ///
    /// The bound follows errors through the steps: λ·√K·u·Σ|x·w| of a product; that of f, and its slope, at most 1.2 (ReLU² excepted),
    /// times the error of its argument; first-order terms of a · u. An entry as near to the threshold as its own error may be
    /// dropped or not, so that its whole contribution is a possible error.
    public func row(_ x: [Double], threshold: Double?) -> Row {
        var (hidden, errors, activations) = ([Double](), [Double](), [Double]())
        for (gate, up) in zip(gate, up) {
            let (g, u) = (Self.product(x, gate), Self.product(x, up))
            let a = ReferenceRows.activation(function, g.value)
            let slope = function == .reluSquared ? 2 * abs(g.value) + g.error : 1.2
            let activationError = ReferenceRows.activationError(function, g.value) + slope * g.error
            activations.append(a)
            let product = a * u.value
            var error =
                abs(u.value) * activationError + abs(a) * u.error + activationError * u.error
                + AttentionErrorBound.unitRoundoff * abs(product)
            let isDropped = threshold.map { abs(a) <= $0 } ?? false
            if let threshold {
                if abs(abs(a) - threshold) <= activationError {
                    error += abs(product)
                } else if isDropped {
                    error = 0
                }
            }
            hidden.append(isDropped ? 0 : product)
            errors.append(error)
        }
        var (output, bounds) = ([Double](), [Double]())
        for weights in down {
            let y = Self.product(hidden, weights)
            output.append(y.value)
            bounds.append(y.error + zip(weights, errors).reduce(0) { $0 + abs($1.0) * $1.1 } * 1.01)
        }
        return Row(output: output, errorBound: bounds, activations: activations)
    }

    private static func product(_ x: [Double], _ weights: [Double]) -> (value: Double, error: Double) {
        var (value, magnitude) = (0.0, 0.0)
        for (a, b) in zip(x, weights) {
            value += a * b
            magnitude += abs(a * b)
        }
        return (value, ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: x.count) + 1e-40)
    }
}

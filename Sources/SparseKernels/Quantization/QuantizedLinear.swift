internal import Foundation
internal import KernelInterface

/// A linear layer with quantised weights: y = epilogue(x̂ · Wᵀ + (x · downᵀ) · upᵀ + bias), where x̂ is x / smooth, quantised.
public struct QuantizedLinear: Sendable {
    public let weight: PackedWeight
    public let activation: ActivationFormat
    /// `[inFeatures]`, what x is divided by; nil: nothing.
    public let smooth: Tensor<Float>?
    public let lowRank: LowRankBranch?
    /// `[outFeatures]`.
    public let bias: Tensor<Float>?
    public let epilogue: Epilogue

    public init(
        _ weight: PackedWeight, activation: ActivationFormat, smooth: Tensor<Float>? = nil, lowRank: LowRankBranch? = nil,
        bias: Tensor<Float>? = nil, epilogue: Epilogue = .none
    ) throws(SparseKernelsError) {
        self.weight = weight
        self.activation = activation
        self.smooth = smooth
        self.lowRank = lowRank
        self.bias = bias
        self.epilogue = epilogue
    }

    public var outFeatures: Int { weight.outFeatures }
    public var inFeatures: Int { weight.inFeatures }

    /// Computes y for the rows of x.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inFeatures]`.
    ///   - y: `[tokens, outFeatures]`, overwritten.
    ///   - pool: the threads to use. The call blocks until they are done.
    /// - Throws: `.invalidShape` naming the operand that disagrees with the layer; nothing is written then.
    public func run<X: AttentionElement, Y: AttentionElement>(
        x: MatrixView<X>, y: consuming MutableMatrixView<Y>, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        try require(
            x.columns == inFeatures, .invalidShape, "x", expected: "\(inFeatures) columns", actual: "\(x.columns)")
        try require(
            y.rows == x.rows && y.columns == outFeatures, .invalidShape, "y", expected: "\(x.rows) × \(outFeatures)",
            actual: "\(y.rows) × \(y.columns)")
        let (logical, k) = (weight.weight, inFeatures)
        let group = logical.format.groupSize ?? k
        let values = (0..<outFeatures * k).map { logical.value(row: $0 / k, column: $0 % k) }
        for m in 0..<x.rows {
            var v = (0..<k).map { X(x[m, $0].floatValue / (smooth?[flat: $0] ?? 1)).floatValue }
            switch activation {
            case .float, .fp4: break
            case .int8PerToken:
                let scale = X(v.reduce(0) { max($0, abs($1)) } / 127).floatValue
                v = v.map { scale == 0 ? 0 : ($0 / scale).rounded(.toNearestOrEven) * scale }
            case .int4, .uint4, .int8PerGroup:
                let limit: Float = activation == .int8PerGroup ? 127 : activation == .int4 ? 7 : 15
                if case .uint4(let shift) = activation { v = v.map { X($0 + shift).floatValue } }
                for start in stride(from: 0, to: k, by: group) {
                    let range = start..<min(k, start + group)
                    let scale = range.reduce(0) { max($0, abs(v[$1])) } * (1 / limit)
                    for i in range {
                        v[i] = scale == 0 ? 0 : (v[i] * (1 / scale)).rounded(.toNearestOrEven) * X(scale).floatValue
                    }
                }
            }
            let t = lowRank.map { branch in
                (0..<branch.rank).map { r in
                    (0..<k).reduce(Float(0)) { $0 + x[m, $1].floatValue * branch.down[flat: r * k + $1] }
                }
            }
            for n in 0..<outFeatures {
                var sum = bias?[flat: n] ?? 0
                for i in 0..<k { sum += v[i] * values[n * k + i] }
                if let t, let branch = lowRank {
                    for r in 0..<branch.rank { sum += t[r] * branch.up[flat: n * branch.rank + r] }
                }
                switch epilogue {
                case .none: break
                case .gelu: sum = 0.5 * sum * (1 + Float(tanh(Double(0.7978845608 * (sum + 0.044715 * sum * sum * sum)))))
                case .silu: sum = sum / (1 + Float(exp(Double(-sum))))
                }
                y.span[m * y.rowStride + n] = Y(sum)
            }
        }
    }

    /// y for the rows of x, in a new tensor.
    /// - Throws: as `run`.
    public func callAsFunction<X: AttentionElement>(_ x: Tensor<X>, on pool: WorkerPool = .shared)
        throws(SparseKernelsError) -> Tensor<Float>
    {
        let view = try x.matrixView(named: "x")
        var y = try Tensor<Float>(zeros: [view.rows, outFeatures])
        try run(x: x.matrixView(named: "x"), y: y.mutableMatrixView(named: "y"), on: pool)
        return y
    }
}

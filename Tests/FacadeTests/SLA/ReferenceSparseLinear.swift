import Foundation
import SLA
import SparseKernelsReference

/// The linear branch of SLA in `Double`, one query at a time, from its definition.
struct ReferenceSparseLinear {
    let shape: AttentionShape
    let map: LinearFeatureMap
    let epsilon: Double
    /// Whether a head's query sees a key linearly.
    let sees: (_ head: Int, _ query: Int, _ key: Int) -> Bool
    let query: Tensor<Float>
    let value: Tensor<Float>
    /// φ(k) of every key and head, and the relative error of each.
    private var keys: [[(features: [Double], error: Double)]] = []

    init(
        shape: AttentionShape, map: LinearFeatureMap, epsilon: Double,
        sees: @escaping (_ head: Int, _ query: Int, _ key: Int) -> Bool, query: Tensor<Float>, key: Tensor<Float>,
        value: Tensor<Float>
    ) {
        (self.shape, self.map, self.epsilon, self.sees) = (shape, map, epsilon, sees)
        (self.query, self.value) = (query, value)
        keys = (0..<shape.kvHeads).map { head in
            (0..<shape.keyLength).map { token in
                let row = Self.row(key, head, token)
                return (features(row), featureError(row))
            }
        }
    }

    struct Row {
        /// o_l, `valueDim` channels.
        var output: [Double]
        /// The distance that single precision may have from it, in any channel.
        var bound: Double
    }

    func features(_ row: [Double]) -> [Double] {
        switch map {
        case .relu: return row.map { max($0, 0) }
        case .elu: return row.map { $0 > 0 ? $0 + 1 : exp($0) }
        case .softmax:
            let maximum = row.max() ?? 0
            let exponentials = row.map { exp($0 - maximum) }
            let sum = exponentials.reduce(0, +)
            return exponentials.map { $0 / sum }
        }
    }

    /// The relative error of features: e^x within 2e-7 + 1e-7·|x|, and the sum over the channels of softmax.
    func featureError(_ row: [Double]) -> Double {
        let (u, n) = (AttentionErrorBound.unitRoundoff, Double(row.count).squareRoot() + 2)
        let least = row.min() ?? 0
        switch map {
        case .relu: return 0
        case .elu: return 2e-7 + 1e-7 * abs(min(0, least)) + 2 * u
        case .softmax:
            return 2 * (2e-7 + 1e-7 * ((row.max() ?? 0) - least)) + AttentionErrorBound.confidence * n * u
        }
    }

    private static func row(_ tensor: Tensor<Float>, _ head: Int, _ token: Int) -> [Double] {
        (0..<tensor.shape[2]).map { Double(tensor[head, token, $0]) }
    }

    /// One row. All terms of numerator and denominator are weights w ≥ 0 times values, so relative errors η of the weights and
    /// the sums move the quotient by at most 2η·Σ w|v| / Σ w.
    func row(head: Int, token: Int) -> Row {
        let kvHead = head / shape.queryHeadsPerKVHead
        let q = Self.row(query, head, token)
        let features = features(q)
        var (numerator, absolute) = (
            [Double](repeating: 0, count: shape.valueDim), [Double](repeating: 0, count: shape.valueDim)
        )
        var (denominator, keyError) = (0.0, 0.0)
        for j in 0..<shape.keyLength where sees(head, token, j) {
            let key = keys[kvHead][j]
            var weight = 0.0
            for channel in 0..<shape.headDim { weight += features[channel] * key.features[channel] }
            keyError = max(keyError, key.error)
            denominator += weight
            for channel in 0..<shape.valueDim {
                let v = Double(value[kvHead, j, channel])
                numerator[channel] += weight * v
                absolute[channel] += weight * abs(v)
            }
        }
        let total = denominator + epsilon
        if total == 0 { return Row(output: numerator, bound: 0) }
        let sums = Double(shape.keyLength).squareRoot() + Double(shape.headDim).squareRoot() + 6
        let error = featureError(q) + keyError + AttentionErrorBound.confidence * sums * AttentionErrorBound.unitRoundoff
        return Row(output: numerator.map { $0 / total }, bound: 2 * error * (absolute.max() ?? 0) / total)
    }
}

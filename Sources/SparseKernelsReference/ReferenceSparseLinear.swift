public import SparseKernels

/// A linear layer of which some channels take part, in `Double`, channel by channel.
public enum ReferenceSparseLinear {
    /// Values of a matrix, row by row, and Σ|a·b| of each, to which the rounding error of a single-precision sum is proportional.
    public struct Sums {
        public var values: [Double]
        public var magnitudes: [Double]
        /// The number of products in each sum, and one for what it starts from.
        public var terms: Int

        /// The largest error of `actual`, as a share of the bound of a `Float` sum in any order: λ·√K·u·Σ|a·b|, with K of at least 4
        /// for the roundings of the start and of the sum. NaN counts as infinite.
        public func worst(_ actual: [Float]) -> Double {
            if actual.count != values.count { return .infinity }
            var worst = 0.0
            for index in values.indices {
                let bound = ReferenceMatrixProduct.errorBound(magnitude: magnitudes[index], depth: max(4, terms))
                let error = abs(Double(actual[index]) - values[index])
                if error > bound || error.isNaN { worst = max(worst, error.isNaN ? .infinity : error / bound) }
                if error > 0 && error <= bound { worst = max(worst, error / bound) }
            }
            return worst
        }
    }

    /// start + x · Wᵀ + bias, where only `channels` of the side take part. x and the result are compact on that side.
    ///
    /// - Parameters:
    ///   - x: `[rows, inFeatures or picked]`, row by row.
    ///   - start: what the result is added to, `[rows, picked or outFeatures]`; nil for zeros.
    public static func output<W: AttentionElement>(
        x: [Float], rows: Int, weight: Tensor<W>, side: SparseLinear.Side, channels: [Int], bias: Tensor<Float>? = nil,
        start: [Float]? = nil
    ) -> Sums {
        let all = weight.shape[1]
        let outputs = side == .outputs ? channels : Array(0..<weight.shape[0])
        let inputs = side == .outputs ? Array(0..<all) : channels
        return sums(rows: rows, columns: outputs.count, depth: inputs.count, start: start) { row, column, k in
            (x[row * inputs.count + k], weight[flat: outputs[column] * all + inputs[k]].floatValue)
        } bias: { column in
            bias.map { $0[flat: outputs[column]] }
        }
    }

    /// start + dy · W, where only `channels` of the side take part. dy and the result are compact on that side.
    public static func inputGradient<W: AttentionElement>(
        dy: [Float], rows: Int, weight: Tensor<W>, side: SparseLinear.Side, channels: [Int], start: [Float]? = nil
    ) -> Sums {
        let all = weight.shape[1]
        let outputs = side == .outputs ? channels : Array(0..<weight.shape[0])
        let inputs = side == .outputs ? Array(0..<all) : channels
        return sums(rows: rows, columns: inputs.count, depth: outputs.count, start: start) { row, column, k in
            (dy[row * outputs.count + k], weight[flat: outputs[k] * all + inputs[column]].floatValue)
        } bias: { _ in
            nil
        }
    }

    private static func sums(
        rows: Int, columns: Int, depth: Int, start: [Float]?, _ factors: (Int, Int, Int) -> (Float, Float),
        bias: (Int) -> Float?
    ) -> Sums {
        var result = Sums(values: [], magnitudes: [], terms: depth + 1)
        for row in 0..<rows {
            for column in 0..<columns {
                var value = Double(start?[row * columns + column] ?? 0) + Double(bias(column) ?? 0)
                var magnitude = abs(Double(start?[row * columns + column] ?? 0)) + abs(Double(bias(column) ?? 0))
                for k in 0..<depth {
                    let (a, b) = factors(row, column, k)
                    value += Double(a) * Double(b)
                    magnitude += abs(Double(a) * Double(b))
                }
                result.values.append(value)
                result.magnitudes.append(magnitude)
            }
        }
        return result
    }
}

public import SparseKernels

/// A layer of a vision transformer in `Double`, and beside every number what the layer in `Float` may be off by.
///
///     x ← x + C·attention(LayerNorm x) + c        x ← x + D·f(U·LayerNorm x + u) + d
///
/// Rounding errors of a step are those of `BoundedMatrix`. Errors that a step takes over have random signs and are independent of each
/// other, so that their squares add up: a sum of the magnitudes would grow with the square root of every depth, 10⁵ times in a layer.
public struct ReferenceVisionLayer: Sendable {
    public let configuration: VisionLayerConfiguration
    public let weights: VisionLayerWeights

    public init(_ configuration: VisionLayerConfiguration, _ weights: VisionLayerWeights) {
        self.configuration = configuration
        self.weights = weights
    }

    /// Keys and values of one picture, a matrix `[tokens, headDim]` per head.
    public struct Keys: Sendable {
        public var keys: [BoundedMatrix]
        public var values: [BoundedMatrix]
    }

    /// The layer for the tokens of one picture, and their own keys and values.
    public func callAsFunction(
        _ x: BoundedMatrix, after prefix: Keys? = nil
    ) -> (output: BoundedMatrix, keys: Keys) {
        let (update, keys) = attention(
            normalized(x, weights.attentionNorm, epsilon: configuration.epsilon), after: prefix)
        let stream = x.plus(update)
        let inner = activated(affine(normalized(stream, weights.mlpNorm, epsilon: configuration.epsilon), weights.up))
        return (stream.plus(affine(inner, weights.down)), keys)
    }

    /// The attention of normalised rows, with the projection of its output.
    public func attention(_ x: BoundedMatrix, after prefix: Keys? = nil) -> (output: BoundedMatrix, keys: Keys) {
        let c = configuration
        let projected = affine(x, weights.queryKeyValue)
        var own = Keys(keys: [], values: [])
        var heads: [BoundedMatrix] = []
        for head in 0..<c.heads {
            func part(_ index: Int) -> BoundedMatrix {
                projected.columns((index * c.heads + head) * c.headDim..<(index * c.heads + head + 1) * c.headDim)
            }
            let query = weights.queryNorm.map { normalized(part(0), $0, epsilon: c.headEpsilon) } ?? part(0)
            let key = weights.keyNorm.map { normalized(part(1), $0, epsilon: c.headEpsilon) } ?? part(1)
            let value = part(2)
            own.keys.append(key)
            own.values.append(value)
            let allKeys = prefix.map { $0.keys[head].appendingRows(of: key) } ?? key
            let allValues = prefix.map { $0.values[head].appendingRows(of: value) } ?? value
            let scores = query.independentProduct(allKeys, isTransposed: true).times(1 / Double(c.headDim).squareRoot())
            heads.append(scores.softmaxOfRows().independentProduct(allValues, isTransposed: false))
        }
        return (affine(BoundedMatrix(joiningColumns: heads), weights.projection), own)
    }

    /// x·Wᵀ + b.
    public func affine(_ x: BoundedMatrix, _ weights: VisionLayerWeights.Affine) -> BoundedMatrix {
        var matrix = BoundedMatrix(weights.weight)
        if configuration.activation == .quickGELU {
            // The factor of the function is in both weights of the MLP, and its rounding, too.
            for index in matrix.values.indices { matrix.errors[index] = abs(matrix.values[index]) * 0x1p-23 }
        }
        let product = x.independentProduct(matrix, isTransposed: true)
        guard let bias = weights.bias else { return product }
        return product.adding(row: bias.elements.map(Double.init))
    }

    /// LayerNorm of all rows.
    public func normalized(
        _ x: BoundedMatrix, _ weights: VisionLayerWeights.Affine, epsilon: Float
    ) -> BoundedMatrix {
        x.layerNormalized(
            weight: weights.weight.elements.map(Double.init), bias: weights.bias?.elements.map(Double.init),
            epsilon: Double(epsilon))
    }

    private func activated(_ x: BoundedMatrix) -> BoundedMatrix {
        let slope = 1.702
        // Slopes of all three are below 1.2.
        return x.mapped(slope: 1.2) { z in
            switch configuration.activation {
            case .gelu: (ReferenceRows.activation(.gelu, z), ReferenceRows.activationError(.gelu, z))
            case .geluTanh: (ReferenceRows.activation(.geluTanh, z), ReferenceRows.activationError(.geluTanh, z))
            case .quickGELU:
                (ReferenceRows.activation(.silu, slope * z) / slope, ReferenceRows.activationError(.silu, slope * z) / slope)
            }
        }
    }
}

extension BoundedMatrix {
    /// Some columns.
    public func columns(_ range: Range<Int>) -> BoundedMatrix {
        rebuilt(rows: rows, columns: range.count) { row, column in row * columns + range.lowerBound + column }
    }

    /// The rows of another matrix below these.
    public func appendingRows(of other: BoundedMatrix) -> BoundedMatrix {
        precondition(columns == other.columns, "\(columns) and \(other.columns) columns")
        var result = BoundedMatrix(rows: rows + other.rows, columns: columns, values: values + other.values)
        result.errors = errors + other.errors
        return result
    }

    /// Matrices of as many rows side by side.
    public init(joiningColumns parts: [BoundedMatrix]) {
        let (rows, columns) = (parts[0].rows, parts.reduce(0) { $0 + $1.columns })
        self.init(rows: rows, columns: columns, values: Array(repeating: 0, count: rows * columns))
        var first = 0
        for part in parts {
            for row in 0..<rows {
                for column in 0..<part.columns {
                    values[row * columns + first + column] = part.values[row * part.columns + column]
                    errors[row * columns + first + column] = part.errors[row * part.columns + column]
                }
            }
            first += part.columns
        }
    }

    /// A·B or A·Bᵀ, where errors of the operands are independent: their squares add up.
    public func independentProduct(_ other: BoundedMatrix, isTransposed: Bool) -> BoundedMatrix {
        var result = isTransposed ? timesTransposed(other.withoutErrors) : times(other.withoutErrors)
        for row in 0..<rows {
            for column in 0..<result.columns {
                var (squares, magnitude) = (0.0, 0.0)
                for k in 0..<columns {
                    let i = row * columns + k
                    let j = isTransposed ? column * columns + k : k * other.columns + column
                    let byOther = values[i] * other.errors[j]
                    let byThis = errors[i] * other.values[j]
                    squares += byOther * byOther + byThis * byThis
                    magnitude += abs(values[i] * other.values[j])
                }
                // Errors of the operands enter a second time as products with each other, which are far smaller.
                result.errors[row * result.columns + column] =
                    1.01 * squares.squareRoot()
                    + ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: Swift.max(1, columns))
            }
        }
        return result
    }

    private var withoutErrors: BoundedMatrix { BoundedMatrix(rows: rows, columns: columns, values: values) }

    private func rebuilt(rows: Int, columns: Int, _ source: (Int, Int) -> Int) -> BoundedMatrix {
        var result = BoundedMatrix(rows: rows, columns: columns, values: Array(repeating: 0, count: rows * columns))
        for row in 0..<rows {
            for column in 0..<columns {
                result.values[row * columns + column] = values[source(row, column)]
                result.errors[row * columns + column] = errors[source(row, column)]
            }
        }
        return result
    }

    /// LayerNorm of every row.
    ///
    /// With x̂ the normalised row and σ its deviation, errors e of the row move y by w/σ·(e − mean e − x̂·mean(x̂·e)), whose squares add up;
    /// the operator's own errors are those of its two sums and of a few roundings.
    public func layerNormalized(weight: [Double], bias: [Double]?, epsilon: Double) -> BoundedMatrix {
        var result = self
        let sums = ReferenceRows.sumError(columns)
        let u = AttentionErrorBound.unitRoundoff
        for row in 0..<rows {
            let range = row * columns..<(row + 1) * columns
            let (x, e) = (Array(values[range]), Array(errors[range]))
            let mean = x.reduce(0, +) / Double(columns)
            let variance = x.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(columns)
            let deviation = (variance + epsilon).squareRoot()
            let largest = x.reduce(0) { Swift.max($0, abs($1)) }
            let meanError = e.reduce(0) { $0 + $1 * $1 } / Double(columns * columns)
            let scaledError =
                x.indices.reduce(0) { sum, k in
                    let part = (x[k] - mean) / deviation * e[k]
                    return sum + part * part
                } / Double(columns * columns)
            // What the operator adds to a deviation from the mean, in units of σ.
            let own = (2 * sums * (variance.squareRoot() + u * largest) + 2 * u * largest) / deviation
            for k in 0..<columns {
                let scaled = (x[k] - mean) / deviation
                let y = scaled * weight[k]
                result.values[range.lowerBound + k] = y + (bias?[k] ?? 0)
                let propagated = (e[k] * e[k] + meanError + scaled * scaled * scaledError).squareRoot() / deviation
                result.errors[range.lowerBound + k] =
                    abs(weight[k]) * (1.01 * propagated + own) + abs(y) * (sums / 2 + 16 * u)
                    + 2 * u * abs(result.values[range.lowerBound + k])
            }
        }
        return result
    }

    /// Probabilities of every row of scores: an error of a score moves the logarithm of a probability by itself, and by its share of the mean.
    public func softmaxOfRows() -> BoundedMatrix {
        var result = self
        for row in 0..<rows {
            let range = row * columns..<(row + 1) * columns
            let largest = values[range].reduce(-.infinity) { Swift.max($0, $1) }
            let weights = values[range].map { exponential($0 - largest) }
            let total = weights.reduce(0, +)
            let meanError = zip(weights, errors[range]).reduce(0) { sum, pair in
                let part = pair.0 / total * pair.1
                return sum + part * part
            }
            let meanDistance = zip(weights, values[range]).reduce(0) { $0 + $1.0 * (largest - $1.1) } / total
            for k in 0..<columns {
                let p = weights[k] / total
                let index = range.lowerBound + k
                // The kernel's exponential is within 2e-7·(1 + |x|/2), and the sum and the division round.
                let exponentials = 2e-7 * (2 + (largest - values[index] + meanDistance) / 2)
                let scores = (errors[index] * errors[index] + meanError).squareRoot()
                result.errors[index] = p * (1.01 * scores + exponentials + 2e-7)
                result.values[index] = p
            }
        }
        return result
    }
}

extension VisionLayerWeights {
    /// Weights with independent normal values: matrices of deviation 1/√inFeatures, norms about 1, small biases.
    /// - Parameter hasHeadNorms: whether queries and keys of every head are normalised.
    public static func normal(
        _ c: VisionLayerConfiguration, seed: UInt64, hasHeadNorms: Bool = false
    ) throws(SparseKernelsError) -> VisionLayerWeights {
        func matrix(_ rows: Int, _ columns: Int, _ part: UInt64) throws(SparseKernelsError) -> Affine {
            try Affine(
                weight: .normal([rows, columns], seed: seed &* 64 &+ part, scale: 1 / Float(columns).squareRoot()),
                bias: .normal([rows], seed: seed &* 64 &+ part &+ 1, scale: 0.1))
        }
        func norm(_ channels: Int, _ part: UInt64) throws(SparseKernelsError) -> Affine {
            var factors = try Tensor<Float>.normal([channels], seed: seed &* 64 &+ part, scale: 0.1)
            factors.update { _, element in element += 1 }
            return try Affine(weight: factors, bias: .normal([channels], seed: seed &* 64 &+ part &+ 1, scale: 0.1))
        }
        return VisionLayerWeights(
            attentionNorm: try norm(c.width, 2), queryKeyValue: try matrix(3 * c.innerWidth, c.width, 4),
            queryNorm: hasHeadNorms ? try norm(c.headDim, 6) : nil, keyNorm: hasHeadNorms ? try norm(c.headDim, 8) : nil,
            projection: try matrix(c.width, c.innerWidth, 10), mlpNorm: try norm(c.width, 12),
            up: try matrix(c.hidden, c.width, 14), down: try matrix(c.width, c.hidden, 16))
    }
}

public import SparseKernels

/// The products of an adapter in `Double`: y = scale · (x · aᵀ) · bᵀ and its gradients. Each element comes with the sum of the
/// magnitudes of its terms, to which errors are relative.
public struct ReferenceLoRA {
    public let x: ReferenceMatrix
    public let a: ReferenceMatrix
    public let b: ReferenceMatrix
    public let scale: Double

    public init(x: Tensor<Float>, a: Tensor<Float>, b: Tensor<Float>, scale: Float) {
        self.x = ReferenceMatrix(x)
        self.a = ReferenceMatrix(a)
        self.b = ReferenceMatrix(b)
        self.scale = Double(scale)
    }

    /// x · aᵀ.
    public var projected: ReferenceMatrix { x.times(a.transposed) }

    public var output: ReferenceMatrix { projected.times(b.transposed).scaled(by: scale) }

    /// dt = scale · dy · b.
    public func projectedGradient(_ dy: ReferenceMatrix) -> ReferenceMatrix { dy.times(b).scaled(by: scale) }

    public func aGradient(_ dy: ReferenceMatrix) -> ReferenceMatrix { projectedGradient(dy).transposed.times(x) }

    public func bGradient(_ dy: ReferenceMatrix) -> ReferenceMatrix { dy.transposed.times(projected).scaled(by: scale) }

    public func inputGradient(_ dy: ReferenceMatrix) -> ReferenceMatrix { projectedGradient(dy).times(a) }
}

/// A matrix of `Double`, row-major, with the magnitudes of the sums that made it.
public struct ReferenceMatrix {
    public let rows: Int
    public let columns: Int
    public var elements: [Double]
    public var magnitudes: [Double]

    public init(_ tensor: Tensor<Float>) {
        self.init(rows: tensor.shape[0], columns: tensor.shape[1], tensor.elements.map(Double.init))
    }

    public init(rows: Int, columns: Int, _ elements: [Double], magnitudes: [Double]? = nil) {
        (self.rows, self.columns, self.elements) = (rows, columns, elements)
        self.magnitudes = magnitudes ?? elements.map(abs)
    }

    public subscript(row: Int, column: Int) -> Double { elements[row * columns + column] }

    public var transposed: ReferenceMatrix {
        func move(_ values: [Double]) -> [Double] {
            (0..<rows * columns).map { values[$0 % rows * columns + $0 / rows] }
        }
        return ReferenceMatrix(rows: columns, columns: rows, move(elements), magnitudes: move(magnitudes))
    }

    public func scaled(by factor: Double) -> ReferenceMatrix {
        ReferenceMatrix(
            rows: rows, columns: columns, elements.map { $0 * factor }, magnitudes: magnitudes.map { $0 * abs(factor) })
    }

    public func times(_ other: ReferenceMatrix) -> ReferenceMatrix {
        var (sums, sizes) = ([Double](), [Double]())
        for row in 0..<rows {
            for column in 0..<other.columns {
                var (sum, size) = (0.0, 0.0)
                for k in 0..<columns {
                    sum += elements[row * columns + k] * other.elements[k * other.columns + column]
                    size += magnitudes[row * columns + k] * other.magnitudes[k * other.columns + column]
                }
                sums.append(sum)
                sizes.append(size)
            }
        }
        return ReferenceMatrix(rows: rows, columns: other.columns, sums, magnitudes: sizes)
    }
}

import SparseKernels
import SparseKernelsReference
import Testing

// Matrices with known singular values, and arithmetic in Double on small matrices.

/// A matrix of doubles, row by row.
struct DoubleMatrix {
    let rows: Int
    let columns: Int
    var elements: [Double]

    init(rows: Int, columns: Int, _ elements: [Double]) {
        self.rows = rows
        self.columns = columns
        self.elements = elements
    }

    init(_ tensor: Tensor<Float>) {
        self.init(rows: tensor.shape[0], columns: tensor.shape[1], tensor.elements.map { Double($0) })
    }

    var transposed: DoubleMatrix {
        DoubleMatrix(rows: columns, columns: rows, (0..<rows * columns).map { elements[$0 % rows * columns + $0 / rows] })
    }

    var norm: Double { elements.reduce(0) { $0 + $1 * $1 }.squareRoot() }

    /// The largest deviation from the identity.
    var distanceFromIdentity: Double {
        elements.indices.reduce(0) { max($0, abs(elements[$1] - ($1 / columns == $1 % columns ? 1 : 0))) }
    }

    var tensor: Tensor<Float> {
        get throws { try Tensor([rows, columns], elements.map { Float($0) }) }
    }

    static func * (a: DoubleMatrix, b: DoubleMatrix) -> DoubleMatrix {
        var product = DoubleMatrix(rows: a.rows, columns: b.columns, Array(repeating: 0, count: a.rows * b.columns))
        product.elements.withUnsafeMutableBufferPointer { product in
            a.elements.withUnsafeBufferPointer { left in
                b.elements.withUnsafeBufferPointer { right in
                    for i in 0..<a.rows {
                        for k in 0..<a.columns {
                            let factor = left[i * a.columns + k]
                            for j in 0..<b.columns { product[i * b.columns + j] += factor * right[k * b.columns + j] }
                        }
                    }
                }
            }
        }
        return product
    }

    static func - (a: DoubleMatrix, b: DoubleMatrix) -> DoubleMatrix {
        DoubleMatrix(rows: a.rows, columns: a.columns, zip(a.elements, b.elements).map { $0.0 - $0.1 })
    }

    /// U · diag(values) · Vᵀ with singular vectors from rotations and singular values `values`, up to `Float` rounding.
    static func withSingularValues(_ values: [Double], rows: Int, columns: Int, seed: UInt64) throws -> DoubleMatrix {
        func orthonormal(_ count: Int, _ seed: UInt64) throws -> DoubleMatrix {
            let signs = try HadamardRotation(count: count, seed: seed)
            let identity = try Tensor<Float>([count, count]) { $0 % (count + 1) == 0 ? 1 : 0 }
            // Rotated twice, so that the entries differ in size.
            return try DoubleMatrix(HadamardRotation(count: count, seed: seed + 9)(signs(identity)))
        }
        var scaled = try orthonormal(columns, seed)
        for index in scaled.elements.indices {
            let row = index / columns
            scaled.elements[index] *= row < values.count ? values[row] : 0
        }
        let kept = DoubleMatrix(rows: values.count, columns: columns, Array(scaled.elements.prefix(values.count * columns)))
        let left = try orthonormal(rows, seed + 1).transposed
        let few = DoubleMatrix(
            rows: rows, columns: values.count,
            (0..<rows * values.count).map { left.elements[$0 / values.count * rows + $0 % values.count] })
        return few * kept
    }
}

extension LowRankFactors {
    var product: DoubleMatrix { DoubleMatrix(up) * DoubleMatrix(down) }

    /// The largest deviation of down · downᵀ from the identity.
    var departureFromOrthogonality: Double { (DoubleMatrix(down) * DoubleMatrix(down).transposed).distanceFromIdentity }
}

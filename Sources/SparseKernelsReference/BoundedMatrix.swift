public import SparseKernels

/// A matrix in `Double`, and beside each element what the same computation in `Float` may be off by.
///
/// The rounding error of a sum of K products is λ·√K·u·Σ|a·b| (see `AttentionErrorBound`); errors of operands are propagated to first order
/// and their product is added.
public struct BoundedMatrix: Sendable {
    public let rows: Int
    public let columns: Int
    public var values: [Double]
    public var errors: [Double]

    /// Exact values.
    public init(rows: Int, columns: Int, values: [Double]) {
        precondition(values.count == rows * columns, "\(values.count) values for \(rows) × \(columns)")
        self.rows = rows
        self.columns = columns
        self.values = values
        errors = Array(repeating: 0, count: values.count)
    }

    /// The exact values of a tensor. All axes but the last are rows.
    public init(_ tensor: Tensor<Float>) {
        let columns = tensor.shape.last ?? 1
        self.init(rows: columns == 0 ? 0 : tensor.count / columns, columns: columns, values: tensor.elements.map(Double.init))
    }

    private init(rows: Int, columns: Int, _ element: (Int, Int) -> (Double, Double)) {
        self.rows = rows
        self.columns = columns
        values = []
        errors = []
        values.reserveCapacity(rows * columns)
        errors.reserveCapacity(rows * columns)
        for row in 0..<rows {
            for column in 0..<columns {
                let (value, error) = element(row, column)
                values.append(value)
                errors.append(error)
            }
        }
    }

    // MARK: - Products

    /// A·B.
    public func times(_ other: BoundedMatrix) -> BoundedMatrix {
        precondition(columns == other.rows, "\(rows) × \(columns) times \(other.rows) × \(other.columns)")
        return product(other, columns: other.columns, depthStride: other.columns, columnStride: 1)
    }

    /// A·Bᵀ.
    public func timesTransposed(_ other: BoundedMatrix) -> BoundedMatrix {
        precondition(columns == other.columns, "\(rows) × \(columns) times the transpose of \(other.rows) × \(other.columns)")
        return product(other, columns: other.rows, depthStride: 1, columnStride: other.columns)
    }

    private func product(
        _ other: BoundedMatrix, columns count: Int, depthStride: Int, columnStride: Int
    ) -> BoundedMatrix {
        BoundedMatrix(rows: rows, columns: count) { row, column in
            var (sum, magnitude, error) = (0.0, 0.0, 0.0)
            for k in 0..<columns {
                let (i, j) = (row * columns + k, k * depthStride + column * columnStride)
                let (a, b) = (values[i], other.values[j])
                sum += a * b
                magnitude += abs(a * b)
                error += abs(a) * other.errors[j] + errors[i] * (abs(b) + other.errors[j])
            }
            return (sum, error + ReferenceMatrixProduct.errorBound(magnitude: magnitude, depth: max(1, columns)))
        }
    }

    public var transposed: BoundedMatrix {
        BoundedMatrix(rows: columns, columns: rows) { (values[$1 * columns + $0], errors[$1 * columns + $0]) }
    }

    // MARK: - Elements

    public func times(_ factor: Double) -> BoundedMatrix {
        mapped(slope: abs(factor)) { ($0 * factor, Self.rounding($0 * factor)) }
    }

    public func plus(_ other: BoundedMatrix) -> BoundedMatrix {
        zipped(other) { ($0.value + $1.value, $0.error + $1.error) }
    }

    public func timesElements(_ other: BoundedMatrix) -> BoundedMatrix {
        zipped(other) { a, b in
            (a.value * b.value, abs(a.value) * b.error + a.error * (abs(b.value) + b.error))
        }
    }

    public func adding(row: [Double]) -> BoundedMatrix {
        BoundedMatrix(rows: rows, columns: columns) { i, j in
            let value = values[i * columns + j] + row[j]
            return (value, errors[i * columns + j] + Self.rounding(value))
        }
    }

    /// Function values of all elements, with the error of the function itself. `slope` bounds the derivative.
    public func mapped(slope: Double, _ function: (Double) -> (Double, Double)) -> BoundedMatrix {
        BoundedMatrix(rows: rows, columns: columns) { row, column in
            let (value, error) = function(values[row * columns + column])
            return (value, error + slope * errors[row * columns + column])
        }
    }

    private func zipped(
        _ other: BoundedMatrix,
        _ combine: ((value: Double, error: Double), (value: Double, error: Double)) -> (Double, Double)
    ) -> BoundedMatrix {
        precondition(rows == other.rows && columns == other.columns, "matrices of equal extents")
        return BoundedMatrix(rows: rows, columns: columns) { row, column in
            let i = row * columns + column
            let (value, error) = combine((values[i], errors[i]), (other.values[i], other.errors[i]))
            return (value, error + Self.rounding(value))
        }
    }

    private static func rounding(_ value: Double) -> Double { AttentionErrorBound.unitRoundoff * abs(value) }

    // MARK: - Parts

    /// Zeros where a mask hides a channel from a row.
    func masked(_ mask: ReferenceSparseLoRA.Mask) -> BoundedMatrix {
        BoundedMatrix(rows: rows, columns: columns) { row, column in
            mask.keeps(row, column) ? (values[row * columns + column], errors[row * columns + column]) : (0, 0)
        }
    }

    /// Zeros in rows that are not kept.
    func keeping(rows kept: [Bool]) -> BoundedMatrix {
        BoundedMatrix(rows: rows, columns: columns) { row, column in
            kept[row] ? (values[row * columns + column], errors[row * columns + column]) : (0, 0)
        }
    }

    /// L2 norms of the columns.
    public var columnNorms: [Double] {
        (0..<columns).map { column in
            (0..<rows).reduce(0) { $0 + values[$1 * columns + column] * values[$1 * columns + column] }.squareRoot()
        }
    }
}

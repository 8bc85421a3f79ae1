import SparseKernels
import SparseKernelsReference
import Testing

/// What tests of gradients share.
enum TrainingSupport {
    /// Sizes off every vector and block edge.
    static let sizes = [1, 3, 7, 8, 15, 16, 17, 33, 64, 129]

    static func doubles(_ tensor: Tensor<Float>, row: Int) -> [Double] {
        let columns = tensor.shape.last!
        return (0..<columns).map { Double(tensor[flat: row * columns + $0]) }
    }

    static func expectNear(
        _ actual: [Double], _ expected: [Double], bound: (Int) -> Double, _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(actual.count == expected.count, sourceLocation: sourceLocation)
        if let bad = actual.indices.first(where: { !(abs(actual[$0] - expected[$0]) <= bound($0)) }) {
            Issue.record(
                "\(label): \(actual[bad]) for \(expected[bad]) at \(bad), bound \(bound(bad))",
                sourceLocation: sourceLocation)
        }
    }

    /// Expects a sum of products: λ·√K·u of its magnitudes, twice for a product of products, and the rounding of the result.
    static func expectNear(
        _ actual: Tensor<Float>, _ expected: ReferenceMatrix, depth: Int, _ label: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let relative = (6 * Double(max(1, depth)).squareRoot() + 4) * 0x1p-24
        expectNear(
            actual.elements.map(Double.init), expected.elements,
            bound: { relative * expected.magnitudes[$0] + 0x1p-24 * abs(expected.elements[$0]) + 1e-30 }, label,
            sourceLocation: sourceLocation)
    }
}

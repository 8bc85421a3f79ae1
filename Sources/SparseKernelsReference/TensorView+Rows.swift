package import SparseKernels

// Oracles read every element once and compute with arrays: a view of generic type is slow to read in debug builds.

extension TensorView where Element: AttentionElement {
    /// One row in `Double`.
    package func row(head: Int, token: Int) -> [Double] { (0..<channels).map { Double(self[head, token, $0].floatValue) } }

    /// The rows of a head in `Double`.
    package func rows(head: Int) -> [[Double]] { (0..<tokens).map { row(head: head, token: $0) } }
}
